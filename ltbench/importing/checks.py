"""What is known of data without images, and checks of an imported model on images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ltbench.config.recipe import Recipe
from ltbench.data.base import Data, DatasetInfo
from ltbench.errors import UserError
from ltbench.evaluation.evaluate import evaluate_split
from ltbench.evaluation.metrics import Metrics
from ltbench.importing.orders import LARGE, SMALL, Order
from ltbench.methods.base import Method
from ltbench.records.parts import TrainingImagesFacts

RAREST = 0.3  # share of the classes whose training images are compared
OUTSIDE = 50  # images of each class outside the subset that are looked at


def known_info(recipe: Recipe) -> DatasetInfo:
    """Return the facts of a recipe's data set without its images.

    Raises:
        UserError: they are known from the images only.
    """
    from ltbench.data.cifar import STATISTICS
    from ltbench.data.frozen_lists import read_frozen
    from ltbench.data.pipelines import ENCODERS, statistics

    name, options = recipe.data.name, recipe.data.config
    given: Any = options
    if name in SMALL:
        frozen = read_frozen("cifar10" if name == "cifar10_lt" else "cifar100")
        kept = frozen.indices(given.protocol, given.profile, given.imbalance_ratio)
        counts = np.bincount(frozen.train_labels[kept], minlength=frozen.num_classes)
        encoder = given.augment in ENCODERS
        mean, std = statistics(given.augment) if encoder else STATISTICS[given.statistics]
        return DatasetInfo(name, tuple(counts.tolist()), frozen.class_names, mean, std)
    if name in LARGE:
        counts_ = _official(name)
        mean, std = statistics(given.augment)
        names = tuple(str(k) for k in range(len(counts_)))
        return DatasetInfo(name, counts_, names, mean, std)
    raise UserError(
        f"the classes of {name} are known from its images only: give data.root=DIR with the import"
    )


def _official(name: str) -> tuple[int, ...]:
    from ltbench.data.official import facts

    known: Mapping[str, Any] = facts(name)
    counts = known["parts"]["train"]["counts"]
    return (counts,) * known["num_classes"] if isinstance(counts, int) else tuple(counts)


def far_from_chance(metrics: Metrics, order: Order) -> str:
    """Return a warning if a confident model is as good as chance: a wrong order of the classes.

    Args:
        metrics: of the model.
        order: of the classes that was taken.
    """
    chance = 1 / len(metrics.total)
    confidence = sum(metrics.bin_confidence) / sum(metrics.bin_count)
    if metrics.top1 > 3 * chance or confidence < 10 * max(chance, metrics.top1):
        return ""
    return (
        f"{100 * metrics.top1:.2f} % is near chance, but the model is confident "
        f"({100 * confidence:.0f} % on average): the classes of the file are probably in another "
        f"order than `{order}`; try classes=official, by-count or by-count-ascending"
    )


def check_training_images(
    method: Method, recipe: Recipe, data: Data, device: torch.device, *, batch_size: int = 250
) -> TrainingImagesFacts | None:
    """Return the accuracy on training images of rare classes inside and outside the subset.

    Args:
        method: the model.
        recipe: names data set and subset.
        data: of the recipe.
        device: of the method.
        batch_size: images per forward pass.

    Returns:
        ``None`` where the images outside a frozen subset are not at hand.
    """
    from ltbench.data.frozen_lists import read_frozen

    given: Any = recipe.data.config
    if recipe.data.name not in SMALL or given.imbalance_ratio == 1:
        return None
    try:
        whole = given.model_copy(update={"imbalance_ratio": 1, "val_fraction": 0.0}).load()
    except UserError:  # the copy has the images of the subset alone
        return None
    frozen = read_frozen(given.dataset)
    kept = frozen.indices(given.protocol, given.profile, given.imbalance_ratio)
    classes = len(data.info.class_counts)
    rare = np.argsort(data.info.class_counts, kind="stable")[: max(1, round(RAREST * classes))]
    labels = frozen.train_labels.astype(np.int64)
    inside = kept[np.isin(labels[kept], rare)]
    others = np.setdiff1d(np.arange(len(labels)), kept)
    outside = np.concatenate([others[labels[others] == k][:OUTSIDE] for k in np.sort(rare)])
    if not len(inside) or not len(outside):
        return None
    found = [_correct(method, whole, rows, device, batch_size) for rows in (inside, outside)]
    return TrainingImagesFacts(
        classes=len(rare),
        inside=len(inside),
        inside_correct=found[0],
        outside=len(outside),
        outside_correct=found[1],
    )


def _correct(
    method: Method, data: Data, rows: np.ndarray, device: torch.device, batch_size: int
) -> int:
    """Return how many of some training images are classified correctly."""
    split: Any = data.train
    counts = data.info.class_counts
    found = evaluate_split(method, split.subset(rows), counts, device=device, batch_size=batch_size)
    return sum(found.correct)

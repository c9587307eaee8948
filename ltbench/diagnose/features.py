"""Samples of images by class, and their features under a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_uniform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ltbench.data.base import Split
    from ltbench.diagnose.base import Subject


@dataclass(frozen=True)
class Features:
    """Features and logits of images.

    Args:
        features: inputs of the classifier, float64 [N, D].
        logits: logits, float64 [N, C].
        labels: class of each image, int64 [N].
        index: position of each image in the split, int64 [N].
    """

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def of(self, classes: Sequence[int]) -> np.ndarray:
        """Return the features of the images of some classes [n, D]."""
        return self.features[np.isin(self.labels, classes)]


def sample(
    labels: np.ndarray,
    classes: Sequence[int],
    each: int | None = None,
    total: int | None = None,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Draw images with classes as balanced as their sizes allow.

    The sample depends on labels and seed only, so that it is the same for all models. Smaller
    samples are nested in larger ones.

    Args:
        labels: class of each image [N].
        classes: classes to draw from.
        each: largest number of images per class.
        total: largest total number of images; with more classes than that, some have none.
        seed: random seed.

    Returns:
        Sorted positions of the images, int64 [n].
    """
    score = keyed_uniform(derive(seed, "diagnose", "sample"), np.arange(len(labels)))
    chosen = np.flatnonzero(np.isin(labels, classes))
    chosen = chosen[np.lexsort((score[chosen], labels[chosen]))]  # by class, then at random
    _, starts, sizes = np.unique(labels[chosen], return_index=True, return_counts=True)
    turn = np.arange(len(chosen)) - np.repeat(starts, sizes)  # 0 for the first image of a class
    if each is not None:
        chosen, turn = chosen[turn < each], turn[turn < each]
    if total is not None:
        chosen = chosen[np.lexsort((score[chosen], turn))][:total]
    return np.sort(chosen).astype(np.int64)


def collect(subject: Subject, split: Split, index: np.ndarray) -> Features:
    """Return features and logits of images, with the evaluation transform.

    Args:
        subject: the trained model; left unchanged.
        split: split of the images.
        index: indices of the images, int64 [n].

    Raises:
        UserError: there are no images, one cannot be read, or features are not finite.
    """
    from ltbench.diagnose.predictions import see

    if not len(index):
        raise UserError("no images of the wanted classes: expected at least one, found none")
    seen = list(see(subject, split, index))
    parts = [[one.features, one.logits, one.labels, one.index] for one in seen]
    features, logits, labels, position = (
        np.concatenate([part.cpu().numpy() for part in column])
        for column in zip(*parts, strict=True)
    )
    if not np.isfinite(features).all():
        raise UserError(
            f"{subject.name}: features are NaN or infinite; training has diverged or the weights "
            "are damaged"
        )
    return Features(features.astype(np.float64), logits.astype(np.float64), labels, position)


def read(subject: Subject, split: Split, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return images [n, 3, H, W] with the evaluation transform, and their labels [n].

    Args:
        subject: the trained model, which determines the device.
        split: split of the images.
        index: indices of the images, int64 [n].

    Raises:
        UserError: there are no images, or one cannot be read.
    """
    import torch

    from ltbench.data.loader import Loader

    if not len(index):
        raise UserError("no images of the wanted classes: expected at least one, found none")
    loader = Loader(split, workers=subject.recipe.run.workers, device=subject.device)
    loaded = [one for (one,) in loader.batches(index, min(250, len(index)), key=None)]
    return torch.cat([one.views[0] for one in loaded]), torch.cat([one.labels for one in loaded])


def by_frequency(class_counts: Sequence[int]) -> list[int]:
    """Return the classes by descending frequency; ties keep their order."""
    return [int(k) for k in np.argsort(-np.asarray(class_counts), kind="stable")]


def spread_classes(class_counts: Sequence[int], number: int) -> list[int]:
    """Return classes evenly spaced by rank, from the most frequent to the rarest."""
    ranks = np.linspace(0, len(class_counts) - 1, min(number, len(class_counts)))
    order = by_frequency(class_counts)
    return [order[int(rank)] for rank in np.floor(ranks + 0.5)]


def thirds(class_counts: Sequence[int]) -> dict[str, list[int]]:
    """Return the most frequent, the middle and the rarest third of the classes.

    Returns:
        ``head``, ``middle`` and ``tail``; head and tail have equally many classes, at least one.
    """
    order = by_frequency(class_counts)
    size = max(1, len(order) // 3)
    middle = {"middle": order[size:-size]} if len(order) > 2 * size else {}
    return {"head": order[:size], **middle, "tail": order[-size:]}


def shot_of(class_counts: Sequence[int], groups: dict[str, list[int]]) -> list[str]:
    """Return the name of each class's shot group [C]."""
    names = [""] * len(class_counts)
    for name, classes in groups.items():
        for k in classes:
            names[k] = name
    return names


def parameters_of(subject: Subject, part: str) -> dict[str, nn.Parameter]:
    """Return the parameters of a part used in prediction, by their names in ``export()``.

    Args:
        subject: the trained model.
        part: ``whole``, ``head``, ``backbone``, ``last`` or a stage of the backbone.

    Raises:
        UserError: there is no such part, or it has no parameters.
    """
    method = subject.method
    if part == "whole":
        wanted = None
    elif part == "head":
        wanted = {id(p) for p in method.head.parameters()}
    else:
        stage = "whole" if part == "backbone" else part
        wanted = {id(p) for p in method.parameters_of(stage)}
    named = method.export().named_parameters()
    found = {name: p for name, p in named if wanted is None or id(p) in wanted}
    if not found:
        raise UserError(f"`part`: `{part}` of {subject.name} has no parameters; choose another one")
    return found

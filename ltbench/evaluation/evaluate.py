from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltbench.data.base import Data, Split
from ltbench.data.loader import Loaded, eval_batches
from ltbench.data.workers import Workers
from ltbench.distributed import ranks
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Accumulator, Metrics
from ltbench.models.image_size import ERRORS, size_problem


@torch.no_grad()
def evaluate_split(
    module: nn.Module,
    split: Split,
    class_counts: Sequence[int],
    *,
    device: torch.device,
    rule: str = "strict",
    workers: Workers = 0,
    batch_size: int = 250,
    each: Callable[[Loaded, Tensor], None] | None = None,
    five_crops: int | None = None,
) -> Metrics:
    """Evaluate a module on a split; each image is counted exactly once.

    Args:
        module: maps images [B, 3, H, W] to logits [B, C]; left in evaluation mode.
        split: images to evaluate on; divided over ranks without padding.
        class_counts: training images of each class [C]; they define the shot groups.
        device: device of the module.
        rule: definition of shot groups, see ``ltbench.data.shots.shot_groups``.
        workers: processes that decode images, or ``"auto"``.
        batch_size: images per forward pass and rank.
        each: called with every batch of this rank and its logits, float32 [B, C].
        five_crops: average the logits of five crops, at the corners and in the centre of the image
            resized to a short side this many pixels longer than the crops; ``None`` evaluates the
            centre crop alone.

    Raises:
        UserError: the module returns another number of classes, or the images cannot be cropped.
    """
    if five_crops is not None:
        split = _five_crops(split, five_crops)
    module.eval()
    counts = Accumulator(len(class_counts), device=device)
    for loaded in eval_batches(
        split, batch_size, rank=ranks.rank(), world=ranks.world(), workers=workers, device=device
    ):
        logits = _logits(module, loaded.views[0])
        if len(loaded.views) > 1:
            others = [_logits(module, view).float() for view in loaded.views[1:]]
            logits = torch.stack([logits.float(), *others]).mean(0)
        if logits.ndim != 2 or logits.shape[1] != len(class_counts):
            raise UserError(
                f"the data set has {len(class_counts)} classes, the model returned logits of "
                f"shape {list(logits.shape)}; evaluate a model trained on it"
            )
        counts.update(logits.float(), loaded.labels)
        if each is not None:
            each(loaded, logits.float())
    counts.load_tensor(ranks.all_reduce_(counts.tensor()))
    return counts.metrics(class_counts, rule)


def _five_crops(split: Split, expand: int) -> Split:
    """Return a split with five evaluation views of each image.

    Raises:
        UserError: its images are not resized for evaluation.
    """
    crops: Callable[[int], Split] | None = getattr(split, "five_crops", None)
    if crops is None:
        raise UserError(
            "five crops need images that are resized for evaluation: image files, or CIFAR in the "
            f"pipelines of encoders, data.augment=clip; found a {type(split).__name__}"
        )
    return crops(expand)


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a batch.

    Raises:
        UserError: the network does not take images of this size.
    """
    try:
        logits: Tensor = module(images)
    except ERRORS as error:
        backbone = getattr(module, "backbone", None)
        problem = None if backbone is None else size_problem(error, backbone, images)
        if problem is None:
            raise
        raise problem from error
    return logits


def evaluate(
    module: nn.Module,
    dataset: str | Data,
    *,
    device: str = "auto",
    rule: str = "strict",
    workers: int = 2,
    batch_size: int = 250,
    class_counts: Sequence[int] | None = None,
    each: Callable[[Loaded, Tensor], None] | None = None,
    five_crops: int | None = None,
    **options: Any,
) -> Metrics:
    """Evaluate any module on the test set of a long-tailed data set.

    Args:
        module: maps images [B, 3, H, W], normalised as in the data set, to logits [B, C].
        dataset: a registered name, or a loaded data set.
        device: ``auto``, ``cpu`` or ``cuda``.
        rule: definition of shot groups, see ``ltbench.data.shots.shot_groups``.
        workers: processes that decode images.
        batch_size: images per forward pass.
        class_counts: training images of each class [C], which define the shot groups; by default
            those of the data set, which need not be the ones that the module was trained on.
        each: called with every batch and its logits, float32 [B, C].
        five_crops: see ``evaluate_split``.
        options: options of the data set, e.g. ``root="images"``.

    Raises:
        UserError: the data set cannot be read, or the module returns another number of classes.
    """
    if isinstance(dataset, str):
        from ltbench.config.validation import build_options

        dataset = build_options("DATASETS", dataset, options).load()  # type: ignore[attr-defined]
    where = pick_device(device)
    torch.manual_seed(0)
    return evaluate_split(
        module.to(where),
        dataset.test,  # type: ignore[union-attr]
        dataset.info.class_counts if class_counts is None else class_counts,  # type: ignore[union-attr]
        device=where,
        rule=rule,
        workers=workers,
        batch_size=batch_size,
        each=each,
        five_crops=five_crops,
    )

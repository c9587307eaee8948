"""What a trained model says about the images of a split, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.data.base import Split
from ltbench.data.loader import Loader
from ltbench.diagnose.base import Subject
from ltbench.metrics import ShotRule, shot_groups

BATCH = 250  # as in evaluation, so that logits agree with those of the record


@dataclass(frozen=True)
class Seen:
    """One batch of images and what the model makes of them.

    Args:
        logits: float32 [B, C].
        labels: class of each image, int64 [B].
        index: position of each image in the split, int64 [B].
        features: what enters the classifier, flattened [B, D].
    """

    logits: Tensor
    labels: Tensor
    index: Tensor
    features: Tensor


def see(subject: Subject, split: Split, order: np.ndarray | None = None) -> Iterator[Seen]:
    """Yield a model's logits and features for images of a split, with the evaluation transform.

    Features are the input of the method's classifier; where the method does not call it as one
    module, they are the pooled output of the backbone.

    Args:
        subject: whose model; its modes are left as they were.
        split: the images.
        order: which images, int64 [n]; all if not given.

    Raises:
        UserError: an image cannot be read.
    """
    rows = np.arange(len(split)) if order is None else np.asarray(order, dtype=np.int64)
    if not len(rows):
        return
    loader = Loader(split, workers=subject.recipe.run.workers, device=subject.device)
    for (loaded,) in loader.batches(rows, min(BATCH, len(rows)), key=None):
        logits, features = classify(subject, loaded.views[0])
        yield Seen(logits, loaded.labels, loaded.index, features)


@torch.no_grad()
def classify(subject: Subject, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a model's logits [B, C] and features [B, D], float32; see ``see``.

    Args:
        subject: whose model; its modes are left as they were.
        images: normalised [B, 3, H, W].
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, entered: tuple[Any, ...]) -> None:
        caught.append(entered[0])

    method = subject.method
    hook = method.head.register_forward_pre_hook(catch)
    try:
        with evaluating(method):
            logits = method(images)
            features = caught[0] if caught else method.backbone(images)
    finally:
        hook.remove()
    return logits.float(), features.flatten(1).float()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, a module is in evaluation mode; afterwards all its parts are as they were."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def shot_rule(subject: Subject) -> ShotRule:
    """Return how shot groups are cut: as in the record, else as in the recipe."""
    if subject.record is not None:
        return subject.record.metrics.shot_rule
    return subject.recipe.shot_rule


def groups_of(subject: Subject) -> dict[str, list[int]]:
    """Return the classes of the shot groups that have any; see ``metrics.shot_groups``."""
    groups = shot_groups(subject.data.info.class_counts, shot_rule(subject))
    return {name: classes for name, classes in groups.items() if classes}

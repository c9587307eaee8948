"""Logits and features of a trained model on a split, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.data.base import Split
from ltbench.data.loader import Loader
from ltbench.data.shots import ShotRule, shot_groups
from ltbench.diagnose.base import Subject
from ltbench.methods.inner import evaluating

BATCH = 250  # as in evaluation, so that logits agree with the record


@dataclass(frozen=True)
class Seen:
    """Logits and features of a batch.

    Args:
        logits: logits, float32 [B, C].
        labels: class of each image, int64 [B].
        index: position of each image in the split, int64 [B].
        features: flattened inputs of the classifier [B, D].
    """

    logits: Tensor
    labels: Tensor
    index: Tensor
    features: Tensor


def see(subject: Subject, split: Split, order: np.ndarray | None = None) -> Iterator[Seen]:
    """Yield logits and features of images of a split, with the evaluation transform.

    Features are the input of the method's classifier; if the method does not call it as a module,
    they are the pooled output of the backbone.

    Args:
        subject: the trained model; its modes are restored.
        split: split of the images.
        order: indices of the images, int64 [n]; all if not given.

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
    """Return logits [B, C] and features [B, D] of images, float32; see ``see``.

    Args:
        subject: the trained model; its modes are restored.
        images: normalised images [B, 3, H, W].
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


def shot_rule(subject: Subject) -> ShotRule:
    """Return the rule of the shot groups: that of the record, else of the recipe."""
    if subject.record is not None:
        return subject.record.metrics.shot_rule
    return subject.recipe.shot_rule


def groups_of(subject: Subject) -> dict[str, list[int]]:
    """Return the classes of all non-empty shot groups; see ``shots.shot_groups``."""
    groups = shot_groups(subject.data.info.class_counts, shot_rule(subject))
    return {name: classes for name, classes in groups.items() if classes}

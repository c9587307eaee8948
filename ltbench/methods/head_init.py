"""Initial directions of a cosine classifier: from text, or from training images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.data.text_table import MAKE, check_table, read_table
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.methods.base import Method, Start
from ltbench.methods.options import HeadInit
from ltbench.models.heads import CosineHead, text_directions
from ltbench.models.loading import image_projection
from ltbench.seeding import derive, keyed_bits


def initialise(method: Method, init: HeadInit, start: Start) -> None:
    """Set the directions of a method's cosine classifier.

    Args:
        method: with a ``CosineHead`` as its head.
        init: kind of the directions.
        start: what the method can read.

    Raises:
        UserError: the head is another one, a table is missing or of other classes, or the encoder
            has no projection.
    """
    if init.name == "random":
        return
    head = method.head
    if not isinstance(head, CosineHead):
        raise UserError(f"init: required a cosine classifier, found {type(head).__name__}")
    if init.name == "text":
        head.point(_text(method, init.file, start).to(head.weight.device))
    else:
        head.point(class_means(method.backbone, method.info.num_classes, start, init.images))


def _text(method: Method, file: str | None, start: Start) -> Tensor:
    """Return the directions of a table of text features [C, D]."""
    if file is None:
        raise UserError(
            "init text: the class names' text features are in a table, and none is given as "
            f"stages.{start.stage}.method.init.file=FILE; {MAKE}"
        )
    table = read_table(file)
    check_table(table, method.class_names, start.encoder, file)
    projection = image_projection(method.backbone.origin, method.backbone.num_features)
    if projection.shape[0] != table.features.shape[1]:
        raise UserError(
            f"init text: {file} has text features of {table.features.shape[1]} numbers, the "
            f"encoder projects to {projection.shape[0]}; {MAKE}"
        )
    return text_directions(table.features.double(), projection.double())


@torch.no_grad()
def class_means(
    backbone: nn.Module, num_classes: int, start: Start, images: int | None = None
) -> Tensor:
    """Return the direction of the mean feature of each class's training images.

    Images are not augmented. The sums are in double precision and over all ranks.

    Args:
        backbone: images [B, 3, H, W] to features [B, D]; its mode is kept.
        num_classes: number of classes C.
        start: what a method can read as its stage begins.
        images: most images of a class, drawn at random; ``None`` is all.

    Returns:
        Unit rows [C, D] in float64, on the backbone's device; zero for a class without images.
    """
    training = backbone.training
    backbone.eval()
    like = next(backbone.parameters())
    sums: Tensor | None = None
    counts = torch.zeros(num_classes, dtype=torch.float64, device=like.device)
    for batch, labels in start.images(drawn(start, images)):
        features = backbone(batch).double()
        if sums is None:
            sums = features.new_zeros(num_classes, features.shape[1])
        sums.index_add_(0, labels, features)
        counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
    backbone.train(training)
    if sums is None:  # a rank without images
        width: int = backbone.num_features  # type: ignore[assignment]
        sums = counts.new_zeros(num_classes, width)
    ranks.all_reduce_(sums)
    ranks.all_reduce_(counts)
    return F.normalize(sums / counts.clamp(min=1)[:, None], dim=1)


def drawn(start: Start, most: int | None) -> np.ndarray:
    """Return the indices of at most so many training images of each class, ascending, int64 [M].

    Args:
        start: with the labels and the seed of the draw.
        most: images of a class; ``None`` is all.
    """
    n = len(start.labels)
    if most is None:
        return np.arange(n)
    keys = keyed_bits(derive(start.seed, "class means", start.stage), np.arange(n))
    order = np.lexsort((keys, start.labels))
    labels = start.labels[order]
    first = np.searchsorted(labels, labels)
    kept: np.ndarray = np.sort(order[np.arange(n) - first < most])
    return kept

"""Errors of a step caused by the number or size of its images: one line instead of torch's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ltbench.errors import UserError, visible
from ltbench.methods.base import Method
from ltbench.models.batchnorm import frozen_statistics
from ltbench.models.image_size import ERRORS, size_problem
from ltbench.train.feed import Feed

SINGLE = "Expected more than 1 value per channel"  # in torch's message


def check_single_images(feed: Feed, index: int, method: Method) -> None:
    """Check that a pass of one image, if an epoch has one, can be normalised.

    Args:
        feed: batches of the run.
        index: stage of the recipe.
        method: method of the stage, in its training mode; is not changed.

    Raises:
        UserError: batch normalisation has a single value per channel.
    """
    if feed.smallest(index) > 1:
        return
    split, first = feed.data.train, np.zeros(1, dtype=np.int64)
    views = tuple(v.to(feed.device) for v in split.load(first, key=None, positions=first))
    images = split.finish(views, key=None, positions=first)[0]
    devices = [feed.device] if feed.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), frozen_statistics(method):
            method.backbone(images)
    except ERRORS as error:
        if SINGLE in str(error):
            raise explained(error, method, images, index) from error


def explained(error: Exception, method: Method, images: Tensor, index: int) -> Exception:
    """Return the ``UserError`` that explains an error of a step, or the error itself.

    Args:
        error: raised by the step.
        method: method of the stage.
        images: of the step [B, 3, H, W].
        index: stage of the recipe.
    """
    text = visible(str(error).partition("\n")[0])
    if SINGLE in text:
        return UserError(
            f"`stages.{index}`: a pass of one image gives batch normalisation a single value per "
            f"channel; drop a last batch of one image with `stages.{index}.last_batch=drop`, or "
            f"raise `stages.{index}.batch_size` or `micro_batch`"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return size_problem(error, method.backbone, images) or error

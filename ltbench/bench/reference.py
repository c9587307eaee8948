"""A recipe as the released codes of the field train it, to compare with what `ltbench run` does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer
from torchvision.transforms import functional as F

from ltbench.config.recipe import Recipe
from ltbench.config.validation import build_recipe
from ltbench.data.base import Data, DatasetInfo, Split
from ltbench.data.memory import MemorySplit
from ltbench.errors import UserError
from ltbench.seeding import derive

MIRRORED = ("none", "standard")  # pipelines of images that are done by Pillow here


def reference_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe as the released codes execute it.

    Eager, in single precision, in contiguous memory. PLOT's second pass starts from the images, its
    class gradients are one backward pass each, and SciPy's SLSQP solves CAGrad's problem; other
    solvers stay. All else is as in the recipe.
    """
    tree = _with_exact_plot(recipe, from_features=False)
    tree["run"] |= {"precision": "fp32", "channels_last": False, "compile": "none"}
    return build_recipe(tree)


def exact_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe in single precision, PLOT with the reference's class gradients and solver."""
    tree = _with_exact_plot(recipe)
    tree["run"]["precision"] = "fp32"
    return build_recipe(tree)


def _with_exact_plot(recipe: Recipe, **options: Any) -> dict[str, Any]:
    tree = recipe.tree()
    for stage in tree["stages"]:
        update = stage["update"]
        if update["name"] != "plot":
            continue
        update |= {"class_gradients": "exact", **options}
        if update["solver"]["name"] == "cagrad":
            update["solver"] = {**update["solver"], "name": "slsqp"}
    return tree


def reference_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer that has made no step, with the implementation that torch would choose.

    Args:
        optimizer: one of torch's; changed in place.
    """
    for group in [*optimizer.param_groups, optimizer.defaults]:
        group |= {"fused": None, "foreach": None}
    return optimizer


def reference_data(data: Data) -> Data:
    """Return a data set whose images are made by Pillow in loader processes, one by one.

    Raises:
        UserError: it does not lie in memory, or is augmented in a way that is not mirrored here.
    """
    train, test = (reference_split(split, data.info) for split in (data.train, data.test))
    val = None if data.val is None else reference_split(data.val, data.info)
    return replace(data, train=train, test=test, val=val)


def reference_split(split: Split, info: DatasetInfo) -> Split:
    """Return a split whose images are made by Pillow in loader processes, one by one.

    Args:
        split: the same images in memory.
        info: says how they are normalised.

    Raises:
        UserError: it does not lie in memory, or is augmented in a way that is not mirrored here.
    """
    if not isinstance(split, MemorySplit):
        raise UserError(
            f"the reference pipeline mirrors data sets that lie in memory (CIFAR, digits); "
            f"`{info.name}` is read from files; choose pipelines=fast"
        )
    for augment in (split.augment, *split.augment_views):
        if augment not in MIRRORED:
            raise UserError(
                f"the reference pipeline mirrors data.augment {' and '.join(MIRRORED)}, found "
                f"`{augment}`; choose another one, or pipelines=fast"
            )
    return ReferenceSplit(split, info)


class ReferenceSplit:
    """Images made one by one with Pillow and torchvision's functions; a ``Split``.

    Black border, crop, flip, tensor, normalisation, as the transforms of the released codes call
    them. The random numbers are those of ``MemorySplit``, and so are the images.

    Args:
        split: the same images in memory.
        info: says how they are normalised.
    """

    in_memory = False  # loader processes are to run it

    def __init__(self, split: MemorySplit, info: DatasetInfo) -> None:
        self.split, self.labels = split, split.labels
        self.mean, self.std = list(info.mean), list(info.std)

    def __len__(self) -> int:
        return len(self.split)

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return normalised images, one float tensor [B, 3, H, W] per view; see ``Split.load``."""
        return tuple(
            self._view(indices, None if key is None else derive(key, "view", v), positions, v)
            for v in range(views)
        )

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return the finished result of ``load``."""
        return views

    def fingerprint(self) -> str:
        """Return that of the images in memory."""
        return self.split.fingerprint()

    def _view(
        self, indices: np.ndarray, key: int | None, positions: np.ndarray, view: int
    ) -> Tensor:
        split = self.split
        augment = (split.augment, *split.augment_views)[min(view, len(split.augment_views))]
        moves = key is not None and augment == "standard"
        drawn = split.draw(indices, key=key, positions=positions, view=view)
        made = []
        for index, top, left, mirrored in drawn.tolist():
            image = Image.fromarray(split.images[index])
            if moves:
                wide, tall = image.size
                image = F.crop(F.pad(image, split.pad), top, left, tall, wide)
                image = F.hflip(image) if mirrored else image
            made.append(F.normalize(F.to_tensor(image), self.mean, self.std))
        return torch.stack(made)

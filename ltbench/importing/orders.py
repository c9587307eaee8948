"""Orders of the classes in released checkpoints."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ltbench.errors import UserError

Order = Literal["official", "by-count", "by-count-ascending"]
FACTS = "class_orders"  # .safetensors and .json in the folder `facts`
LARGE = ("imagenet_lt", "places_lt", "inat18")
SMALL = ("cifar10_lt", "cifar100_lt")  # their classes are in the order of their counts already
# Families whose authors renumber the classes, by the data sets on which they do.
RENUMBERED: dict[tuple[str, str], Order] = {
    **{("mislas", name): "by-count" for name in LARGE},
    ("gcl_places", "places_lt"): "by-count",
    ("ride", "places_lt"): "by-count",  # SADE; RIDE itself has no such model
    **{("reslt", name): "by-count-ascending" for name in LARGE},
}


def usual_order(family: str, dataset: str) -> Order:
    """Return the order of the classes in the files of a family."""
    return RENUMBERED.get((family, dataset), "official")


def labels_of(order: Order, dataset: str, classes: int) -> Tensor | None:
    """Return the official label of the class at each position; ``None`` if they are the same.

    The authors sorted the classes by training images with numpy's default sort, which is not
    stable: where classes have equally many, the order depends on numpy's version and the
    processor. These are stored orders, of the sort that was used before numpy 1.25.

    Args:
        order: ``official``, ``by-count`` (most frequent first) or ``by-count-ascending``.
        dataset: registered name.
        classes: number of classes C.

    Returns:
        Labels, int64 [C].

    Raises:
        UserError: the order is not known for this data set.
    """
    if order == "official":
        return None
    if dataset in SMALL:
        return None if order == "by-count" else torch.arange(classes - 1, -1, -1)
    if dataset not in LARGE:
        known = ", ".join((*SMALL, *LARGE))
        raise UserError(
            f"`classes={order}` is known for {known}, not for {dataset}; give classes=official if "
            "the file has the data set's own order"
        )
    found = stored(f"{dataset}_{'descending' if order == 'by-count' else 'ascending'}")
    if len(found) != classes:
        raise UserError(f"{dataset} has {len(found):,} classes, the file {classes:,}")
    return found


def stored(name: str) -> Tensor:
    """Return a stored order, its hash checked.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = resources.files("ltbench.importing").joinpath("facts")
    try:
        order = load(folder.joinpath(f"{FACTS}.safetensors").read_bytes())[name].astype(np.int64)
        known = json.loads(folder.joinpath(f"{FACTS}.json").read_text("utf-8"))["sha1_int64"][name]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{FACTS} is damaged ({error}); install ltbench again") from error
    if hashlib.sha1(order.astype("<i8").tobytes()).hexdigest() != known:
        raise UserError(f"{FACTS} is damaged at {name}; install ltbench again")
    return torch.from_numpy(order)

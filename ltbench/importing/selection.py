"""How authors chose the epoch of a released checkpoint."""

from __future__ import annotations

from typing import Literal

Chosen = Literal["yes", "no", "unknown"]


def usual_choice(family: str, dataset: str, name: str) -> Chosen:
    """Return whether a family's code chooses the epoch of such a file on the test images.

    Args:
        family: of the file.
        dataset: registered name.
        name: of the file.
    """
    best, small = "best" in name.lower(), dataset.startswith("cifar")
    if family in ("m2m", "lift"):
        return "no"
    if family == "decoupling":  # chosen on the validation list, where there is one
        return "yes" if small or dataset == "inat18" else "no"
    if family == "ride":
        return ("yes" if small or dataset == "inat18" else "no") if best else "unknown"
    if best:
        return "yes"
    last = name in ("current.pth.tar", "ckpt.pth.tar", "moco_ckpt.pth.tar", "bcl_ckpt.pth.tar")
    return "no" if last else "unknown"

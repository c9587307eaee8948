"""Device selection for one rank."""

from __future__ import annotations

import torch

from ltbench.distributed import ranks
from ltbench.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device of this rank, and make it current if it is a GPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: a GPU is requested but not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError("`run.device` requests a GPU, but torch finds none; use run.device=cpu")
        device = torch.device(name if ":" in name else f"cuda:{ranks.local_rank()}")
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"`run.device` = {device}, but there are {torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(device)
        return device
    return torch.device(name)

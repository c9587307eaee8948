"""Device selection for one rank."""

from __future__ import annotations

import re

import torch

from ltbench.distributed import ranks
from ltbench.errors import UserError, visible


def pick_device(name: str) -> torch.device:
    """Return the device of this rank, and make it current if it is a GPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: it is none of these, or a GPU that is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError("`run.device` requests a GPU, but torch finds none; use run.device=cpu")
        if not re.fullmatch("cuda(:[0-9]{1,6})?", name):
            raise UserError(f"device: expected cuda or cuda:N, found `{visible(name)}`")
        index, count = name.partition(":")[2] or ranks.local_rank(), torch.cuda.device_count()
        if int(index) >= count:
            raise UserError(
                f"`run.device`: expected a GPU from cuda:0 to cuda:{count - 1}, found "
                f"{visible(f'cuda:{index}')}; use one of them, or start at most {count} ranks here"
            )
        device = torch.device("cuda", int(index))
        torch.cuda.set_device(device)
        return device
    if name != "cpu":
        raise UserError(f"device: expected auto, cpu, cuda or cuda:N, found `{visible(name)}`")
    return torch.device(name)

"""Environment variables by which torchrun starts a rank; read without importing torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ltbench.errors import UserError, brief

GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ADVICE = "start the command with torchrun, or unset RANK, LOCAL_RANK and WORLD_SIZE for one process"


@dataclass(frozen=True)
class Launch:
    """Position of this process in its job.

    Args:
        rank: of this process, in ``range(world)``.
        world: number of ranks.
        local_rank: of this process on its node.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def read_launch() -> Launch:
    """Return the position given by the environment; one process without it.

    Raises:
        UserError: a variable is missing or no number in its range.
    """
    given = [name for name in GROUP if os.environ.get(name)]
    world = _number("WORLD_SIZE", 1, 1, 2**20)
    if "RANK" in given and "WORLD_SIZE" not in given:
        raise UserError(f"RANK is set, but not WORLD_SIZE, so there is no group to join; {ADVICE}")
    if world > 1:
        missing = [name for name in GROUP if name not in given]
        if missing:
            raise UserError(
                f"WORLD_SIZE={world} asks for a group of ranks, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set; {ADVICE}"
            )
        _number("MASTER_PORT", 0, 0, 65535)
    rank = _number("RANK", 0, 0, world - 1)
    return Launch(rank, world, _number("LOCAL_RANK", 0, 0, world - 1))


def _number(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not low <= number <= high:
        raise UserError(
            f"{name} must be a whole number from {low} to {high}, found {brief(text)}; {ADVICE}"
        )
    return number

"""Curves, numbers of ranks and training time of a run, kept across interruptions."""

from __future__ import annotations

import logging
import time
from typing import Any

from ltbench.distributed import ranks
from ltbench.train.checkpoint import Position

LOG = logging.getLogger(__name__)


class RunHistory:
    """History of a run, saved with each checkpoint.

    Attributes:
        epochs: lines of the curves.
        worlds: numbers of ranks, in their order.
        worlds_from: position at which each of them took over.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.worlds: list[int] = []
        self.worlds_from: list[str] = []
        self._before = 0.0  # seconds of earlier processes
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, without interruptions."""
        return self._before + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """Return a copy as plain data."""
        return {
            "history": list(self.epochs),
            "worlds": list(self.worlds),
            "worlds_from": list(self.worlds_from),
            "seconds": self.seconds,
        }

    def load(self, facts: dict[str, Any]) -> None:
        """Continue the history saved with a checkpoint."""
        self.epochs = facts["history"]
        self.worlds, self.worlds_from = facts["worlds"], facts["worlds_from"]
        self._before = facts["seconds"]

    def note_ranks(self, at: Position) -> None:
        """Record the number of ranks if it is a new one."""
        if ranks.world() in self.worlds[-1:]:
            return
        self.worlds.append(ranks.world())
        self.worlds_from.append(f"stage {at.stage}, epoch {at.epoch}, step {at.step}")
        if len(self.worlds) > 1 and ranks.is_main():
            LOG.warning(
                "goes on at %s with %d rank(s) instead of %d: the same global batches, and "
                "marked in the record",
                self.worlds_from[-1],
                *self.worlds[:-3:-1],
            )

"""Curves, numbers of ranks and threads, and training time of a run, across interruptions."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from ltbench.distributed import ranks
from ltbench.train.checkpoint import Position

LOG = logging.getLogger(__name__)


class RunHistory:
    """History of a run, saved with each checkpoint.

    Attributes:
        epochs: lines of the curves.
        worlds: numbers of ranks, in their order.
        worlds_from: position at which each of them took over.
        threads: numbers of CPU threads of torch on rank 0, in their order.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.worlds: list[int] = []
        self.worlds_from: list[str] = []
        self.threads: list[int] = []
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
            "threads": list(self.threads),
            "seconds": self.seconds,
        }

    def load(self, facts: dict[str, Any]) -> None:
        """Continue the history saved with a checkpoint."""
        self.epochs = facts["history"]
        self.worlds, self.worlds_from = facts["worlds"], facts["worlds_from"]
        self.threads = facts.get("threads", [])  # older checkpoints have none
        self._before = facts["seconds"]

    def note_ranks(self, at: Position, device: torch.device) -> None:
        """Record the numbers of ranks and threads if they are new ones."""
        self._note_threads(at, device)
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

    def _note_threads(self, at: Position, device: torch.device) -> None:
        now = torch.get_num_threads()
        if now in self.threads[-1:]:
            return
        self.threads.append(now)
        if len(self.threads) > 1 and device.type == "cpu" and ranks.is_main():
            LOG.warning(
                "goes on at stage %d, epoch %d, step %d with %d CPU thread(s) instead of %d: sums "
                "are rounded differently, so the result differs; marked in the record",
                *(at.stage, at.epoch, at.step, *self.threads[:-3:-1]),
            )

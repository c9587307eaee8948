"""Intervals between the checkpoints that are written inside an epoch."""

from __future__ import annotations

import time
from typing import Literal

from ltbench.config.recipe import RunOptions


def shown(epoch: int, epochs: int, every: int) -> bool:
    """Return whether the curves show results after an epoch.

    Args:
        epoch: 1-based, within the stage.
        epochs: of the stage.
        every: ``run.eval_every``; 0 is a tenth of the stage.
    """
    return epoch % (every or max(1, epochs // 10)) == 0 or epoch == epochs


class Cadence:
    """Decides after each step whether a checkpoint is due.

    None is due where less than a batch is left of the epoch: how a short last batch is cut depends
    on the number of ranks, which may change on resume.

    Args:
        options: ``save_steps`` and ``save_minutes``.
    """

    def __init__(self, options: RunOptions) -> None:
        self.steps, self.minutes = options.save_steps, options.save_minutes
        self._saved = time.monotonic()

    def due(self, done: int, left: int, batch_size: int) -> Literal["steps", "minutes"] | None:
        """Return which interval has passed, if any.

        ``"steps"`` comes on all ranks at once; on ``"minutes"`` they may differ, and the clock of
        rank 0, which alone writes, decides.

        Args:
            done: finished steps of the stage.
            left: images left in the epoch.
            batch_size: global batch.
        """
        if left < batch_size:
            return None
        if self.steps is not None and done % self.steps == 0:
            return "steps"
        if self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes:
            return "minutes"
        return None

    def saved(self) -> None:
        """Restart the clock."""
        self._saved = time.monotonic()

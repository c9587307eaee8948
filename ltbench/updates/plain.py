from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ltbench.methods.base import Batch, Progress, Rows
from ltbench.updates import options
from ltbench.updates.base import Log, StepRun, Update


class Plain(Update):
    """One backward pass and one optimizer step.

    Reference: ordinary stochastic gradient descent.
    Departures: none known.
    """

    Config = options.Plain

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        loss, rows = run.phases.run("plain", partial(_gradient, run, batches, at))
        run.optimizer.step()
        return {"loss": loss, "rows": rows}


def _gradient(run: StepRun, batches: Sequence[Batch], at: Progress) -> tuple[Tensor, list[Rows]]:
    """Set ``.grad``, and return the loss and its rows."""
    run.zero_grad()
    return run.backward(batches, at)

from __future__ import annotations

from collections.abc import Sequence

from ltbench.methods.base import Batch, Progress
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
        run.zero_grad()
        loss, rows = run.backward(batches, at)
        run.optimizer.step()
        return {"loss": loss, "rows": rows}

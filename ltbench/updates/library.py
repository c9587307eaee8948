from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.updates.base import StepRun
from ltbench.updates.plot import Plot


class PlotStep:
    """PLOT step for any model and training loop.

    The closure is called twice per step, at the weights and at the perturbed weights, and with
    ``class_gradients="certified"`` once more per round. Example::

        step = PlotStep(model, optimizer, class_counts=counts, part=model.layer4, epochs=50)
        for epoch in range(200):
            for images, labels in loader:
                def rows():
                    return F.cross_entropy(model(images), labels, reduction="none")
                step(rows, labels, epoch=epoch)

    Args:
        model: network being trained, in training mode.
        optimizer: over its parameters.
        class_counts: training images of each class [C].
        part: module or parameters under multi-objective control; by default all of the model.
        seed: for random solver orders and class sampling.
        options: options of ``ltbench.updates.plot.Plot.Config``, e.g. ``solver="mgda"``.

    Raises:
        UserError: an option is unknown or out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        class_counts: Sequence[int],
        part: nn.Module | Iterable[nn.Parameter] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if options.get("mode", "paper") == "paper":  # same result here, only slower
            options.setdefault("from_features", False)
        self.update = Plot(validation.build_options("UPDATES", "plot", options))
        if self.update.config.from_features:
            raise UserError(
                "`from_features` needs a backbone cut into stages; pass `from_features=False`"
            )
        self.method = _Closure(model, tuple(class_counts))
        chosen = model if part is None else part
        self.part = list(chosen.parameters() if isinstance(chosen, nn.Module) else chosen)
        self.run = _PartRun(cast(Method, self.method), optimizer, part_parameters=self.part)
        self.seed, self.steps = seed, 0

    def __call__(
        self, rows: Callable[[], Tensor], labels: Tensor, *, epoch: int = 0
    ) -> dict[str, Any]:
        """Do one step.

        Args:
            rows: returns the loss of each image [B], with its graph, at the current weights.
            labels: class of each image [B].
            epoch: 0-based; from epoch ``epochs`` on the step is an ordinary one.

        Returns:
            The loss of the batch and, while active, ``objectives`` (their number), ``conflicts``
            (pairs), the solver's ``gap``, the ``classes`` and their ``weights``.
        """
        self.method.rows = rows
        at = Progress(self.seed, stage=0, epoch=epoch, epochs=epoch + 1, step=self.steps)
        self.steps += 1
        batch = Batch((), labels, torch.arange(len(labels), device=labels.device))
        log = self.update.step(self.run, [batch], at)
        return {k: v for k, v in log.items() if k != "rows"}


class _Closure(nn.Module):
    """Stand-in for a method whose loss is the user's closure."""

    def __init__(self, model: nn.Module, class_counts: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        names = tuple(str(k) for k in range(len(class_counts)))
        self.info = DatasetInfo("closure", class_counts, names)
        self.rows: Callable[[], Tensor]

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return the closure's rows."""
        return Rows(self.rows(), batch.labels, images=len(batch.labels))


class _PartRun(StepRun):
    """Context of an update whose part is given as parameters, not by name."""

    def __init__(
        self, method: Method, optimizer: Optimizer, part_parameters: list[nn.Parameter]
    ) -> None:
        super().__init__(method, optimizer)
        self.part_parameters = part_parameters

    def part(self, names: str | Sequence[str]) -> list[nn.Parameter]:
        """Return the given parameters, whatever the name."""
        return self.part_parameters

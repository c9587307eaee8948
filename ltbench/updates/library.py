"""The PLOT step for training loops of others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError, brief, visible
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
        UserError: an option is unknown or out of range, counts are no numbers of images, or no
            parameter of the part belongs to the model and is trained by the optimizer.
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
        self.method = _Closure(model, _counts(class_counts))
        self.part = _part(model, optimizer, model if part is None else part)
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

        Raises:
            UserError: rows or labels are of another shape or type, a label is not below the number
                of classes, or a parameter of the part is frozen by now.

        Returns:
            The loss of the batch and, while active, ``objectives`` (their number), ``conflicts``
            (pairs), the solver's ``gap``, the ``classes`` and their ``weights``.
        """
        _check_labels(labels, self.method.info.num_classes)
        if not isinstance(epoch, int) or epoch < 0:
            raise UserError(f"`epoch` must be a whole number >= 0, found {brief(epoch)}")
        if not all(p.requires_grad for p in self.part):
            raise UserError(
                "a parameter of `part` no longer requires gradients; make a new PlotStep after "
                "freezing parameters"
            )
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
        rows = self.rows()
        _check_rows(rows, len(batch.labels))
        return Rows(rows, batch.labels, images=len(batch.labels))


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


def _counts(class_counts: Any) -> tuple[int, ...]:
    """Return class counts as numbers."""
    given = class_counts.tolist() if hasattr(class_counts, "tolist") else class_counts
    counts: list[int] = []
    with contextlib.suppress(TypeError):
        counts = [index(n) for n in given] if isinstance(given, Sequence) else []
    if not counts or min(counts) < 0:
        raise UserError(
            "`class_counts` must be the number of training images of each class, whole numbers "
            f">= 0 [C], found {visible(brief(given))}"
        )
    return tuple(counts)


def _part(model: Any, optimizer: Any, part: Any) -> list[nn.Parameter]:
    """Return the trained parameters of a part of a model."""
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise UserError(
            "`PlotStep` takes a torch.nn.Module and a torch.optim.Optimizer, found "
            f"{type(model).__name__} and {type(optimizer).__name__}"
        )
    given = part.parameters() if isinstance(part, nn.Module) else part
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if not listed or not all(isinstance(p, nn.Parameter) for p in listed):
        raise UserError(
            "`part` must be a module or parameters of the model, e.g. model.layer4, found "
            + (f"{type(part).__name__}()" if isinstance(part, nn.Module) else visible(brief(part)))
        )
    own = {id(p) for p in model.parameters()}
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = sum(id(p) not in own for p in listed)
    if foreign:
        raise UserError(
            f"`part` must belong to the model: {foreign} of its {len(listed)} parameters are of "
            "another one"
        )
    trained = [p for p in listed if p.requires_grad and id(p) in stepped]
    if not trained or (part is given and len(trained) < len(listed)):
        raise UserError(
            "`part` must be trained: "
            f"{sum(not p.requires_grad for p in listed)} of its {len(listed)} parameters are "
            f"frozen, and the optimizer lacks {sum(id(p) not in stepped for p in listed)}"
        )
    return trained


def _check_labels(labels: Any, num_classes: int) -> None:
    fine = isinstance(labels, Tensor) and labels.ndim == 1 and len(labels) > 0
    if not fine or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        found = _shown(labels) if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(
            "`labels` must be a tensor of class numbers [B], e.g. int64, one for each row, found "
            f"{found}"
        )
    low, high = (int(v) for v in torch.stack(torch.aminmax(labels)).tolist())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"`labels` must be in 0..{num_classes - 1}, the classes of `class_counts`, found "
            f"{low if low < 0 else high}"
        )


def _check_rows(rows: Any, size: int) -> None:
    if not isinstance(rows, Tensor) or rows.shape != (size,) or not rows.is_floating_point():
        found = _shown(rows) if isinstance(rows, Tensor) else type(rows).__name__
        raise UserError(
            f"`rows` must return the loss of each image [{size}], one for each label, found "
            f"{found}; use reduction='none'"
        )
    if torch.is_grad_enabled() and not rows.requires_grad:
        raise UserError(
            "`rows` must return losses with their graph, found a tensor without one; leave out "
            "`detach` and `no_grad`"
        )


def _shown(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"

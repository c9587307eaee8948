"""What a PLOT step costs against a plain step, pipeline by pipeline, in one process."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.backbones.base import create_backbone, split
from ltbench.class_gradients.certified import certify
from ltbench.class_gradients.engine import Engine, Mode, Pass
from ltbench.heads import LinearHead
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.slsqp import SLSQP

RHO = 1e-4

PIPELINES = ("plain", "sam", "sam_part", "fast", "certified", "exact", "reference")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        pipeline: what was run, one of `PIPELINES`.
        milliseconds: median of a step.
        ratio: median over that of the plain step.
        phases: median milliseconds of each phase of a PLOT step.
    """

    pipeline: str
    milliseconds: float
    ratio: float
    phases: dict[str, float]


def bench(
    backbone: str = "resnet32_cifar",
    *,
    classes: int = 10,
    present: int | None = None,
    batch: int = 128,
    pixels: int = 32,
    part: str = "last",
    pipelines: Sequence[str] = PIPELINES,
    rounds: int = 7,
) -> list[Row]:
    """Time pipelines in turn, so that each sees the same machine.

    Images are random: speed does not depend on them. Features that enter the part are kept for
    the second pass in every PLOT pipeline.

    Args:
        backbone: name of the network.
        classes: classes C.
        present: classes that occur in the batch; drawn at random if not given.
        batch: images per step.
        pixels: side of an image.
        part: what class gradients are taken of: last, a stage's name, or whole.
        pipelines: which, of `PIPELINES`; ``plain`` is always run.
        rounds: timed steps of each, after two that are not.
    """
    steps = _Steps(backbone, classes, present, batch, pixels, part)
    names = ["plain", *(p for p in pipelines if p != "plain")]
    runs = {name: getattr(steps, name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            steps.phases = {}
            start = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
                phases[name].append(steps.phases)
    plain = statistics.median(times["plain"])
    return [
        Row(name, statistics.median(times[name]), statistics.median(times[name]) / plain, {
            key: 1e3 * statistics.median(p[key] for p in phases[name]) for key in phases[name][0]
        })
        for name in names
    ]


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Steps:
    """One training step of each pipeline on the same network and batch."""

    def __init__(
        self, backbone: str, classes: int, present: int | None, batch: int, pixels: int, part: str
    ) -> None:
        torch.manual_seed(0)
        net = create_backbone(backbone)
        self.trunk, self.tail = split(net, part)
        self.head = LinearHead(net.num_features, classes)
        self.model = nn.Sequential(net, self.head)
        self.part = list(self.tail.parameters())
        inside = {id(p) for p in self.part}
        self.rest = [p for p in self.model.parameters() if id(p) not in inside]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6, momentum=0.9)
        self.images = torch.randn(batch, 3, pixels, pixels)
        labels = torch.randint(classes, (batch,))
        if present is not None:
            labels = torch.arange(batch) % present
        self.labels = labels
        self.solver = CAGrad(CAGrad.Config(c=0.5, rescale="sum"))
        self.released = SLSQP(SLSQP.Config())
        self.phases: dict[str, float] = {}

    def plain(self) -> None:
        self.optimizer.zero_grad()
        self._rows(self.trunk(self.images)).mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def sam(self) -> None:
        everything = list(self.model.parameters())
        rows = self._rows(self.trunk(self.images))
        with _climbed(everything, torch.autograd.grad(rows.mean(), everything)):
            self.optimizer.zero_grad()
            self._rows(self.trunk(self.images)).mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def sam_part(self) -> None:
        features, gradient = self._first()
        with _climbed(self.part, gradient):
            self.optimizer.zero_grad()
            self._rows(features).mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def exact(self) -> None:
        self._plot("exact")

    def fast(self) -> None:
        self._plot("fast")

    def certified(self) -> None:
        self._plot("fast", rounds=1)

    def reference(self) -> None:
        """The released algorithm: one backward pass per class, then SLSQP."""
        features, gradient = self._first()
        with _climbed(self.part, gradient):
            rows = self._rows(features)
            self.optimizer.zero_grad()
            rows.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            table = []
            for k in self.labels.unique().tolist():
                own = rows[self.labels == k].sum() / len(rows)
                found = torch.autograd.grad(own, self.part, retain_graph=True)
                table.append(torch.cat([g.flatten() for g in found]))
            stacked = torch.stack(table)
            solution = self.released.solve((stacked @ stacked.T).numpy())
            flat = torch.as_tensor(solution.coefficients, dtype=stacked.dtype) @ stacked
            sizes = [p.numel() for p in self.part]
            for p, g in zip(self.part, torch.split(flat, sizes), strict=True):
                p.grad = g.view_as(p)
        self.optimizer.step()

    def _plot(self, mode: Mode, rounds: int = 0) -> None:
        with self._phase("first pass"):
            features, gradient = self._first()
        place = self.labels.unique(return_inverse=True)[1]
        size = int(place.max()) + 1
        weight = torch.full((len(place),), 1 / len(place))
        engine = self._engine(mode)
        with _climbed(self.part, gradient):
            with self._phase("second forward"), engine.recording():
                rows = self._rows(features)
            passes = [Pass(lambda: self._rows(features.detach()), place, weight, rows)]
            with self._phase("ordinary gradient"):
                everything = [*self.rest, *self.part]
                found = torch.autograd.grad(rows.mean(), everything, retain_graph=True)
                for p, g in zip(self.rest, found[: len(self.rest)], strict=True):
                    p.grad = g
            with self._phase("class gradients"):
                gradients = engine.measure(passes, size, list(found[len(self.rest) :]))
            with self._phase("direction"):
                if rounds:
                    direction = certify(
                        engine, passes, gradients, self.solver, tolerance=1e-3, rounds=rounds
                    ).direction
                else:
                    solution = self.solver.solve(gradients.gram.numpy())
                    direction = gradients.combine(torch.as_tensor(solution.coefficients))
            for p, g in zip(self.part, direction, strict=True):
                p.grad = g
        self.optimizer.step()

    def _engine(self, mode: Mode) -> Engine:
        name = f"_engine_{mode}"
        if not hasattr(self, name):
            setattr(self, name, Engine(self.model, self.part, mode))
        engine: Engine = getattr(self, name)
        return engine

    def _rows(self, features: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.tail(features)), self.labels, reduction="none")

    def _first(self) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the features that enter the part, and the part's gradient of the loss."""
        features = self.trunk(self.images)
        return features, torch.autograd.grad(self._rows(features).mean(), self.part)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - start


@contextmanager
def _climbed(parameters: list[nn.Parameter], gradients: Sequence[Tensor]) -> Iterator[None]:
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        size = torch.stack(list(torch._foreach_norm(gradients))).norm()
        steps = torch._foreach_mul(list(gradients), float(RHO / size))
        torch._foreach_add_(list[Tensor](parameters), list(steps))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](parameters), start)


def table(rows: Sequence[Row]) -> str:
    """Return rows as text."""
    lines = [f"{'pipeline':<12}{'ms':>8}{'/ plain':>9}"]
    for row in rows:
        detail = ", ".join(f"{name} {ms:.0f}" for name, ms in row.phases.items())
        lines.append(f"{row.pipeline:<12}{row.milliseconds:>8.0f}{row.ratio:>9.2f}  {detail}")
    return "\n".join(lines)

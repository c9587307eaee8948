"""Time and optimality of solvers on Gram matrices of real gradients.

Usage:
  python tools/bench/solvers.py
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits  # comes with scikit-learn
from torch.nn import functional as F

from ltbench.bench.table import plain_table
from ltbench.class_gradients import class_gram
from ltbench.models.cifar_resnet import CifarResNet
from ltbench.moo.base import Solution, Vector
from ltbench.moo.cagrad import CAGrad, certified_gap
from ltbench.moo.epo import EPO
from ltbench.moo.mgda import MGDA
from ltbench.moo.pcgrad import PCGrad
from ltbench.moo.slsqp import SLSQP

C = 0.5
SIZES = (10, 50, 100, 365, 1000)


@dataclass(frozen=True)
class Solved:
    """One solver on one matrix.

    Args:
        solver: its name.
        size: objectives K.
        milliseconds: median, or that of a single call where it is long.
        gap: duality gap of CAGrad's problem in units of c^2 |g_0|^2, of MGDA's in units of
            |g_0|^2; NaN for solvers of other problems.
    """

    solver: str
    size: int
    milliseconds: float
    gap: float


def captured_gram(size: int, *, steps: int = 20, seed: int = 0) -> Vector:
    """Return inner products of gradients met in training: a small network on handwritten digits.

    Args:
        size: objectives K; 10 are the digits, more are groups of images of one digit, down to one
            or two images each at 1000.
        steps: optimizer steps before.
        seed: of the network, the batches and the groups.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 - 0.3).float()[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(seed)
    model = CifarResNet(8, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(labels), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()  # samples are independent then, and fast class gradients exact but for columns
    order = torch.argsort(labels, stable=True)
    groups = torch.arange(len(order)) * size // len(order)

    def rows() -> torch.Tensor:
        return F.cross_entropy(model(images[order]), labels[order], reduction="none")

    return class_gram(model.layer3, rows, groups, model=model, mode="fast")[0]


def measure(sizes: Sequence[int] = SIZES, *, budget: float = 3.0) -> list[Solved]:
    """Time all solvers on one core; cvxpy as well, where it is installed.

    Args:
        sizes: objectives K.
        budget: seconds for repeating one solver on one matrix; each runs once at least.
    """
    found = []
    with threadpool_limits(1):
        for size in sizes:
            gram = captured_gram(size)
            losses = np.linspace(0.5, 2.0, size)
            cagrad, mgda = CAGrad(CAGrad.Config(c=C)), MGDA(MGDA.Config())
            solvers: dict[str, Callable[[], Solution]] = {
                "cagrad": partial(cagrad.solve, gram),
                "mgda": partial(mgda.solve, gram),
                "pcgrad": partial(PCGrad(PCGrad.Config()).solve, gram),
                "epo": partial(EPO(EPO.Config()).solve, gram, losses=losses),
                "slsqp (released)": partial(SLSQP(SLSQP.Config(c=C)).solve, gram),
            }
            if importlib.util.find_spec("cvxpy"):
                solvers["cagrad by cvxpy"] = partial(_by_cvxpy, gram)
            for name, solve in solvers.items():
                solution, milliseconds = _timed(solve, budget)
                found.append(Solved(name, size, milliseconds, _gap(name, gram, solution)))
    return found


def _timed(solve: Callable[[], Solution], budget: float) -> tuple[Solution, float]:
    times: list[float] = []
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        solution = solve()
        times.append(1e3 * (time.perf_counter() - start))
        if len(times) == 50 or time.perf_counter() - begin > budget:
            return solution, statistics.median(times)


def _gap(name: str, gram: Vector, solution: Solution) -> float:
    """Return the duality gap on the scaled problem, independent of the one the solver reports."""
    matrix = gram / gram.diagonal().mean()
    steep = matrix @ solution.weights
    if name == "mgda":
        return max(2 * float(solution.weights @ steep - steep.min()), 0.0) / float(matrix.mean())
    if name.startswith(("cagrad", "slsqp")):
        slope = C * float(np.sqrt(matrix.mean()))
        return certified_gap(matrix, matrix.mean(axis=1), slope, solution.weights)
    return float("nan")


def _by_cvxpy(gram: Vector) -> Solution:
    """Solve CAGrad's problem with a general convex solver."""
    cp: Any = importlib.import_module("cvxpy")
    size = len(gram)
    matrix = gram / gram.diagonal().mean()
    values, vectors = np.linalg.eigh(matrix)
    root = (vectors * np.sqrt(values.clip(0))).T
    w = cp.Variable(size, nonneg=True)
    slope = C * float(np.sqrt(matrix.mean()))
    value = matrix.mean(axis=1) @ w + slope * cp.norm(root @ w)
    cp.Problem(cp.Minimize(value), [cp.sum(w) == 1]).solve(solver=cp.CLARABEL)
    weights = np.asarray(w.value, dtype=np.float64).clip(0)
    return Solution(weights, weights / weights.sum(), float("nan"))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    table = plain_table("solver", "K", "ms", "relative gap")
    for s in measure():
        gap = "-" if np.isnan(s.gap) else f"{s.gap:.1e}"
        table.add_row(s.solver, str(s.size), f"{s.milliseconds:.2f}", gap)
    Console(highlight=False).print("solvers on captured Gram matrices, one core", table)


if __name__ == "__main__":
    main()

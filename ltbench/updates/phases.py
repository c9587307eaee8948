"""Phases of a step: work on the device that a trainer may capture, with the host between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor

from ltbench.methods.base import Batch, Progress, Rows

T = TypeVar("T")


class Phases:
    """Phases of steps, run as they come; `ltbench.train.graphs` captures them in CUDA graphs.

    A phase is work on the device that sets gradients and returns tensors. In all steps with the
    same shapes its operations are the same, on the same tensors; their contents differ. What the
    host decides or reads, and the optimizer's step, lie between phases.
    """

    def run(self, name: str, work: Callable[..., T], *inputs: Tensor) -> T:
        """Do a phase and return its result.

        Args:
            name: of the phase; numbers of the host that ``work`` depends on are part of it.
            work: function of ``inputs``.
            inputs: tensors that are made anew in each step; the tensors of the batch are none.
        """
        return work(*inputs)

    def loss(self, call: Callable[[Batch, Progress], Rows], batch: Batch, at: Progress) -> Rows:
        """Return the rows of a method's loss, called within a phase."""
        return call(batch, at)

    def check(self) -> AbstractContextManager[None]:
        """Return a context for a check within a phase that reads values and is not repeated."""
        return nullcontext()

    def refuse(self, reason: str) -> None:
        """Say within a phase why steps of this kind cannot be captured.

        Args:
            reason: for the log.
        """

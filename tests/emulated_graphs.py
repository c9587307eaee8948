"""CUDA graphs on a CPU: operations recorded with their tensors, and run again without Python.

As in a real graph, what Python did at the capture is not done again: a number of that step, a
tensor that is not filled anew, a gradient that is replaced instead of rewritten give wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltbench.train.graph_checks import READS


class Tape(TorchDispatchMode):
    """Records the operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, dict[str, Any], list[Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.partition("::")[2]
        given = tree_leaves((args, kwargs))
        if name in READS or any(isinstance(x, torch.Generator) for x in given):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **kwargs)
        theirs = {_place(x) for x in given if isinstance(x, Tensor)}
        made = [x if _is_new(x, theirs) else None for x in tree_leaves(out)]
        self.operations.append((func, args, kwargs, made))
        return out

    def replay(self) -> None:
        """Run the operations again, with their results where they were."""
        with torch.no_grad():
            for func, args, kwargs, made in self.operations:
                found = tree_leaves(func(*args, **kwargs))
                for old, new in zip(made, found, strict=True):
                    if old is not None:
                        assert old.shape == new.shape, f"another shape than before: {func}"
                        old.copy_(new)


class EmulatedGraphs:
    """`Graphs` on the CPU; counts the captured operations and the replays."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.captured: list[int] = []
        self.replays = 0
        self.eager_phases = 0
        self.times_over = 0

    @contextmanager
    def eager(self) -> Iterator[None]:
        self.eager_phases += 1
        yield

    def start_over(self) -> None:
        self.times_over += 1

    def capture(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with Tape() as tape:
            result = work()
        self.captured.append(len(tape.operations))

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return result, replay


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _is_new(x: Any, theirs: set[int]) -> bool:
    """Return whether a result is neither an argument nor a view of one."""
    return isinstance(x, Tensor) and x.numel() > 0 and _place(x) not in theirs

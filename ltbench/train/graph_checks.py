"""What a captured step would get wrong: numbers and decisions of the host that change by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltbench.methods.base import Progress

READS = {  # operations whose values or shapes the host waits for
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
INDEXING = {"_index_put_impl_", "_unsafe_index", "index", "index_put", "index_put_"}
BY_STEP = ("step",)  # fields of `Progress` that differ from step to step
BY_EPOCH = ("epoch", "lr")  # and from epoch to epoch

Note = Callable[[str], None]


class Watched(Progress):
    """Progress whose reader is noted: a graph keeps the numbers of the step of its capture."""

    _note: ClassVar[Note | None] = None

    @classmethod
    def of(cls, at: Progress, note: Note) -> Watched:
        """Return a position that calls ``note`` with the field when a changing one is read."""
        made = cls(**{field.name: getattr(at, field.name) for field in fields(Progress)})
        object.__setattr__(made, "_note", note)
        return made

    def __getattribute__(self, name: str) -> Any:
        if name in BY_STEP or name in BY_EPOCH:
            note = object.__getattribute__(self, "_note")
            if note is not None:
                note(name)
        return object.__getattribute__(self, name)


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations that make the host wait, or that take numbers from it.

    Args:
        note: called with a description of the operation.
    """

    def __init__(self, note: Note) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note, self._paused = note, False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager without notes."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._paused:
            self._look(func._schema.name.partition("::")[2], args, tree_leaves((args, kwargs, out)))
        return out

    def _look(self, name: str, args: Any, seen: list[Any]) -> None:
        places = {x.device.type for x in seen if isinstance(x, Tensor)}
        if name in READS or (name in INDEXING and _masked(args[1])):
            self._note(f"the host reads the result of {name}")
        elif any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in seen):
            self._note(f"{name} draws from a generator of the host")
        elif len(places) > 1:
            self._note(f"{name} moves values between {' and '.join(sorted(places))}")


def _masked(indices: Any) -> bool:
    """Return whether a mask is among indices; its number of entries decides a shape."""
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in indices)


OWN = set(vars(nn.Module())) - {"training"}  # of every module: tensors, modules and hooks

State = dict[str, Any]


def python_state(module: nn.Module) -> State:
    """Return what a module holds beside the contents of its tensors, by dotted name.

    Tensors and other objects count as such, whatever is in them; of lists and dictionaries the
    entries do.
    """
    found: State = {}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in OWN:
                _add(found, f"{prefix}.{name}".lstrip("."), value)
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            found[f"{prefix}.{name}".lstrip(".")] = tensor
    return found


def changed(before: State, after: State) -> str:
    """Return the name of something that differs, or an empty text."""
    missing = object()
    for name in [*before, *(name for name in after if name not in before)]:
        a, b = before.get(name, missing), after.get(name, missing)
        plain = isinstance(a, bool | int | float | str) and type(a) is type(b)
        if a is not b and not (plain and a == b):
            return name.partition("[")[0]
    return ""


def _add(found: State, name: str, value: Any) -> None:
    if isinstance(value, dict):
        found[name] = len(value)
        for key, entry in value.items():
            found[f"{name}[{key!r}]"] = entry
    elif isinstance(value, list | tuple):
        found[name] = len(value)
        for i, entry in enumerate(value):
            found[f"{name}[{i}]"] = entry
    else:
        found[name] = value

"""Pickle as data: an interpreter of its opcodes that imports nothing and calls nothing foreign."""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ltbench.errors import visible

LARGEST_PICKLE = 64 * 2**20  # bytes of the structure of a checkpoint, without its tensors
MOST_OPCODES = 5_000_000  # of one pickle; a checkpoint with optimizer has about 50,000
MOST_NUMBERS = 2**26  # of a numpy array
_MARK = object()
_KEPT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Damaged(ValueError):
    """A pickle that is cut short, inconsistent or larger than allowed."""


@dataclass(eq=False)
class Foreign:
    """Inert stand-in of a class that is not read, or of an object of it.

    Args:
        name: module and name of the class.
        args: arguments of its constructor.
        state: attributes, as far as they are plain data.
        items: items of a mapping or list.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """A class or function that a reader stands in for.

    Args:
        make: returns the value for the arguments of a call.
    """

    make: Callable[..., Any]


@dataclass(eq=False)
class NumpyType:
    """A dtype of numbers; its byte order arrives after it was made."""

    kind: str
    order: str = "<"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of numpy."""
        return np.dtype(f"{self.order}{self.kind}" if self.kind[-1] != "1" else self.kind)


@dataclass(eq=False)
class NumpyArray:
    """An array of numbers; shape and bytes arrive after it was made."""

    value: np.ndarray | None = None


def plain_classes() -> dict[str, Known]:
    """Return the stand-ins for containers and numpy numbers, by module and name."""
    found: dict[str, Known] = {}
    for module in ("builtins", "__builtin__"):
        found[f"{module}.set"] = Known(lambda items=(): set(items))
        found[f"{module}.frozenset"] = Known(lambda items=(): frozenset(items))
        found[f"{module}.list"] = Known(lambda items=(): list(items))
        found[f"{module}.tuple"] = Known(lambda items=(): tuple(items))
        found[f"{module}.dict"] = Known(lambda items=(): dict(items))
        found[f"{module}.bytearray"] = Known(_bytes)
        found[f"{module}.bytes"] = Known(_bytes)
    found["collections.OrderedDict"] = Known(lambda items=(): dict(items))
    found["collections.Counter"] = Known(lambda items=(): dict(items))
    found["collections.defaultdict"] = Known(lambda factory=None, items=(): dict(items))
    found["_codecs.encode"] = Known(_bytes)
    found["torch.Size"] = Known(lambda items=(): tuple(items))
    found["numpy.dtype"] = Known(_numpy_type)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found[f"{module}.scalar"] = Known(_numpy_number)
        found[f"{module}._reconstruct"] = Known(lambda *_: NumpyArray())
    found["numpy.ndarray"] = Known(lambda *_: NumpyArray())
    return found


class Interpreter:
    """Reader of pickles as data.

    Containers, numbers, text and bytes are built; a class or function is what ``known`` says of it,
    and a ``Foreign`` otherwise. No module is imported, and no object is called but those of
    ``known``.

    Args:
        known: stand-ins by module and name.
        persistent: returns the object of a persistent id, e.g. a storage of torch.
    """

    def __init__(self, known: Mapping[str, Known], persistent: Callable[[Any], Any]) -> None:
        self.known, self.persistent = known, persistent
        self.foreign: set[str] = set()  # names that were met

    def load(self, file: BinaryIO) -> Any:
        """Return the object of the next pickle in a file, which is left at its end.

        Raises:
            Damaged: it is no sound pickle, or too long.
        """
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
                if count >= MOST_OPCODES:
                    raise Damaged(f"more than {MOST_OPCODES:,} steps")
                if opcode.name == "STOP":
                    value = stack.pop()
                    return value.value if isinstance(value, NumpyArray) else value
                self._do(opcode.name, arg, stack, memo)
        except Damaged:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            said = visible(str(error).partition("\n")[0], 100) or type(error).__name__
            raise Damaged(said) from error
        raise Damaged("it has no end")

    def _do(self, name: str, arg: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        """Carry out one opcode."""
        if name in _KEPT:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(_done(v) for v in _some(stack, size))]
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name in ("SETITEM", "APPEND"):
            size = 2 if name == "SETITEM" else 1
            values = _some(stack, size)
            del stack[-size:]
            _fill(stack[-1], name, values)
        elif name in ("SETITEMS", "APPENDS", "ADDITEMS"):
            values = _since_mark(stack)
            _fill(stack[-1], name, values)
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            values = [_done(v) for v in _since_mark(stack)]
            stack.append(_gathered(name, values))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._named(_place(arg) if name == "GLOBAL" else _pair(stack)))
        elif name in ("REDUCE", "NEWOBJ"):
            what, args = _some(stack, 2)
            stack[-2:] = [self._called(what, args)]
        elif name == "NEWOBJ_EX":
            what, args, _ = _some(stack, 3)
            stack[-3:] = [self._called(what, args)]
        elif name == "INST":
            stack.append(self._called(self._named(_place(arg)), tuple(_since_mark(stack))))
        elif name == "OBJ":
            what, *args = _since_mark(stack)
            stack.append(self._called(what, tuple(args)))
        elif name == "BUILD":
            target, state = _some(stack, 2)
            stack.pop()
            _build(target, state)
        elif name == "PERSID":
            stack.append(self.persistent(arg))
        elif name == "BINPERSID":
            stack.append(self.persistent(_done(stack.pop())))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            _since_mark(stack)
        elif name not in ("PROTO", "FRAME"):
            raise Damaged(f"`{name}` is no part of a checkpoint")

    def _named(self, name: str) -> Known | Foreign:
        """Return the stand-in for a class or function."""
        if name in self.known:
            return self.known[name]
        if len(self.foreign) < 1000:
            self.foreign.add(visible(name, 100))
        return Foreign(name)

    def _called(self, what: Any, args: Any) -> Any:
        """Return the value of a call, which for all but the known is a new stand-in."""
        if not isinstance(args, tuple):
            raise Damaged("a call without arguments")
        args = tuple(_done(v) for v in args)
        if isinstance(what, Known):
            return what.make(*args)
        if not isinstance(what, Foreign):
            raise Damaged(f"a call of a {type(what).__name__}")
        if what.name in ("copyreg._reconstructor", "copy_reg._reconstructor") and args:
            what, args = (args[0], ()) if isinstance(args[0], Foreign) else (what, args)
        return Foreign(what.name, args)


_MAKERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


def _some(stack: list[Any], size: int) -> list[Any]:
    """Return the uppermost values of the stack, which stay there."""
    found = stack[-size:]
    if len(found) < size or any(v is _MARK for v in found):
        raise Damaged("too few values")
    return found


def _since_mark(stack: list[Any]) -> list[Any]:
    """Remove the values above the last mark, and the mark, and return them."""
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is _MARK:
            values = stack[place + 1 :]
            del stack[place:]
            return values
    raise Damaged("values without a beginning")


def _pair(stack: list[Any]) -> str:
    module, name = _some(stack, 2)
    del stack[-2:]
    return f"{_text(module)}.{_text(name)}"


def _place(arg: Any) -> str:
    module, _, name = _text(arg).partition(" ")
    return f"{module}.{name}"


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise Damaged("a class without a name")
    return value


def _done(value: Any) -> Any:
    """Return an array in the place of its stand-in once its content is there."""
    return value.value if isinstance(value, NumpyArray) and value.value is not None else value


def _gathered(name: str, values: list[Any]) -> Any:
    if name == "LIST":
        return values
    if name == "DICT":
        return dict(zip(values[::2], values[1::2], strict=True))
    return tuple(values) if name == "TUPLE" else frozenset(values)


def _fill(target: Any, name: str, values: list[Any]) -> None:
    """Add items to a list, set, mapping or stand-in."""
    values = [_done(v) for v in values]
    keyed = name.startswith("SETITEM")
    if isinstance(target, Foreign):
        keys = values[::2] if keyed else range(len(target.items), len(target.items) + len(values))
        target.items.update(zip(keys, values[1::2] if keyed else values, strict=True))
    elif keyed and isinstance(target, dict):
        target.update(zip(values[::2], values[1::2], strict=True))
    elif not keyed and isinstance(target, list):
        target.extend(values)
    elif not keyed and isinstance(target, set):
        target.update(values)
    else:
        raise Damaged(f"items for a {type(target).__name__}")


def _build(target: Any, state: Any) -> None:
    """Give a stand-in its attributes, or an array its content; other objects ignore them."""
    if isinstance(target, NumpyType):
        order = state[1]
        if order not in ("<", "=", "|"):
            raise Damaged("numbers of another byte order")
    elif isinstance(target, NumpyArray):
        target.value = _array(*state[-4:])
    elif isinstance(target, Foreign):
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                target.state.update(part)


def _bytes(text: Any = b"", encoding: Any = "latin-1", *_: Any) -> bytes:
    """Return the bytes of a text; protocol 2 writes bytes as such a call."""
    if isinstance(text, str) and encoding in ("latin-1", "latin1"):
        return text.encode("latin-1")
    if isinstance(text, bytes | bytearray):
        return bytes(text)
    raise Damaged("bytes of another encoding")


def _numpy_type(kind: Any = "", *_: Any) -> Any:
    """Return a dtype of numbers, or a stand-in for any other."""
    if isinstance(kind, str) and kind in ("b1", *(f"{k}{n}" for k in "iuf" for n in (1, 2, 4, 8))):
        return NumpyType(kind)
    return Foreign(f"numpy.dtype({visible(str(kind), 40)})")


def _numpy_number(kind: Any, raw: Any = b"") -> Any:
    """Return a numpy number as one of Python."""
    if not isinstance(kind, NumpyType):
        return Foreign("numpy scalar")
    if not isinstance(raw, bytes) or len(raw) != kind.dtype.itemsize:
        raise Damaged("a number of another size")
    return np.frombuffer(raw, kind.dtype)[0].item()


def _array(shape: Any, kind: Any, fortran: Any, raw: Any) -> np.ndarray | None:
    """Return an array of numbers, or nothing for one of objects."""
    if not isinstance(kind, NumpyType):
        return None
    sound = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sound or len(shape) > 32 or not isinstance(raw, bytes):
        raise Damaged("an array without a shape")
    size = math.prod(shape)
    if size > MOST_NUMBERS or size * kind.dtype.itemsize != len(raw):
        raise Damaged(f"an array of {size:,} numbers in {len(raw):,} bytes")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")

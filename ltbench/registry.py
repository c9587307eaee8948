from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from ltbench.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of part, each imported only when it is used.

    Args:
        kind: the noun used in messages, e.g. ``"method"``.
        builtin: name to ``"module:attribute"``, so that listing names imports nothing.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._where: dict[str, str] = dict(builtin)
        self._loaded: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds a part under ``name``; a taken name is an error."""

        def add(part: T) -> T:
            if name in self._where:
                raise ValueError(f"{self.kind} `{name}` is registered twice")
            self._where[name] = (
                f"{getattr(part, '__module__', '?')}:{getattr(part, '__name__', name)}"
            )
            self._loaded[name] = part
            return part

        return add

    def get(self, name: str) -> T:
        """Import and return the part called ``name``.

        Raises:
            UserError: there is no such name.
        """
        if name not in self._where:
            raise UserError(
                f"unknown {self.kind} `{name}`{did_you_mean(name, self._where)}; "
                f"known: {', '.join(self.names())}"
            )
        if name not in self._loaded:
            module, attribute = self._where[name].split(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a shell pattern, numbers sorted as numbers."""
        return sorted(fnmatch.filter(self._where, pattern), key=natural)

    def summary(self, name: str) -> str:
        """Return the first sentence of the part's docstring, without importing its module."""
        if name in self._loaded:
            return first_sentence(getattr(self._loaded[name], "__doc__", "") or "")
        module, attribute = self._where[name].split(":")
        package, _, leaf = module.rpartition(".")
        spec = importlib.util.find_spec(
            package
        )  # imports packages only, which import nothing heavy
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / f"{leaf}.py"
            if path.is_file():
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                        return first_sentence(ast.get_docstring(node) or "")
        return ""


def natural(name: str) -> list[Any]:
    """Sort key that puts ``resnet50`` before ``resnet152``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def first_sentence(text: str) -> str:
    """Return the text up to its first full stop or blank line, on one line."""
    return re.split(r"(?<=\.)\s|\n\n", text.strip())[0].replace("\n", " ")

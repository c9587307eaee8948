from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ltbench.errors import UserError, did_you_mean

T = TypeVar("T")

HOMES = {  # where the table of each kind of part is
    "METHODS": "ltbench.methods",
    "UPDATES": "ltbench.updates",
    "SOLVERS": "ltbench.moo",
    "SAMPLERS": "ltbench.data",
    "DATASETS": "ltbench.data",
    "BACKBONES": "ltbench.models",
}


@dataclass(frozen=True)
class Part:
    """Facts of a part that are known without importing it.

    Args:
        where: its place, ``"module:attribute"``.
        title: its name in the literature; empty if that is the registered one.
        aliases: other names, of a method in published tables, of a data set on the command line.
        stage_of: for a method that is a later stage only, the family of recipes it is a stage of.
        suffix: for a data set, how the names of its recipes end.
        side: for a data set of small images, their height and width in pixels.
        rootless: whether a data set comes with a package, so that no folder has to be named.
        hub_id: for a data set, the dataset on the Hub that its images are drawn from.
    """

    where: str
    title: str = ""
    aliases: tuple[str, ...] = ()
    stage_of: str = ""
    suffix: str = ""
    side: int | None = None
    rootless: bool = False
    hub_id: str = ""


class Registry(Generic[T]):
    """Names of one kind of part, each imported only when it is used.

    Args:
        kind: the noun used in messages, e.g. ``"method"``.
        builtin: name to part, or to its ``"module:attribute"`` where there is nothing else to
            say; so listing names imports nothing.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str | Part]) -> None:
        self.kind = kind
        self._parts = {
            name: Part(part) if isinstance(part, str) else part for name, part in builtin.items()
        }
        self._loaded: dict[str, T] = {}

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Return a decorator that adds a part under ``name``; a taken name is an error.

        Args:
            name: what recipes call it.
            facts: fields of `Part`, e.g. ``title="Focal Loss"``.
        """

        def add(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"{self.kind} `{name}` is registered twice")
            where = f"{getattr(part, '__module__', '?')}:{getattr(part, '__name__', name)}"
            self._parts[name] = Part(where, **facts)
            self._loaded[name] = part
            return part

        return add

    def parts(self) -> dict[str, Part]:
        """Return the facts of all parts by name, in the order of the table."""
        return dict(self._parts)

    def facts(self, name: str) -> Part:
        """Return the facts of a part; an unknown name has none."""
        return self._parts.get(name, Part(""))

    def title(self, name: str) -> str:
        """Return the title of a part; a name without one stays."""
        return self.facts(name).title or name

    def get(self, name: str) -> T:
        """Import and return the part called ``name``.

        Raises:
            UserError: there is no such name.
        """
        if name not in self._parts:
            raise UserError(
                f"unknown {self.kind} `{name}`{did_you_mean(name, self._parts)}; "
                f"known: {', '.join(self.names())}"
            )
        if name not in self._loaded:
            module, attribute = self._parts[name].where.split(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a shell pattern, numbers sorted as numbers."""
        return sorted(fnmatch.filter(self._parts, pattern), key=natural)

    def summary(self, name: str) -> str:
        """Return the first sentence of the part's docstring, without importing its module."""
        if name in self._loaded:
            return first_sentence(getattr(self._loaded[name], "__doc__", "") or "")
        module, attribute = self._parts[name].where.split(":")
        package, _, leaf = module.rpartition(".")
        spec = importlib.util.find_spec(package)  # imports packages only: nothing heavy
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / f"{leaf}.py"
            if path.is_file():
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                        return first_sentence(ast.get_docstring(node) or "")
        return ""


def registry(name: str) -> Registry[Any]:
    """Return a registry by the name that `Tagged` fields carry, e.g. ``"METHODS"``."""
    found: Registry[Any] = getattr(importlib.import_module(HOMES[name]), name)
    return found


def natural(name: str) -> list[Any]:
    """Sort key that puts ``resnet50`` before ``resnet152``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def first_sentence(text: str) -> str:
    """Return the text up to its first full stop or blank line, on one line."""
    return re.split(r"(?<=\.)\s|\n\n", text.strip())[0].replace("\n", " ")


def docstring_section(doc: str, title: str) -> str:
    """Return a section of a docstring as one line."""
    found = re.search(rf"^{title}:(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""

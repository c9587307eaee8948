from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.errors import UserError, brief, did_you_mean, visible

T = TypeVar("T")

HOMES = {  # where the table of each kind of part is
    "METHODS": "ltbench.methods",
    "UPDATES": "ltbench.updates",
    "SOLVERS": "ltbench.moo",
    "SAMPLERS": "ltbench.data",
    "DATASETS": "ltbench.data",
    "BACKBONES": "ltbench.models",
}
BASES = {  # what a part from outside the package is derived from
    "method": "ltbench.methods.base:Method",
    "update": "ltbench.updates.base:Update",
    "solver": "ltbench.moo.base:Solver",
    "sampler": "ltbench.data.samplers:Sampler",
    "dataset": "ltbench.data.base:DatasetConfig",
}
OWN = (
    "one of your own: give plugins=FILE that registers it, or FILE.py:CLASS or MODULE:CLASS for it"
)


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
        trains: whether a method trains; one that only changes a trained model is post-hoc.
        alone: whether a post-hoc method needs no stage before it.
        rootless: whether a data set comes with a package, so that no folder has to be named.
        hub_id: for a data set, the dataset on the Hub that its images are drawn from.
        outside: for a part from outside the package, the module that registered it.
    """

    where: str
    title: str = ""
    aliases: tuple[str, ...] = ()
    stage_of: str = ""
    suffix: str = ""
    side: int | None = None
    trains: bool = True
    alone: bool = False
    rootless: bool = False
    hub_id: str = ""
    outside: str = ""


class Registry(Generic[T]):
    """Names of one kind of part, each imported only when it is used.

    Args:
        kind: the noun used in messages, e.g. ``"method"``.
        builtin: name to part, or to its ``"module:attribute"`` where there is nothing else to
            say; so listing names imports nothing.
        options: module that holds the options of these parts, each under the name of its part's
            class; so checking a recipe imports no part. Without one, and for parts that are not
            in it, the options are the part's own ``Config``, or the part itself if it has none.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str | Part], options: str = "") -> None:
        self.kind = kind
        self._options = options
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
        module = plugins.outside(sys._getframe(1).f_globals.get("__name__", ""))

        def add(part: T) -> T:
            if name in self._parts and self._parts[name].outside in ("", *sys.modules):
                where = self._parts[name].where
                raise UserError(
                    f"{self.kind} `{name}` is registered twice, by {where} before; take another "
                    "name"
                )
            self._add(name, part, module, facts)
            return part

        return add

    def _add(self, name: str, part: T, module: str, facts: Mapping[str, Any]) -> None:
        where = f"{getattr(part, '__module__', '?')}:{getattr(part, '__name__', name)}"
        facts = {"trains": getattr(part, "trains", True), "outside": module, **facts}
        self._parts[name] = Part(where, **facts)
        self._loaded[name] = part
        if module:
            plugins.note(module)

    def forget(self, modules: Container[str]) -> None:
        """Remove the parts that some modules outside the package registered."""
        for name in [n for n, part in self._parts.items() if part.outside in modules]:
            del self._parts[name], self._loaded[name]

    def resolve(self, name: str) -> str:
        """Return the name under which a part is known, after the import of its plugin if need be.

        Args:
            name: a registered name, or ``module:Class`` or ``file.py:Class`` of a part outside the
                package; see ``ltbench.config.plugins`` for what is imported when.

        Raises:
            UserError: there is no such part.
        """
        if name in self._parts:
            return name
        found = plugins.find(name)
        if found is not None:
            name, module, part = found
            if name not in self._parts:
                self._check(name, part)
                self._add(name, part, module, {})
            return name
        plugins.load_installed()
        if name not in self._parts:
            raise UserError(
                f"unknown {self.kind} `{visible(name)}`{did_you_mean(name, self._parts)}; "
                f"known: {', '.join(self.names())}"
                + (f"; {OWN}" if self.kind in (*BASES, "backbone") else "")
            )
        return name

    def plugin(self, name: str) -> str:
        """Return the mark of the plugin that a part comes from; empty for one of ltbench.

        Raises:
            UserError: there is no such name.
        """
        module = self._parts[self.resolve(name)].outside
        return plugins.mark_of(module) if module else ""

    def _check(self, name: str, part: Any) -> None:
        """Check that a part from outside is of this kind.

        Raises:
            UserError: it is something else.
        """
        if self.kind not in BASES:
            if not callable(part):
                raise UserError(
                    f"{self.kind} `{name}`: expected a function that builds it, found {brief(part)}"
                )
            return
        module, attribute = BASES[self.kind].split(":")
        base = getattr(importlib.import_module(module), attribute)
        if not isinstance(part, type) or not issubclass(part, base):
            raise UserError(
                f"{self.kind} `{name}`: expected a class derived from {module}.{attribute}, found "
                f"{brief(part)}"
            )
        options = getattr(part, "Config", part)
        if not isinstance(options, type) or not issubclass(options, Config):
            raise UserError(
                f"{self.kind} `{name}`: expected a `Config` derived from "
                f"ltbench.config.schema.Config, found {brief(options)}"
            )

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
        name = self.resolve(name)
        if name not in self._loaded:
            module, attribute = self._parts[name].where.split(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def options(self, name: str) -> type[Any]:
        """Return the class of a part's options; imports the part only if it holds them itself.

        Raises:
            UserError: there is no such name.
        """
        name = self.resolve(name)
        module, attribute = self._parts[name].where.split(":")
        if self._options and module.rpartition(".")[0] == self._options.rpartition(".")[0]:
            apart = getattr(importlib.import_module(self._options), attribute, None)
            if isinstance(apart, type):
                return apart
        part: Any = self.get(name)
        if self.facts(name).outside:
            self._check(name, part)
        own: type[Any] = getattr(part, "Config", part)
        return own

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

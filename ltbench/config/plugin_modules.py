"""Imports of plugins: a file as it was hashed, a module, and both again in child processes."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ltbench.digest import read_regular
from ltbench.errors import UserError, visible

PARENT = "LTBENCH_PLUGINS"  # environment variable: plugins of the parent process, as JSON
UNKNOWN = "unknown"  # hash of a part defined interactively, which has no file
_PACKAGE = Path(__file__).parent.parent

__path__: list[str] = []  # modules of plugin files are imported below this one, see `_Finder`


@dataclass(frozen=True)
class Plugin:
    """File or module that parts come from.

    Args:
        name: ``tail.py`` for a file that stands alone, else the module, e.g. ``lab.losses``.
        sha256: hash of the file; for a module of a package, of all Python files of the package.
        version: name and version of its distribution, if it is installed.
        content: the file's bytes, if it stands alone.
    """

    name: str
    sha256: str
    version: tuple[str, str] | None = None
    content: bytes | None = None

    @property
    def mark(self) -> str:
        """Identity of the plugin in recipes: ``name@sha256``."""
        return f"{self.name}@{self.sha256}"


FILES: dict[str, tuple[Path, Plugin]] = {}  # imported plugin files, by module
MODULES: set[str] = set()  # other modules imported as plugins
REGISTERING: set[str] = set()  # modules outside the package that registered a part


def import_file(path: Path, sha256: str = "") -> str:
    """Import a plugin file, once, and return its module.

    Raises:
        UserError: it fails, has another hash than ``sha256``, or another file has its name.
    """
    module = _read_file(path, sha256)
    try:
        with _explained(str(path.absolute())):
            importlib.import_module(module)
    except BaseException:
        FILES.pop(module, None)
        raise
    _hand_down()
    return module


def _read_file(path: Path, sha256: str) -> str:
    """Read a plugin file, once, and return its module, which is yet to be imported."""
    module = module_of_file(path.name)
    try:
        content = read_regular(path, 2**31)
    except OSError as error:
        raise UserError(f"cannot read the plugin {path}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise UserError(
            f"{path} was changed since the run: SHA-256 {found[:12]}..., recorded "
            f"{sha256[:12]}...; restore it, or give plugins=FILE"
        )
    if module in FILES and FILES[module][1].sha256 != found:
        other, known = FILES[module]
        raise UserError(
            f"two plugins are called {path.name}: {other} ({known.sha256[:12]}...) and {path} "
            f"({found[:12]}...); rename one, or use them one at a time"
        )
    name = f"{stem_of(path.name)}.py"
    FILES.setdefault(module, (path.absolute(), Plugin(name, found, content=content)))
    return module


def import_module(name: str) -> str:
    """Import a module as a plugin and return its name.

    Raises:
        UserError: there is no such module, it fails, or it is part of ltbench.
    """
    if name.partition(".")[0] == "ltbench":
        raise UserError(f"`{name}` is part of ltbench: its parts have names, see `ltbench list`")
    with _explained(name):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"there is no plugin module `{name}` here or among the installed "
                "packages; a file is given by its path and ends in .py"
            ) from error
    MODULES.add(name)
    _hand_down()
    return name


class _FileLoader(Loader):
    """Executes the bytes of a plugin file that were hashed, never a cached compilation."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def exec_module(self, module: ModuleType) -> None:
        """Execute the file in its module."""
        exec(compile(self.content, str(self.path), "exec"), module.__dict__)


class _Finder(MetaPathFinder):
    """Finds the modules of plugin files, also where another process unpickles their objects."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the specification of a plugin file's module."""
        if not name.startswith(f"{__name__}."):
            return None
        if name not in FILES:
            for _, path_there, sha256 in inherited():
                if path_there and module_of_file(path_there) == name:
                    _read_file(Path(path_there), sha256)
        if name not in FILES:
            return None
        file, plugin = FILES[name]
        assert plugin.content is not None
        loader = _FileLoader(file, plugin.content)
        spec = ModuleSpec(name, loader, origin=str(file))
        spec.has_location = True
        return spec


sys.meta_path.append(_Finder())


@contextmanager
def _explained(plugin: str) -> Iterator[None]:
    """Turn any error of a plugin on import into one line with its file and line number."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename == plugin] or [
            f for f in frames if not f.filename.startswith((str(_PACKAGE), "<frozen"))
        ]
        file, line = (own[-1].filename, own[-1].lineno) if own else (plugin, None)
        if isinstance(error, SyntaxError):
            file, line = error.filename or file, error.lineno
        elif isinstance(error, UserError) and not own:
            raise
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        said = str(error).strip().partition("\n")[0]
        if isinstance(error, ModuleNotFoundError) and plugin.endswith(".py"):
            said += "; a plugin file stands alone: name a module instead to import its neighbours"
        at = f", line {line}" if line else ""
        raise UserError(visible(f"plugin {file}{at}: {kind}{said}", None)) from error


def _hand_down() -> None:
    """Put the imported plugins into the environment, for child processes."""
    files = [(module, str(path), plugin.sha256) for module, (path, plugin) in FILES.items()]
    os.environ[PARENT] = json.dumps([*files, *((name, "", "") for name in sorted(MODULES))])


def inherited() -> list[tuple[str, str, str]]:
    """Return the plugins of the parent process: module, file or nothing, hash of the file."""
    try:
        found = json.loads(os.environ.get(PARENT, "[]"))
        return [(str(name), str(file), str(sha256)) for name, file, sha256 in found]
    except (ValueError, TypeError):
        return []


def _version(module: str, path: Path) -> tuple[str, str] | None:
    """Return name and version of the distribution that a module was installed with."""
    places = (sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    if not any(path.is_relative_to(place) for place in places):
        return None
    names = metadata.packages_distributions().get(module.partition(".")[0], [])
    return (names[0], metadata.version(names[0])) if names else None


def module_of_file(name: str) -> str:
    """Return the module that a plugin file is imported as."""
    return f"{__name__}.{stem_of(name)}_py"


def stem_of(name: str) -> str:
    """Return the name of a plugin file without folder and ending, as an identifier."""
    return re.sub(r"\W", "_", Path(name).stem)


@functools.cache
def describe(module: str) -> Plugin:
    """Return the plugin that an imported module is or belongs to, as it is now.

    Args:
        module: name in ``sys.modules``.
    """
    if module in FILES:
        return FILES[module][1]
    found = sys.modules.get(module)
    spec, file = getattr(found, "__spec__", None), getattr(found, "__file__", None)
    name = module if spec is None else spec.name  # `__main__` of python -m
    if file is None or not Path(file).is_file():
        return Plugin(module, UNKNOWN)
    path = Path(file)
    version = _version(name, path)
    top = path.parent
    if not (top / "__init__.py").is_file():
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if version:
            return Plugin(name, sha256, version)
        return Plugin(f"{stem_of(path.name)}.py", sha256, content=content)
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    lines = [
        f"{hashlib.sha256(source.read_bytes()).hexdigest()}  {source.relative_to(top).as_posix()}\n"
        for source in sorted(top.rglob("*.py"))
    ]
    return Plugin(name, hashlib.sha256("".join(lines).encode()).hexdigest(), version)


def known() -> list[Plugin]:
    """Return the plugins of this process."""
    loaded = (module for module in REGISTERING if module in sys.modules)
    return [describe(module) for module in dict.fromkeys((*FILES, *MODULES, *loaded))]

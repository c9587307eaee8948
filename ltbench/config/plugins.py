"""Plugins: files and modules outside the package that define methods, data sets and other parts.

A plugin is imported for one of four reasons only: the user named it (``plugins=`` or
``module:Class``), it is installed under the entry-point group ``ltbench.plugins``, a parent process
had imported it, or it lies in the user's own run folder with the SHA-256 that the run recorded.
Nothing that a model, a record or a published folder says is ever imported.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from ltbench.config.paths import expanded
from ltbench.config.plugin_modules import (
    FILES,
    MODULES,
    REGISTERING,
    UNKNOWN,
    Plugin,
    describe,
    import_file,
    import_module,
    inherited,
    known,
    module_of_file,
    stem_of,
)
from ltbench.config.values import Word
from ltbench.errors import UserError, brief, visible

GROUP = "ltbench.plugins"  # of entry points
FOLDER = "plugins"  # of a run: copies of its plugin files
MARK = re.compile(rf"([\w.-]+)@([0-9a-f]{{64}}|{UNKNOWN})")
_PLACE = re.compile(r"([^:\0]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_named: set[str] = set()  # modules that the user named
_installed: list[bool] = []  # not empty: installed plugins were imported
_folders: ContextVar[tuple[Path, ...] | None] = ContextVar("folders", default=None)


# Import ---------------------------------------------------------------------------------------


def load_plugins(
    plugins: str | Path | Iterable[str | Path], folder: Path | None = None
) -> list[str]:
    """Import plugins, so that the parts that they register are known by name.

    Args:
        plugins: one or several: paths of files that end in ``.py``, or modules, which may also
            lie in the current folder.
        folder: another place where relative paths and modules are looked up.

    Returns:
        The same plugins, files as absolute paths.

    Raises:
        UserError: a plugin does not exist, or fails; names its file and line.
    """
    several = [plugins] if isinstance(plugins, str | Path) else list(plugins)
    with naming(folder):
        return [_load(str(plugin)) for plugin in several]


@contextmanager
def naming(folder: Path | None = None) -> Iterator[None]:
    """Context in which parts named ``module:Class`` are imported: the user's words and recipes.

    Args:
        folder: another place for relative paths and modules, e.g. the folder of a recipe.
    """
    places = [Path.cwd(), *([folder.absolute()] if folder else [])]
    token = _folders.set(tuple(dict.fromkeys(places)))
    try:
        yield
    finally:
        _folders.reset(token)


@contextmanager
def of_recipe(name: str, tree: dict[str, Any]) -> Iterator[None]:
    """Import the plugins of a recipe, and allow parts named ``module:Class`` inside.

    A recipe beside a published model names nothing that is imported; the command line still may.

    Args:
        name: of the recipe, or the path of its file, whose folder relative paths start from.
        tree: the recipe; ``plugins`` is set to their names, with absolute paths.

    Raises:
        UserError: a plugin does not exist or fails, or ``plugins`` is no list of names.
    """
    folder = Path(name).absolute().parent if name.endswith((".yaml", ".yml")) else None
    given, words = tree.get("plugins"), isinstance(tree.get("plugins"), Word)
    if folder is not None and (folder / "config.json").exists():
        tree["plugins"] = load_plugins(_listed(given)) if words else []
        yield
        return
    if given is not None:
        tree["plugins"] = load_plugins(_listed(given), None if words else folder)
    with naming(folder):
        yield


def load_installed() -> None:
    """Import the plugins of installed packages and of the parent process; warn if one fails."""
    if _installed:
        return
    _installed.append(True)
    for name, file, sha256 in inherited():
        with _noted(f"plugin {file or name}"):
            import_file(Path(file), sha256) if file else import_module(name)
    for entry in metadata.entry_points(group=GROUP):
        with _noted(f"installed plugin `{entry.name}`"):
            import_module(entry.module)


def load_run(folder: Path, recipe: Any) -> None:
    """Import the plugin files that a run keeps, if their hashes are those of its recipe.

    Args:
        folder: of a run of the user's own; published folders keep no plugins.
        recipe: as plain data; names plugins by name and hash.

    Raises:
        UserError: a file was changed since the run.
    """
    if (folder / "config.json").exists() or not (folder / "recipe.json").is_file():
        return
    for name, sha256 in map(_parsed, marks(recipe)):
        path = folder / FOLDER / name
        here = module_of_file(name) in FILES or not name.endswith(".py")
        if not here and path.is_file() and not path.is_symlink():
            import_file(path, sha256)


def find(place: str) -> tuple[str, str, Any] | None:
    """Return the object that ``module:Class`` or ``file.py:Class`` stands for.

    Returns:
        Its name without a folder, its module, and itself; ``None`` if ``place`` has another form.

    Raises:
        UserError: there is no such plugin or attribute, or the user has not named it.
    """
    matched = _PLACE.fullmatch(place)
    if not matched:
        return None
    where, attribute = matched.groups()
    file = where.endswith(".py")
    stem = stem_of(where) if file else where
    module = module_of_file(where if file else f"{where}.py")
    if _folders.get() is not None and (file or module not in FILES):
        _load(where)
    else:
        load_installed()
    if module not in FILES:
        module = where
    if module not in FILES and module not in MODULES:
        raise UserError(f"`{visible(place)}` is not imported unless you name it: {_advice(where)}")
    try:
        return f"{stem}:{attribute}", module, getattr(sys.modules[module], attribute)
    except AttributeError:
        raise UserError(
            f"plugin {where} has no `{attribute}`; give a class or function that it defines"
        ) from None


def is_place(name: str) -> bool:
    """Return whether a name has the form ``module:Class`` or ``file.py:Class``."""
    return _PLACE.fullmatch(name) is not None


def note(module: str) -> None:
    """Remember that a module outside the package registered a part."""
    REGISTERING.add(module)


def outside(module: str) -> str:
    """Return a module's name if it lies outside this package, else an empty text."""
    inside = module.partition(".")[0] == "ltbench" and module not in FILES
    return "" if inside else module


# Identity -------------------------------------------------------------------------------------


def mark_of(module: str) -> str:
    """Return the name and hash of the plugin that a module is, as recipes hold them."""
    return describe(module).mark


def check(stated: str, found: str, what: str) -> str:
    """Return the mark of the plugin that a part comes from, compared with the one stated.

    Args:
        stated: mark in the recipe of a model or record; empty if it says nothing.
        found: mark of the plugin here; empty for a part of this package.
        what: the part, for messages.

    Raises:
        UserError: they differ, and the user has not named the plugin; if they have, it warns.
    """
    if not stated or stated == found:
        return found
    name, sha256 = _parsed(stated)
    if not found:
        raise UserError(f"{what} is one of ltbench here, and of plugin {name} in the recipe")
    own, here = _parsed(found)
    if here == sha256 != UNKNOWN:
        return stated  # under another name
    differ = f"{what}: plugin {own} has SHA-256 {here[:12]}..., the recipe says {sha256[:12]}..."
    if not any(describe(module).name == own for module in _named):
        raise UserError(f"{differ}; {_advice(name)} to use it all the same")
    warnings.warn(f"{differ}; the plugin is used as it is now", stacklevel=2)
    return found


def needed(what: str, stated: str) -> str:
    """Return the message that a part comes from a plugin that is not here.

    Args:
        what: the part.
        stated: mark of the plugin.
    """
    name, sha256 = _parsed(stated)
    return (
        f"{what} comes from plugin {name} (SHA-256 {sha256}), whose code is not loaded from a "
        f"model or record; {_advice(name)}"
    )


def marks(recipe: Any) -> list[str]:
    """Return the marks of all plugins that a recipe names, as plain data, once each."""
    found: dict[str, None] = {}
    level = [recipe]
    for node in level:  # grows while it is read
        if isinstance(node, str | int | float | None):
            continue
        if isinstance(node, Mapping):
            mark = node.get("plugin")
            if isinstance(mark, str) and "name" in node and MARK.fullmatch(mark):
                found[mark] = None
            level += node.values()
        elif isinstance(node, list | tuple):
            level += node
    return list(found)


def missing(recipe: Any) -> str:
    """Return a message on the first plugin of a recipe that is missing here, or an empty text."""
    wanted = marks(recipe)
    if wanted:
        load_installed()
    here = {plugin.sha256 for plugin in known()}
    away = [mark for mark in wanted if _parsed(mark)[1] not in here]
    return needed("a part of the recipe", away[0]) if away else ""


def copies(recipe: Any) -> dict[str, bytes]:
    """Return the content of a recipe's plugin files, by name, for a run's ``plugins`` folder."""
    return {p.name: p.content for p in _used(recipe) if p.content is not None}


def versions(recipe: Any) -> dict[str, str]:
    """Return the versions of the installed distributions that a recipe's plugins belong to."""
    return dict(plugin.version for plugin in _used(recipe) if plugin.version)


def _used(recipe: Any) -> list[Plugin]:
    here = {plugin.sha256: plugin for plugin in known()}
    return [here[sha256] for _, sha256 in map(_parsed, marks(recipe)) if sha256 in here]


def title(mark: str) -> str:
    """Return a plugin's mark as tables print it: name and the beginning of the hash."""
    name, sha256 = _parsed(mark)
    return f"{name} {sha256[:12]}"


def _listed(given: Any) -> list[str]:
    """Return the names in `plugins`.

    Raises:
        UserError: it is no text and no list of texts.
    """
    found = given.content() if isinstance(given, Word) else given
    found = [part.strip() for part in found.split(",")] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not all(isinstance(v, str) and v for v in found):
        raise UserError(f"`plugins`: expected files or modules, found {brief(given)}")
    return list(found)


def _load(plugin: str) -> str:
    """Import one plugin that the user named, and return its name, a file's as absolute path."""
    places: Sequence[Path] = _folders.get() or ()
    if plugin.endswith(".py"):
        path = expanded(plugin)
        candidates = [place / path for place in places] or [path]
        files = [c for c in candidates if c.is_file()]
        if not files:
            advice = f" in {_said(places)}; give its whole path"
            advice = "; check its path" if path.is_absolute() else advice
            raise UserError(f"there is no plugin file {visible(plugin)}{advice}")
        if len(files) > 1 and len({f.read_bytes() for f in files}) > 1:
            raise UserError(f"two plugin files differ, {_said(files)}; give the whole path")
        _named.add(import_file(files[0]))
        return str(files[0].absolute())
    if not _MODULE.fullmatch(plugin):
        raise UserError(
            f"`plugins`: expected a file that ends in .py or the name of a module, found "
            f"`{visible(plugin)}`"
        )
    sys.path += [str(place) for place in places if str(place) not in sys.path]
    _named.add(import_module(plugin))
    return plugin


@contextmanager
def _noted(what: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        warnings.warn(f"{what} was not imported: {error}", stacklevel=2)


def _parsed(mark: str) -> tuple[str, str]:
    name, _, sha256 = mark.rpartition("@")
    return name, sha256


def _advice(plugin: str) -> str:
    return f"give plugins={'FILE, the path of that file' if plugin.endswith('.py') else plugin}"


def _said(places: Iterable[Path]) -> str:
    return " and ".join(map(str, places)) or str(Path.cwd())

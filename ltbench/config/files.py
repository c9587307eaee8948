"""From YAML files and `key=value` words to one checked recipe."""

from __future__ import annotations

import copy
import fnmatch
import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ltbench.config.recipe import Recipe
from ltbench.config.registry import natural
from ltbench.config.resources import recipes_dir
from ltbench.config.schema import Config
from ltbench.config.validation import Origins, Tree, build_data, build_recipe, origin_of
from ltbench.config.words import Loader, first_line, parse_word
from ltbench.errors import UserError, did_you_mean

COMMAND_LINE, ARGUMENT = "command line", "argument"  # where values given with a call come from


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names of the recipes that match a shell pattern."""
    return sorted(fnmatch.filter(_files(recipes_dir()), pattern), key=natural)


def family(name: str) -> str:
    """Return the folder of a recipe below `recipes/`; empty for one on top, such as `quickstart`.

    Raises:
        UserError: there is no such recipe.
    """
    folder = _file(name).parent
    return "" if folder == recipes_dir() else folder.name


def recipe_summary(name: str) -> str:
    """Return a recipe's description: its `description:` line, read without parsing the file."""
    for line in _file(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("description:"):
            return line.removeprefix("description:").strip().strip("\"'")
    return ""


def get_recipe(name: str, /, *words: str, **overrides: Any) -> Recipe:
    """Return a checked recipe.

    Args:
        name: a registered recipe, with an optional `_if<ratio>` suffix, or the path of a YAML file.
        words: overrides as on the command line, e.g. ``"stages.0.optim.lr=0.05"``.
        overrides: top-level overrides, e.g. ``seed=1`` or ``data={"name": "folder"}``; a double
            underscore stands for a dot (``data__root="images"``).

    Raises:
        UserError: every mistake, one line each.
    """
    tree, origins = read_tree(name)
    for word in words:
        key, value = parse_word(word)
        assign(tree, origins, key, value, COMMAND_LINE)
    for key, value in overrides.items():
        assign(tree, origins, key.replace("__", "."), value, ARGUMENT)
    return _built(tree, origins)


def data_options(name: str, words: Sequence[str]) -> Config:
    """Return the checked options of a recipe's data set alone; no method is imported for it.

    Raises:
        UserError: every mistake in them, one line each.
    """
    tree, origins = read_tree(name)
    for word in words:
        key, value = parse_word(word)
        assign(tree, origins, key, value, COMMAND_LINE)
    return build_data(tree, origins)


def describe(name: str, words: Sequence[str]) -> tuple[Recipe, list[tuple[str, Any, str]]]:
    """Return a recipe and its leaves as (path, value, where it came from)."""
    tree, origins = read_tree(name)
    for word in words:
        key, value = parse_word(word)
        assign(tree, origins, key, value, COMMAND_LINE)
    recipe = _built(tree, origins)
    rows = [(path, value, origin_of(path, origins)) for path, value in leaves(recipe.tree())]
    return recipe, rows


def _built(tree: Tree, origins: Origins) -> Recipe:
    """Check a tree, shorten its schedule if it says `epochs`, warn of a stage that learns nothing.

    Raises:
        UserError: every mistake, one line each.
    """
    epochs = tree.pop("epochs", None)
    recipe = build_recipe(tree, origins)
    if epochs is not None:
        from ltbench.config.budget import with_epochs

        recipe = with_epochs(recipe, epochs, _said(origins))
    for i, stage in enumerate(recipe.stages):
        if stage.epochs is not None and stage.schedule.shortest(stage.epochs) > stage.epochs:
            warnings.warn(
                f"`stages.{i}` learns nothing: with this schedule the learning rate is 0 in every "
                f"one of its epochs ({stage.epochs}); give it at least "
                f"{stage.schedule.shortest(stage.epochs)}, or `stages.{i}.schedule.shift=0`",
                stacklevel=3,
            )
    return recipe


def _said(origins: Origins) -> set[str]:
    """Return the paths of values that were given with the call, and of what holds them."""
    paths = [path for path, origin in origins.items() if origin in (COMMAND_LINE, ARGUMENT)]
    return {
        ".".join(parts[:n])
        for parts in (path.split(".") for path in paths)
        for n in range(1, len(parts) + 1)
    }


def read_tree(name: str) -> tuple[Tree, Origins]:
    """Read a recipe file, its one-level parent and the variants its suffix names.

    A ratio's values are set first wherever it stands in the name, so that the others win. A note
    of an extension or a variant is added to the one before.
    """
    path, suffix = _find(name)
    tree, origins = _read_file(path), Origins()
    variants: dict[str, Any] = {}
    parent = tree.pop("extends", None)
    override = tree.pop("override", {})
    own = tree.pop("variants", {})
    if parent is None:
        _mark(origins, tree, "", path.name)
    else:
        parent_path, _ = _find(str(parent))
        child, tree = tree, _read_file(parent_path)
        if "extends" in tree:
            raise UserError(
                f"{path.name}: `extends: {parent}` is itself an extension; one level only"
            )
        _mark(origins, tree, "", parent_path.name)
        variants = tree.pop("variants", {})
        for key, value in tree.pop("override", {}).items():
            assign(tree, origins, key, value, parent_path.name)
        for key, value in child.items():
            assign(tree, origins, key, _with_note(tree, key, value), path.name)
    for key, value in override.items():
        assign(tree, origins, key, value, path.name)
    chain = _variants(path.stem, suffix, {**variants, **own})
    for variant in sorted(chain, key=lambda v: not re.fullmatch(r"if\d+", v)):  # ratios first
        chosen = {**variants.get(variant, {}), **own.get(variant, {})}
        for key, value in chosen.items():
            value = _with_note(tree, key, value)
            assign(tree, origins, key, value, f"{path.name} ({variant})")
    if suffix or recipes_dir() in path.parents or "name" not in tree:  # else it is a published one
        tree["name"] = f"{path.stem}_{suffix}" if suffix else path.stem
    return tree, origins


def assign(tree: Tree, origins: Origins, key: str, value: Any, origin: str) -> None:
    """Set a dotted key, list positions allowed, in a tree of plain data.

    A name in place of a `{name: ...}` mapping picks another part and drops the old one's options.

    Raises:
        UserError: the key goes through a value that has no such position.
    """
    *steps, last = key.split(".")
    node: Any = tree
    for i, step in enumerate(steps):
        here = ".".join(steps[:i]) or "the recipe"
        if isinstance(node, list):
            node = node[_position(node, step, key, here)]
        elif isinstance(node, dict):
            node = node.setdefault(step, {})
            if isinstance(node, str):  # `update: plot` written short: open it up
                node = {"name": node}
                _put(tree, steps[: i + 1], node)
            elif node is None:
                node = {}
                _put(tree, steps[: i + 1], node)
        else:
            raise UserError(f"`{key}`: `{here}` is {node!r} and has no field `{step}`")
    if isinstance(node, list):
        node[_position(node, last, key, ".".join(steps))] = value
    elif isinstance(node, dict):
        old = node.get(last)
        if isinstance(value, str) and isinstance(old, dict) and old.get("name") == value:
            return
        node[last] = value
    else:
        raise UserError(f"`{key}`: `{'.'.join(steps)}` is {node!r} and has no field `{last}`")
    for known in [k for k in origins if k == key or k.startswith(key + ".")]:
        del origins[known]
    _mark(origins, value, key, origin)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of every leaf of plain data."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(v, dict) for v in value)
        )
        if nested and value:
            yield from leaves(value, here)
        else:
            yield here, value


def _find(name: str) -> tuple[Path, str]:
    """Return the file of a recipe and what follows its name: the names of variants."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no recipe file `{name}`")
        return path, ""
    files = _files(recipes_dir())
    base, suffix = name, ""
    while base:
        if base in files:
            if not suffix or suffix.startswith("if") or "variants" in _both(files[base]):
                return files[base], suffix
            break
        base, _, last = base.rpartition("_")
        suffix = f"{last}_{suffix}" if suffix else last
    raise _unknown(name)


@functools.cache
def _files(folder: Path) -> dict[str, Path]:
    """Return the file of every recipe by name, whatever family's folder it is in.

    Raises:
        UserError: two files have the same name.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        if path.parent.name == "grids":
            continue
        other = files.setdefault(path.stem, path)
        if other != path:
            here, there = path.relative_to(folder), other.relative_to(folder)
            raise UserError(f"two recipes are called `{path.stem}`: {there} and {here}; rename one")
    return files


def _file(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        UserError: there is no such recipe.
    """
    try:
        return _files(recipes_dir())[name]
    except KeyError:
        raise _unknown(name) from None


def _unknown(name: str) -> UserError:
    return UserError(
        f"unknown recipe `{name}`{did_you_mean(name, list_recipes())}; "
        "`ltbench list recipes` shows all, a path ending in .yaml is read as a file"
    )


def list_variants(name: str) -> list[str]:
    """Return the variants of a recipe, its parent's included; they may be joined by `_`."""
    tree = _both(_file(name))
    return sorted(tree.get("variants", {}), key=natural)


def _both(path: Path) -> Tree:
    """Return a file's tree, with its parent's variants among its own."""
    tree = _read_file(path)
    parent = _files(recipes_dir()).get(str(tree.get("extends")))
    variants = dict(_read_file(parent).get("variants", {})) if parent else {}
    variants |= tree.get("variants", {})
    return {**tree, "variants": variants} if variants else tree


def _variants(recipe: str, suffix: str, known: Tree) -> list[str]:
    """Cut a suffix into the names of variants, the longest first.

    Raises:
        UserError: a part of it is no variant of the recipe.
    """
    found = []
    rest = suffix
    while rest:
        fitting = [v for v in known if f"{rest}_".startswith(f"{v}_")]
        if not fitting:
            names = ", ".join(f"`{recipe}_{v}`" for v in known) or "none"
            raise UserError(f"recipe `{recipe}` has no variant `{rest}`; known: {names}")
        found.append(max(fitting, key=len))
        rest = rest[len(found[-1]) + 1 :]
    return found


def _read_file(path: Path) -> Tree:
    """Return the tree of a recipe file, for the caller to change; ours are parsed once."""
    ours = recipes_dir() in path.parents
    return copy.deepcopy(_parsed_once(path)) if ours else _parse(path)


@functools.cache
def _parsed_once(path: Path) -> Tree:
    return _parse(path)


def _parse(path: Path) -> Tree:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} is not readable YAML: {first_line(error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path.name} holds no recipe: expected `key: value` lines")
    return tree


def _with_note(tree: Tree, key: str, value: Any) -> Any:
    """Return a value of an extension or a variant; a note follows the one that is there."""
    before = tree.get("note")
    return f"{before} {value}" if key == "note" and before and value else value


def _position(node: list[Any], step: str, key: str, where: str) -> int:
    if not step.isdigit() or int(step) >= len(node):
        raise UserError(
            f"`{key}`: `{where}` is a list of {len(node)}; expected a position "
            f"0..{len(node) - 1}, found `{step}`"
        )
    return int(step)


def _put(tree: Tree, steps: list[str], value: Any) -> None:
    node: Any = tree
    for step in steps[:-1]:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[int(steps[-1]) if isinstance(node, list) else steps[-1]] = value


def _mark(origins: Origins, value: Any, path: str, origin: str) -> None:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _mark(origins, item, f"{path}.{key}" if path else str(key), origin)
    else:
        origins[path] = origin

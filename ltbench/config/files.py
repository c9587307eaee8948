"""From YAML files and `key=value` words to one checked recipe."""

from __future__ import annotations

import copy
import fnmatch
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltbench.config import plugins
from ltbench.config.budget import with_epochs
from ltbench.config.recipe import Recipe
from ltbench.config.registry import natural
from ltbench.config.resources import recipes_dir
from ltbench.config.schema import NAME_LENGTH
from ltbench.config.tree import ARGUMENT, COMMAND_LINE, assign_all, leaves, mark
from ltbench.config.validation import Origins, Tree, build_recipe, origin_of
from ltbench.config.values import Word
from ltbench.config.words import parse_words
from ltbench.errors import UserError, brief, did_you_mean, visible

LONGEST = 255  # characters of a recipe's name with its variants
RATIO = re.compile(r"if[0-9]+")  # variants that are imbalance ratios


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names of the recipes that match a shell pattern.

    A pattern that matches none of them, such as ``*_small``, is compared with names with a variant.
    """
    files = _files(recipes_dir())
    names = fnmatch.filter(files, pattern)
    if not names:
        variants = (f"{name}_{variant}" for name in files for variant in list_variants(name))
        names = fnmatch.filter(variants, pattern)
    return sorted(names, key=natural)


def family(name: str) -> str:
    """Return the folder of a recipe below `recipes/`; empty for one on top, such as `quickstart`.

    Raises:
        UserError: there is no such recipe.
    """
    folder = _file(name).parent
    return "" if folder == recipes_dir() else folder.name


def recipe_summary(name: str) -> str:
    """Return a recipe's description: its `description:` line, read without parsing the file."""
    path, variants = _find(name)
    more = f", variant {variants}" if variants else ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("description:"):
            return line.removeprefix("description:").strip().strip("\"'") + more
    return ""


def get_recipe(name: str | Path, /, *words: str, **overrides: Any) -> Recipe:
    """Return a checked recipe.

    Args:
        name: a registered recipe, with an optional `_if<ratio>` suffix, or the path of a YAML file.
        words: overrides as on the command line, e.g. ``"stages.0.optim.lr=0.05"``.
        overrides: top-level overrides, e.g. ``seed=1`` or ``data={"name": "folder"}``; a double
            underscore stands for a dot (``data__root="images"``).

    Raises:
        UserError: every mistake, one line each.
    """
    return resolve(str(name), [words, {k.replace("__", "."): v for k, v in overrides.items()}])


def resolve(name: str, given: Sequence[Sequence[str] | Mapping[str, Any]]) -> Recipe:
    """Return a checked recipe.

    Args:
        name: as for ``get_recipe``.
        given: words, or values by dotted key; what comes later replaces what came before.

    Raises:
        UserError: every mistake, one line each.
    """
    return _built(name, *_given(name, given))


def describe(name: str, words: Sequence[str]) -> tuple[Recipe, list[tuple[str, Any, str]]]:
    """Return a recipe and its leaves as (path, value, where it came from)."""
    tree, origins = _given(name, [words])
    recipe = _built(name, tree, origins)
    rows = [(path, value, origin_of(path, origins)) for path, value in leaves(recipe.tree())]
    return recipe, rows


def _given(name: str, given: Sequence[Sequence[str] | Mapping[str, Any]]) -> tuple[Tree, Origins]:
    """Return a recipe's tree with values put over it."""
    values = [layer if isinstance(layer, Mapping) else parse_words(layer) for layer in given]
    tree, origins = read_tree(name)
    for layer in values:
        assign_all(tree, origins, layer)
    return tree, origins


def _built(name: str, tree: Tree, origins: Origins) -> Recipe:
    """Return the recipe of a tree, its plugins imported and its schedule shortened to `epochs`.

    Warns of a stage whose learning rate is always 0.

    Raises:
        UserError: every mistake, one line each.
    """
    epochs = tree.pop("epochs", None)
    if isinstance(epochs, Word):
        epochs = epochs.content()
    with plugins.of_recipe(name, tree):
        recipe = build_recipe(tree, origins)
    if epochs is not None:
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
    override = _mapping(path, tree, "override")
    own = _mapping(path, tree, "variants")
    if parent is None:
        mark(origins, tree, "", path.name)
    else:
        parent_path, _ = _find(str(parent))
        child, tree = tree, _read_file(parent_path)
        if "extends" in tree:
            raise UserError(
                f"{path.name}: `extends: {parent}` is itself an extension; one level only"
            )
        mark(origins, tree, "", parent_path.name)
        variants = _mapping(parent_path, tree, "variants")
        assign_all(tree, origins, _mapping(parent_path, tree, "override"), parent_path.name)
        assign_all(tree, origins, _with_note(tree, child), path.name)
    assign_all(tree, origins, override, path.name)
    chain = _variants(path.stem, suffix, {**variants, **own})
    for variant in sorted(chain, key=lambda v: not RATIO.fullmatch(v)):  # ratios first
        own_values, origin = own.get(variant, {}), f"{path.name} ({variant})"
        values = {k: v for k, v in variants.get(variant, {}).items() if k not in own_values}
        for layer in (values, own_values):
            assign_all(tree, origins, _with_note(tree, layer), origin)
    if suffix or recipes_dir() in path.parents or "name" not in tree:  # else it is a published one
        tree["name"] = f"{path.stem}_{suffix}" if suffix else _as_name(path.stem)
    return tree, origins


def _find(name: str) -> tuple[Path, str]:
    """Return the file of a recipe and what follows its name: the names of variants."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        try:
            found = path.is_file()
        except OSError:  # too long a name, a folder without permission
            found = False
        if not found:
            raise UserError(f"no recipe file `{visible(name)}`")
        return path, ""
    if len(name) > LONGEST:
        raise _unknown(name)
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
        f"unknown recipe `{visible(name)}`{did_you_mean(name, list_recipes())}; "
        "`ltbench list recipes` shows all, a path ending in .yaml is read as a file"
    )


def list_variants(name: str) -> list[str]:
    """Return the variants of a recipe, its parent's included; they may be joined by `_`."""
    return sorted(_both(_file(name)).get("variants", {}), key=natural)


def _both(path: Path) -> Tree:
    """Return a file's tree, with its parent's variants among its own."""
    tree = _read_file(path)
    parent = _files(recipes_dir()).get(str(tree.get("extends")))
    variants = _mapping(parent, _read_file(parent), "variants") if parent else {}
    variants |= _mapping(path, tree, "variants")
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
            close = did_you_mean(f"{recipe}_{suffix}", list_recipes())
            raise UserError(
                f"recipe `{recipe}` has no variant `{visible(rest)}`{close}; known: {names}"
            )
        found.append(max(fitting, key=len))
        rest = rest[len(found[-1]) + 1 :]
    ratios = [variant for variant in found if RATIO.fullmatch(variant)]
    if len(ratios) > 1 or len(set(found)) < len(found):
        raise UserError(f"expected a variant of `{recipe}` once, and one ratio, found `{suffix}`")
    return found


def _read_file(path: Path) -> Tree:
    """Return the tree of a recipe file, for the caller to change; ours are parsed once."""
    ours = recipes_dir() in path.parents
    return copy.deepcopy(_parsed_once(path)) if ours else _parse(path)


@functools.cache
def _parsed_once(path: Path) -> Tree:
    return _parse(path)


def _parse(path: Path) -> Tree:
    from ltbench.config.yaml_text import read_yaml_file

    tree = read_yaml_file(path)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path.name} holds no recipe: expected `key: value` lines, found {brief(tree)}"
        )
    return tree


def _mapping(path: Path, tree: Tree, key: str) -> dict[str, Any]:
    """Take `override` or `variants` out of a file's tree.

    Raises:
        UserError: it is no mapping from names, for `variants` to mappings.
    """
    found = tree.pop(key, None) or {}
    inner = found.values() if key == "variants" and isinstance(found, dict) else ()
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        raise UserError(f"{path.name}: `{key}`: expected `key: value` lines, found {brief(found)}")
    wrong = [value for value in inner if not isinstance(value, dict)]
    if wrong:
        raise UserError(
            f"{path.name}: `{key}`: expected `key: value` lines for each, found {brief(wrong[0])}"
        )
    return found


def _as_name(stem: str) -> str:
    """Return the name of a recipe whose file is called `stem`, fit to name its run's folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).lstrip(".-")[:NAME_LENGTH] or "recipe"


def _with_note(tree: Tree, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an extension or a variant; a note follows the one that is there."""
    before, note = tree.get("note"), values.get("note")
    both = before and note
    return {**values, "note": f"{before} {note}"} if both else dict(values)

"""From YAML files and `key=value` words to one checked recipe."""

from __future__ import annotations

import copy
import fnmatch
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ltbench import registries
from ltbench.errors import UserError, did_you_mean
from ltbench.recipe import Choice, Recipe
from ltbench.registry import natural
from ltbench.resources import recipes_dir
from ltbench.schema import Config, Tagged

Tree = dict[str, Any]
Origins = dict[str, str]  # dotted path of a value -> where it came from


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key `{key}` is given twice")
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names of the recipes that match a shell pattern."""
    names = [path.stem for path in recipes_dir().glob("*.yaml")]
    return sorted(fnmatch.filter(names, pattern), key=natural)


def recipe_summary(name: str) -> str:
    """Return a recipe's description: its `description:` line, read without parsing the file."""
    for line in (recipes_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
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
        assign(tree, origins, key, value, "command line")
    for key, value in overrides.items():
        assign(tree, origins, key.replace("__", "."), value, "argument")
    return build_recipe(tree, origins)


def describe(name: str, words: Sequence[str]) -> tuple[Recipe, list[tuple[str, Any, str]]]:
    """Return a recipe and its leaves as (path, value, where it came from)."""
    tree, origins = read_tree(name)
    for word in words:
        key, value = parse_word(word)
        assign(tree, origins, key, value, "command line")
    recipe = build_recipe(tree, origins)
    rows = [(path, value, _origin(path, origins)) for path, value in leaves(recipe.tree())]
    return recipe, rows


def parse_word(word: str) -> tuple[str, Any]:
    """Split a `key=value` word; the value is read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"expected `key=value`, found `{word}`")
    try:
        return key, yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(
            f"`{key}`: cannot read the value `{text}` ({_first_line(error)})"
        ) from error


def read_tree(name: str) -> tuple[Tree, Origins]:
    """Read a recipe file, its one-level parent and the variant its suffix names."""
    path, variant = _find(name)
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
            assign(tree, origins, key, value, path.name)
    for key, value in override.items():
        assign(tree, origins, key, value, path.name)
    if variant:
        chosen = {**variants.get(variant, {}), **own.get(variant, {})}
        if variant not in {**variants, **own}:
            known = ", ".join(f"`{path.stem}_{v}`" for v in {**variants, **own}) or "none"
            raise UserError(f"recipe `{path.stem}` has no variant `{variant}`; known: {known}")
        for key, value in chosen.items():
            assign(tree, origins, key, value, f"{path.name} ({variant})")
    tree["name"] = f"{path.stem}_{variant}" if variant else path.stem
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


def build_recipe(tree: Tree, origins: Origins | None = None) -> Recipe:
    """Check a tree of plain data and return the recipe.

    Raises:
        UserError: every mistake at once, one line each: path, what was required, what was found.
    """
    errors: list[str] = []
    recipe = _build(Recipe, tree, "", errors, origins or {})
    if isinstance(recipe, Recipe) and not errors:
        errors += _cross_checks(recipe)
    if errors or not isinstance(recipe, Recipe):
        raise UserError("\n".join(errors))
    return recipe


def build_options(registry: str, name: str, options: Mapping[str, Any]) -> Config:
    """Return the checked options of one registered part, e.g. ``("UPDATES", "plot", {...})``.

    Raises:
        UserError: every mistake at once, one line each.
    """
    errors: list[str] = []
    choice = _build_choice(registry, {**options, "name": name}, name, errors, {})
    if choice is None or errors:
        raise UserError("\n".join(errors))
    return choice.config


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


def _find(name: str) -> tuple[Path, str | None]:
    """Return the file of a recipe and the variant named by its suffix."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no recipe file `{name}`")
        return path, None
    folder = recipes_dir()
    if (folder / f"{name}.yaml").is_file() and "/" not in name:
        return folder / f"{name}.yaml", None
    match = re.fullmatch(r"(\w+)_(if\d+)", name)
    if match and (folder / f"{match[1]}.yaml").is_file():
        return folder / f"{match[1]}.yaml", match[2]
    raise UserError(
        f"unknown recipe `{name}`{did_you_mean(name, list_recipes())}; "
        "`ltbench list recipes` shows all, a path ending in .yaml is read as a file"
    )


def _read_file(path: Path) -> Tree:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} is not readable YAML: {_first_line(error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path.name} holds no recipe: expected `key: value` lines")
    return tree


def _build(
    model: type[BaseModel], node: Any, path: str, errors: list[str], origins: Origins
) -> BaseModel | None:
    """Build a model from plain data, nested models and tagged choices first."""
    if isinstance(node, str) and "name" in model.model_fields:
        node = {"name": node}
    if not isinstance(node, Mapping):
        errors.append(f"`{path}`: expected fields of {model.__name__}, found {node!r}")
        return None
    values, broken = dict(node), set()
    if issubclass(model, Config):
        values = model.complete(values)
    for name, field in model.model_fields.items():
        if name not in values and isinstance(field.default, str) and _tag(field):
            values[name] = field.default
        if name not in values or values[name] is None:
            continue
        here = f"{path}.{name}" if path else name
        before = len(errors)
        values[name] = _build_field(field, values[name], here, errors, origins)
        if len(errors) > before:
            broken.add(name)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for e in error.errors():
            if e["loc"] and e["loc"][0] in broken:
                continue
            errors.append(_explain(e, path, model, origins))
    return None


def _build_field(
    field: FieldInfo, value: Any, path: str, errors: list[str], origins: Origins
) -> Any:
    registry = _tag(field)
    if registry is not None:
        return _build_choice(registry, value, path, errors, origins)
    model = _model_of(field.annotation)
    if model is not None:
        return _build(model, value, path, errors, origins)
    item = _item_model(field.annotation)
    if item is not None and isinstance(value, list | tuple):
        return tuple(_build(item, v, f"{path}.{i}", errors, origins) for i, v in enumerate(value))
    if isinstance(value, bool) and field.annotation in (int, float, int | None, float | None):
        errors.append(f"`{path}`: expected a number, found {str(value).lower()}")
    return value


def _build_choice(
    registry_name: str, value: Any, path: str, errors: list[str], origins: Origins
) -> Choice | None:
    registry = getattr(registries, registry_name)
    node = {"name": value} if isinstance(value, str) else value
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        errors.append(
            f"`{path}`: expected the name of a {registry.kind} or `{{name: ..., options}}`, "
            f"found {value!r}"
        )
        return None
    try:
        part = registry.get(node["name"])
    except UserError as error:
        errors.append(f"`{path}`: {error}")
        return None
    options = {k: v for k, v in node.items() if k != "name"}
    config = _build(getattr(part, "Config", part), options, path, errors, origins)
    return Choice(node["name"], config) if isinstance(config, Config) else None


def _tag(field: FieldInfo) -> str | None:
    return next((m.registry for m in field.metadata if isinstance(m, Tagged)), None)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        found = [_model_of(a) for a in get_args(annotation)]
        return next((m for m in found if m is not None), None)
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _item_model(annotation: Any) -> type[BaseModel] | None:
    return _model_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def _explain(error: Any, path: str, model: type[BaseModel], origins: Origins) -> str:
    loc = [str(part) for part in error["loc"]]
    where = ".".join([path, *loc] if path else loc)
    origin = _origin(where, origins)
    source = "" if origin in ("default", "command line", "argument") else f" (in {origin})"
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(loc[-1], model.model_fields)
        known = ", ".join(sorted(model.model_fields)) or "none"
        return f"`{where}`: unknown key{hint or f'; known here: {known}'}{source}"
    if error["type"] == "missing":
        return f"`{where}`: required, but not given"
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should be", "should be", message)
    return f"`{where}`: {message}, found {error['input']!r}{source}"


def _cross_checks(recipe: Recipe) -> list[str]:
    """Return mistakes that no single field shows."""
    errors = []
    for i, stage in enumerate(recipe.stages):
        method = registries.METHODS.get(stage.method.name)
        at, name = f"stages.{i}", stage.method.name
        if method.trains:
            errors += [
                f"`{at}.{field}`: required, because method `{name}` trains"
                for field in ("epochs", "batch_size", "optim")
                if getattr(stage, field) is None
            ]
        else:
            if i == 0:
                errors.append(f"`{at}.method`: `{name}` is post-hoc and needs a stage before it")
            if stage.epochs is not None:
                errors.append(f"`{at}.epochs`: method `{name}` does not train; leave it out")
        errors += [
            f"`{at}.update`: {problem}"
            for problem in registries.UPDATES.get(stage.update.name).check(
                stage.update.config, method, stage.epochs
            )
        ]
    return errors


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


def _origin(path: str, origins: Origins) -> str:
    if path.endswith(".name") and path.removesuffix(".name") in origins:
        return origins[path.removesuffix(".name")]
    while path:
        if path in origins:
            return origins[path]
        head, _, last = path.rpartition(".")
        path = head if last.isdigit() else ""
    return "default"


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]

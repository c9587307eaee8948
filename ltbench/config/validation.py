"""Checks plain data against the schemas, parts picked by name included, all mistakes at once."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ltbench.config import plugins
from ltbench.config.network import secrets_in
from ltbench.config.recipe import BackboneChoice, Choice, Recipe
from ltbench.config.registry import registry as find_registry
from ltbench.config.schema import NAME, Config, Tagged
from ltbench.config.values import plain, typed
from ltbench.errors import UserError, brief, did_you_mean, visible

C = TypeVar("C", bound=BaseModel)
PLAINER = {  # what pydantic says at length, by its type of error
    "bool_parsing": "should be true or false",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
}
Tree = dict[str, Any]
Origins = dict[str, str]  # dotted path of a value -> where it came from


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


def find_mistakes(options: type[C], values: Tree, path: str = "") -> tuple[C | None, list[str]]:
    """Return options made of plain data, or None, and every mistake, one line each."""
    errors: list[str] = []
    found = _build(options, values, path, errors, {})
    return (found if isinstance(found, options) and not errors else None), errors


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


def _build(
    model: type[BaseModel], node: Any, path: str, errors: list[str], origins: Origins
) -> BaseModel | None:
    """Build a model from plain data, nested models and tagged choices first."""
    if isinstance(node, str) and "name" in model.model_fields:
        node = {"name": node}
    if not isinstance(node, Mapping):
        errors.append(f"`{path}`: expected fields of {model.__name__}, found {brief(node)}")
        return None
    values, broken = dict(node), set()
    for name, field in model.model_fields.items():
        try:
            values |= {name: typed(values[name], field)} if name in values else {}
        except UserError as error:  # noqa: PERF203 - of one field, so that all are said
            errors.append(f"`{path}.{name}`: {error}" if path else f"`{name}`: {error}")
            broken.add(name)
    if issubclass(model, Config):
        values = model.complete(values)
        _check_revision(model, values, path, errors)
    for name, field in model.model_fields.items():
        if name not in values and isinstance(field.default, str) and tag_of(field):
            values[name] = field.default
        if name not in values or values[name] is None or name in broken:
            continue
        here = f"{path}.{name}" if path else name
        before = len(errors)
        values[name] = _build_field(field, values[name], here, errors, origins)
        if len(errors) > before:
            broken.add(name)
    if model is BackboneChoice:
        _fill_plugin(values, path, errors)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for e in error.errors():
            if e["loc"] and e["loc"][0] in broken:
                continue
            errors.append(_explain(e, path, model, origins, values))
    return None


def _check_revision(
    model: type[Config], values: dict[str, Any], path: str, errors: list[str]
) -> None:
    """Take out the revision that the resolved recipe of a record may name."""
    found = values.pop("revision", 0) if "revision" not in model.model_fields else 0
    if type(found) is not int or not 0 <= found <= model.revision:
        errors.append(
            f"`{path}.revision`: expected at most {model.revision}, the newest that this version "
            f"of ltbench knows, found {brief(found)}; update ltbench"
        )


def _build_field(
    field: FieldInfo, value: Any, path: str, errors: list[str], origins: Origins
) -> Any:
    registry = tag_of(field)
    if registry is not None:
        return _build_choice(registry, value, path, errors, origins)
    model = model_of(field.annotation)
    if model is not None:
        return _build(model, value, path, errors, origins)
    item = item_model(field.annotation)
    if item is not None and isinstance(value, list | tuple):
        return tuple(_build(item, v, f"{path}.{i}", errors, origins) for i, v in enumerate(value))
    if isinstance(value, bool) and field.annotation in (int, float, int | None, float | None):
        errors.append(f"`{path}`: expected a number, found {str(value).lower()}")
    try:
        return plain(value, field)
    except UserError as error:
        errors.append(f"`{path}`: {error}")
        return None


def _build_choice(
    registry_name: str, value: Any, path: str, errors: list[str], origins: Origins
) -> Choice | None:
    registry = find_registry(registry_name)
    node = {"name": value} if isinstance(value, str) else value
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        errors.append(
            f"`{path}`: expected the name of a {registry.kind} or `{{name: ..., options}}`, "
            f"found {brief(value)}"
        )
        return None
    try:
        name, plugin = _origin(registry_name, node)
        model = registry.options(name)
    except UserError as error:
        errors.append(f"`{path}`: {error}")
        return None
    options = {k: v for k, v in node.items() if k not in ("name", "plugin")}
    config = _build(model, options, path, errors, origins)
    return Choice(name, config, plugin) if isinstance(config, Config) else None


def _origin(registry_name: str, node: Mapping[str, Any]) -> tuple[str, str]:
    """Return a part's name and the mark of its plugin, compared with the mark in a model's recipe.

    Raises:
        UserError: the part or its plugin is not here, or the plugin is another one.
    """
    registry, stated = find_registry(registry_name), node.get("plugin", "")
    what = f"{registry.kind} `{visible(node['name'])}`"
    if stated and not (isinstance(stated, str) and plugins.MARK.fullmatch(stated)):
        raise UserError(
            f"`plugin` of {what} is filled in by itself, as NAME@SHA-256; leave it out, and give "
            f"plugins=FILE at the top, found {brief(stated)}"
        )
    try:
        name = registry.resolve(node["name"])
    except UserError:
        if not stated:
            raise
        raise UserError(plugins.needed(what, stated)) from None
    return name, plugins.check(stated, registry.plugin(name), what)


def _fill_plugin(values: Tree, path: str, errors: list[str]) -> None:
    """Set name and plugin of a backbone from outside the package; timm knows the other names."""
    name = values.get("name")
    if not isinstance(name, str):
        return
    try:
        values["name"], values["plugin"] = _origin("BACKBONES", values)
    except UserError as error:
        if values.get("plugin") or plugins.is_place(name):
            errors.append(f"`{path}`: {error}")


def tag_of(field: FieldInfo) -> str | None:
    """Return the name of the registry that a field takes a part of, if it takes one."""
    return next((m.registry for m in field.metadata if isinstance(m, Tagged)), None)


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the options that a type is, or has among its alternatives."""
    if get_origin(annotation) in (Union, types.UnionType):
        found = [model_of(a) for a in get_args(annotation)]
        return next((m for m in found if m is not None), None)
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def item_model(annotation: Any) -> type[BaseModel] | None:
    """Return the options that a tuple is made of."""
    return model_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def _explain(error: Any, path: str, model: type[BaseModel], origins: Origins, values: Tree) -> str:
    loc = [str(part) for part in error["loc"]]
    where = ".".join([path, *loc] if path else loc)
    origin = origin_of(where, origins)
    source = "" if origin in ("default", "command line", "argument") else f" (in {origin})"
    if error["type"] == "extra_forbidden":
        inside = list(_inside(loc[-1], model, values, path)) if len(loc) == 1 else []
        names = ", ".join(f"`{key}`" for key in inside[:3])
        keys = [*model.model_fields, *(["epochs"] if model is Recipe else [])]  # see `with_epochs`
        hint = f" (did you mean {names}?)" if inside else did_you_mean(loc[-1], keys)
        known = ", ".join(sorted(keys)) or "none"
        return f"`{where}`: unknown key{hint or f'; known here: {known}'}{source}"
    if error["type"] == "missing":
        return f"`{where}`: required, but not given"
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should be", "should be", message)
    message = PLAINER.get(error["type"], message)
    if error.get("ctx", {}).get("pattern") == f"^{NAME}$":
        message = "should be letters, digits, `_`, `.` and `-`, neither `.` nor `-` first"
    if not where:  # a mistake in how the fields go together
        return message
    if error["type"] == "literal_error":
        source += did_you_mean(str(error["input"]), re.findall(r"'([^']*)'", message))
    return f"`{where}`: {message}, found {brief(error['input'])}{source}"


def _inside(name: str, model: type[BaseModel], values: Tree, path: str) -> Iterator[str]:
    """Yield the keys of this name further inside a model, of which some fields are built."""
    defaults = {key: field.default for key, field in model.model_fields.items()}
    for key, value in {**defaults, **values}.items():
        many = isinstance(value, tuple)
        for i, item in enumerate(value if many else (value,)):
            config = item.config if isinstance(item, Choice) else item
            if not isinstance(config, Config):
                continue
            at = ".".join(filter(None, (path, key, str(i) if many else "")))
            if name in type(config).model_fields:
                yield f"{at}.{name}"
            yield from _inside(name, type(config), dict(config), at)


def _cross_checks(recipe: Recipe) -> list[str]:
    """Return mistakes that no single field shows."""
    secrets = [
        f"`{path}`: an address with a user or a password would stand in files that are handed on; "
        "only data.root may have them, and keeps them out of files"
        for path in secrets_in(recipe.tree())
    ]
    if secrets:
        return secrets
    errors = _stream_checks(recipe) if getattr(recipe.data.config, "stream", False) else []
    if recipe.run.evaluate == "val" and recipe.run.curves == "test":
        errors.append(
            "`run.curves`: test shows results of the test images, which a run that is evaluated on "
            "validation images must not see; leave it out"
        )
    for i, stage in enumerate(recipe.stages):
        at, name = f"stages.{i}", stage.method.name
        if find_registry("METHODS").facts(name).trains:
            errors += [
                f"`{at}.{field}`: required, because method `{name}` trains"
                for field in ("epochs", "batch_size", "optim")
                if getattr(stage, field) is None
            ]
        else:
            if i == 0 and not find_registry("METHODS").facts(name).alone:
                errors.append(f"`{at}.method`: `{name}` is post-hoc and needs a stage before it")
            if stage.epochs is not None:
                errors.append(f"`{at}.epochs`: method `{name}` does not train; leave it out")
            if stage.features != "augmented":
                errors.append(f"`{at}.features`: method `{name}` does not train; leave it out")
        try:
            stage.passes(1)
        except UserError as error:
            errors.append(f"`{at}`: {error}")
        errors += [
            f"`{at}.update`: {problem}" for problem in stage.update.config.problems(stage.epochs)
        ]
    return errors


def _stream_checks(recipe: Recipe) -> list[str]:
    """Return the settings of a recipe that streamed shards do not support."""
    why = "data.stream=true reads every shard once, front to back"
    errors = [
        f"`stages.{i}.sampler`: {why}: instance sampling only, found `{stage.sampler.name}`; store "
        "the shards and leave data.stream out"
        for i, stage in enumerate(recipe.stages)
        if stage.epochs is not None and stage.sampler.name != "instance"
    ]
    errors += [
        f"`stages.{i}.features`: {why}, so that each image is seen once; leave features out"
        for i, stage in enumerate(recipe.stages)
        if stage.features == "cached"
    ]
    errors += [
        f"`run.{field}`: {why}, and cannot go on inside an epoch; set run.{field}=null"
        for field in ("save_steps", "save_minutes")
        if getattr(recipe.run, field) is not None
    ]
    config: Any = recipe.data.config
    if config.unreadable != "raise":
        errors.append(f"`data.unreadable`: {why}, and cannot fetch another image; set it to raise")
    if getattr(config, "val_fraction", 0):
        errors.append(f"`data.val_fraction`: {why}; pack a validation part with the set instead")
    if getattr(config, "imbalance_ratio", None) is not None:
        errors.append(f"`data.imbalance_ratio`: {why}; pack the thinned set instead")
    return errors


def origin_of(path: str, origins: Origins) -> str:
    """Return the origin of the value at a dotted path."""
    if path.endswith(".name") and path.removesuffix(".name") in origins:
        return origins[path.removesuffix(".name")]
    while path:
        if path in origins:
            return origins[path]
        head, _, last = path.rpartition(".")
        path = head if last.isdigit() else ""
    return "default"

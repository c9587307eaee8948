"""Publish folder: the files of one published model, on the Hub and on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.config import plugins
from ltbench.config.network import check_published
from ltbench.data import DATASETS
from ltbench.data.base import place_options
from ltbench.digest import file_sha256, read_json
from ltbench.errors import UserError, visible
from ltbench.records.record import RECORD, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, RECIPE, CARD, RESULTS = "config.json", "recipe.yaml", "README.md", ".eval_results"
FILES = (WEIGHTS, CONFIG, RECIPE, RECORD, CARD)
_LEAVES = re.compile(r"(^|[/\\])\.\.([/\\]|$)|://|^[A-Za-z]:")


def is_folder(path: Path) -> bool:
    """Return whether a path is a publish folder."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def is_result(path: str) -> bool:
    """Return whether a path inside a publish folder is that of a results file."""
    folder, _, name = path.rpartition("/")
    return folder == RESULTS and name.endswith(".yaml")


def files_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the files of a folder by their paths inside it, and the paths of foreign ones."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or path.is_symlink()
    }
    foreign = [
        name
        for name, path in found.items()
        if path.is_symlink() or not (name in FILES or is_result(name))
    ]
    return found, foreign


def is_ours(path: Path) -> bool:
    """Return whether ltbench wrote a folder with a ``config.json``; timm writes such ones too."""
    try:
        content = read_json(path / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "ltbench" in content


def read_config(path: Path) -> dict[str, Any]:
    """Return the description of a published model: recipe, data set, classes, hash of its weights.

    Whoever published it chose the content: the recipe's places of data are left out, and the
    options of its network are checked.

    Args:
        path: ``config.json`` of a publish folder.

    Raises:
        UserError: it is missing, damaged, not of a model of ltbench, or names what a published
            model may not.
    """
    try:
        content = read_json(path, strict=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({visible(str(error))}); download or export it again"
        ) from error
    parts = {}
    for name in ("model_args", "ltbench", "pretrained_cfg", "label_names"):
        if not isinstance(content, dict) or name not in content:
            raise UserError(
                f"{path} is not of a model of ltbench: it has no '{name}'; timm.create_model loads "
                "models of timm"
            )
        parts[name] = content[name]
    *mappings, names = parts.values()
    if not all(isinstance(part, dict) for part in mappings):
        raise UserError(f"{path} is damaged (expected mappings); download or export it again")
    args, ours, cfg = mappings
    return {
        **args,
        **ours,
        "recipe": published_recipe(args.get("recipe"), str(path)),
        "class_names": names,
        "mean": cfg.get("mean"),
        "std": cfg.get("std"),
    }


def published_recipe(tree: Any, origin: str) -> dict[str, Any]:
    """Return the recipe of a published model without places of data.

    Args:
        tree: the recipe as plain data.
        origin: name of the model in messages.

    Raises:
        UserError: it names a network or data that a published model may not.
    """
    check_published(tree, origin)
    for path in _places(tree.get("stages"), "stages"):
        raise UserError(
            f"{origin}: `{visible(path)}`: a published model names no places of this machine or "
            "the net; export the model again"
        )
    return {**tree, "data": published_data(tree.get("data"), origin)}


def _places(node: Any, path: str) -> Iterator[str]:
    """Yield the dotted paths of texts in plain data that lead to a place elsewhere."""
    if isinstance(node, str):
        if node.startswith(("/", "\\", "~")) or _LEAVES.search(node):
            yield path
    elif isinstance(node, Mapping | list):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield from _places(value, f"{path}.{key}")


def published_data(data: Any, origin: str) -> dict[str, Any]:
    """Return the data of a recipe that somebody published, without places.

    Args:
        data: ``data`` of the recipe as plain data.
        origin: name of the model or record in messages.

    Raises:
        UserError: it names no data set, or a place in an option that is not one of places.
    """
    data = {"name": data} if isinstance(data, str) else data
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise UserError(f"{origin}: the recipe names no data set; export the model again")
    try:
        places = place_options(DATASETS.get(data["name"]))
    except UserError as error:
        said = visible(str(error))
        if plugins.marks([data]):
            said = plugins.needed(f"dataset `{visible(data['name'])}`", data["plugin"])
        raise UserError(f"{origin}: `data`: {said}") from error
    kept = {key: value for key, value in data.items() if key not in places}
    for key, value in kept.items():
        if isinstance(value, str) and (value.startswith(("/", "\\", "~")) or _LEAVES.search(value)):
            raise UserError(
                f"{origin}: `data.{visible(str(key))}`: a published model names no places of this "
                f"machine or the net, found `{visible(value)}`"
            )
    return kept


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and description of a publish folder, the weights' hash checked.

    Args:
        path: holds at least ``model.safetensors`` and ``config.json``.

    Raises:
        UserError: a file is missing, damaged, exchanged, or not of a model of ltbench.
    """
    if not is_folder(path):
        raise UserError(f"expected {WEIGHTS} and {CONFIG} in {path}; not both are there")
    facts, weights = read_config(path / CONFIG), path / WEIGHTS
    try:
        found, wanted = file_sha256(weights), visible(str(facts.get("sha256")))
    except OSError as error:
        raise UserError(f"cannot read {weights}: {error.strerror}") from error
    if found != wanted:
        raise UserError(
            f"{weights} is damaged or was replaced: {CONFIG} has SHA-256 {wanted[:12]}..., "
            f"found {found[:12]}...; download or export it again"
        )
    return read_tensors(weights), facts


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from error

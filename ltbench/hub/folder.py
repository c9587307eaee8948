"""Publish folder: the files of one published model, on the Hub and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.records.record import RECORD, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, RECIPE, CARD, RESULTS = "config.json", "recipe.yaml", "README.md", ".eval_results"
FILES = (WEIGHTS, CONFIG, RECIPE, RECORD, CARD)


def is_folder(path: Path) -> bool:
    """Whether a path is a publish folder."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def is_result(path: str) -> bool:
    """Whether a path inside a publish folder is that of a results file."""
    folder, _, name = path.rpartition("/")
    return folder == RESULTS and name.endswith(".yaml")


def files_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the files of a folder by their path inside it, and those no publish folder has."""
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
    """Whether ltbench wrote a folder with a ``config.json``; timm writes such folders too."""
    try:
        return "ltbench" in json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_config(path: Path) -> dict[str, Any]:
    """Return the description of a published model: recipe, data set, classes, hash of its weights.

    Args:
        path: ``config.json`` of a publish folder.

    Raises:
        UserError: it is missing, damaged, or not of a model of ltbench.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cfg = content["pretrained_cfg"]
        return {
            **content["model_args"],
            **content["ltbench"],
            "class_names": content["label_names"],
            "mean": cfg["mean"],
            "std": cfg["std"],
        }
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise UserError(
            f"{path} is not of a model of ltbench: it has no {error}; timm.create_model loads "
            "models of timm"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); download or export it again") from error


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and description of a publish folder, the weights' hash checked.

    Args:
        path: holds at least ``model.safetensors`` and ``config.json``.

    Raises:
        UserError: a file is missing, damaged, exchanged, or not of a model of ltbench.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not is_folder(path):
        raise UserError(f"expected {WEIGHTS} and {CONFIG} in {path}; not both are there")
    facts, weights = read_config(path / CONFIG), path / WEIGHTS
    try:
        found, wanted = file_sha256(weights), str(facts.get("sha256"))
        if found != wanted:
            raise UserError(
                f"{weights} is damaged or was replaced: {CONFIG} has SHA-256 {wanted[:12]}..., "
                f"found {found[:12]}...; download or export it again"
            )
        return load_file(weights), facts
    except OSError as error:
        raise UserError(f"cannot read {weights}: {error.strerror}") from error
    except SafetensorError as error:
        raise UserError(f"{weights} is not a safetensors file ({error})") from error

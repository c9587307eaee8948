"""Weights of a method as safetensors, with a description in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.files import reason, replaced, write_json


def write_weights(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Write weights and their description and return the SHA-256 of the weights.

    Args:
        path: file ending in ``.safetensors``; the description is ``path`` with ``.json``.
        tensors: the weights.
        facts: description of the weights as plain data.

    Raises:
        UserError: the files could not be written.
    """
    try:
        with replaced(path) as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial)
            digest = file_sha256(partial)
        write_json(path.with_suffix(".json"), {**facts, "sha256": digest})
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {path}: {reason(error)}") from error
    return digest


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights written by ``write_weights`` and check their hash.

    Raises:
        UserError: a file is missing, truncated, modified or not written by ltbench.
    """
    described = path.with_suffix(".json")
    if not path.is_file() or not described.is_file():
        raise UserError(f"expected {path} and {described.name} beside it; not both are there")
    try:
        facts = json.loads(described.read_text(encoding="utf-8"))
        found = file_sha256(path)
        if found != facts["sha256"]:
            raise UserError(
                f"{path} is damaged or was replaced: {described.name} has SHA-256 "
                f"{facts['sha256'][:12]}..., found {found[:12]}..."
            )
        return load_file(path), facts
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} is not a model written by ltbench ({reason(error)})") from error


def load_strict(module: torch.nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict whose keys and shapes must all match.

    Raises:
        UserError: the state dict belongs to another model; the message names the first mismatch.
    """
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(tensors)) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(
            f"{origin} belongs to another model: {len(wrong)} tensors do not fit, "
            f"the first is `{wrong[0]}`"
        )
    module.load_state_dict(dict(tensors))

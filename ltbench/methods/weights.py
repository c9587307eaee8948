"""Weights of a method as safetensors, with a description in JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltbench.data.base import DatasetInfo
from ltbench.digest import file_sha256
from ltbench.errors import UserError, visible
from ltbench.files import read_sealed, reason, replaced, seal, write_atomic


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
        described = seal(json.dumps({**facts, "sha256": digest}, indent=1))
        write_atomic(path.with_suffix(".json"), described)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {path}: {reason(error)}") from error
    return digest


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights written by ``write_weights`` and check their hash.

    Raises:
        UserError: a file is missing, truncated, modified or not written by ltbench.
    """
    facts = read_description(path)
    try:
        return load_file(path), facts
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a model written by ltbench ({reason(error)})") from error


def read_description(path: Path) -> dict[str, Any]:
    """Read the description of weights and check that the weights are those described.

    Args:
        path: file of the weights.

    Raises:
        UserError: a file is missing, truncated, modified or not written by ltbench.
    """
    described = path.with_suffix(".json")
    missing = [file.name for file in (path, described) if not file.is_file()]
    if missing:
        raise UserError(
            f"expected {path} and {described.name} beside it, {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing; restore what is missing, or run the "
            "recipe again with another `out=`"
        )
    try:
        facts = read_sealed(described, last="sha256")
        stated = str(facts["sha256"])
        found = file_sha256(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{described} is not the description of a model written by ltbench ({reason(error)})"
        ) from error
    if found != stated:
        raise UserError(
            f"{path} is damaged or was replaced: {described.name} has SHA-256 "
            f"{stated[:12]}..., found {found[:12]}..."
        )
    return facts


def check_classes(facts: Mapping[str, Any], info: DatasetInfo, origin: str) -> None:
    """Check that data have the classes of a model, by name and order.

    Where one of the two only numbers its classes, a warning says that the numbers were compared.

    Args:
        facts: description of the model.
        info: facts about the data.
        origin: name of the model in messages.

    Raises:
        UserError: they differ; names the first difference.
    """
    own, found = tuple(map(str, facts["class_names"])), info.class_names
    if own == found:
        return
    advice = "give data with the same class names in the same order"
    if len(own) != len(found):
        raise UserError(
            f"{origin} knows {len(own)} classes, the data set {info.name} has {len(found)}; "
            f"{advice}"
        )
    moved = sorted(own) == sorted(found)
    numbers = tuple(str(k) for k in range(len(own)))
    if numbers in (own, found) and not moved:
        unnamed = origin if own == numbers else f"the data set {info.name}"
        warnings.warn(
            f"{unnamed} has no class names: class k of {origin} is taken for class k of the data "
            f"set {info.name}, e.g. 0 is `{own[0]}` and `{found[0]}`",
            stacklevel=2,
        )
        return
    first = next(k for k, (a, b) in enumerate(zip(own, found, strict=True)) if a != b)
    raise UserError(
        f"class {first} of {origin} is `{visible(own[first])}`, that of the data set {info.name} "
        f"is `{visible(found[first])}`{' (another order)' if moved else ''}; {advice}"
    )


def inference_state(method: Any) -> dict[str, Tensor]:
    """Return the tensors of a method that its predictions depend on, by name.

    Those that only training needs, such as a momentum encoder, are no part of its exported module.
    """
    own = method.state_dict(keep_vars=True)
    used = {id(tensor) for tensor in method.export().state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in own.items() if id(tensor) in used}


def expected_state(method: Any, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that weights of this description must have.

    Args:
        method: rebuilt from the description; may be on the meta device.
        facts: the description; ``inference_only`` says that parts of training were never there.
    """
    return inference_state(method) if facts.get("inference_only") is True else method.state_dict()


def load_rebuilt(
    method: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], origin: str
) -> None:
    """Load weights whose keys and shapes must be those of their description.

    Args:
        method: rebuilt from the description.
        tensors: the weights.
        facts: the description.
        origin: name of the weights in messages.

    Raises:
        UserError: they belong to another model; the message names the first mismatch.
    """
    check_fit(expected_state(method, facts), tensors, origin)
    method.load_state_dict(dict(tensors), strict=facts.get("inference_only") is not True)


def load_strict(module: torch.nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict whose keys and shapes must all match.

    Raises:
        UserError: the state dict belongs to another model; the message names the first mismatch.
    """
    check_fit(module.state_dict(), tensors, origin)
    module.load_state_dict(dict(tensors))


def check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Check that weights have the names and shapes of a state dict.

    Args:
        own: state dict of the model; tensors on the meta device will do.
        tensors: the weights.
        origin: name of the weights in messages.

    Raises:
        UserError: they belong to another model; the message names the first mismatch.
    """
    wrong = sorted(set(own) ^ set(tensors)) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(
            f"{origin} belongs to another model: {len(wrong)} tensors do not fit, "
            f"the first is `{visible(wrong[0])}`"
        )

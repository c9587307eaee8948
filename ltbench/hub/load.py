from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ltbench.config import plugins
from ltbench.config.paths import expanded
from ltbench.errors import UserError
from ltbench.hub.encoder import with_encoder
from ltbench.methods.base import Method
from ltbench.methods.weights import check_fit, expected_state, load_rebuilt, read_weights
from ltbench.models import BACKBONES
from ltbench.records.record import WEIGHTS

_LOCAL = "local-dir:"


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names that match a shell pattern.

    Args:
        pattern: of the names.
        pretrained: list the names for ``load`` instead of those for ``create_model``, which are
            ours followed by timm's.
    """
    if pretrained:
        from ltbench.hub import zoo

        return zoo.names(pattern)
    import timm

    ours = BACKBONES.names(pattern)
    return ours + [name for name in timm.list_models(pattern) if name not in ours]


def load(
    source: str | Path, *, seed: int = 0, device: str = "cpu", encoder: str | None = None
) -> Method:
    """Return a trained method in evaluation mode; its call returns the logits of ``predict``.

    Args:
        source: the first of these that fits: a run's folder, a ``model.safetensors``, a folder
            written by ``ltbench publish``, ``local-dir:PATH`` of one, ``hf-hub:org/name`` with
            ``@revision`` or not, or a name of the zoo (``ltbench list models pretrained=true``).
        seed: of the run, for a name of the zoo.
        device: device of the returned method.
        encoder: file of the encoder's weights, for adapters that were published apart from it; by
            default the public ones of its name.

    Raises:
        UserError: the files are missing, damaged or from another model, or cannot be fetched.
    """
    method, _ = load_described(source, seed=seed, encoder=encoder)
    return method.to(device)


def load_described(
    source: str | Path, *, seed: int = 0, encoder: str | None = None
) -> tuple[Method, dict[str, Any]]:
    """Return a trained method and the description that lies beside its weights.

    The recipe in the description names a data set by ``{"name": ..., options}``; places of data
    are among the options if the model lies in a run's folder, never if it was published.

    Args:
        source: see ``load``.
        seed: see ``load``.
        encoder: see ``load``.

    Raises:
        UserError: see ``load``.
    """
    from ltbench.methods.build import rebuild

    tensors, facts, origin = _read(source, seed)
    tensors = with_encoder(tensors, facts, origin, encoder)
    _check_shapes(tensors, facts, origin)
    method = rebuild(facts, origin)
    load_rebuilt(method, tensors, facts, origin)
    recipe = facts["recipe"]
    if isinstance(recipe["data"], str):
        facts = {**facts, "recipe": {**recipe, "data": {"name": recipe["data"]}}}
    return method.eval(), facts


def _check_shapes(tensors: Mapping[str, torch.Tensor], facts: dict[str, Any], origin: str) -> None:
    """Compare weights with the described model before memory is allocated for the model.

    Raises:
        UserError: they do not fit.
    """
    from ltbench.methods.build import rebuild

    try:
        with torch.device("meta"):
            own = expected_state(rebuild(facts, origin), facts)
    except (RuntimeError, NotImplementedError):  # parts that cannot be made without memory
        return
    check_fit(own, tensors, origin)


def _read(source: str | Path, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """Return weights, their description, and their name in messages."""
    from ltbench.hub import zoo
    from ltbench.hub.folder import is_folder, read_folder

    text, path = str(source), expanded(source)
    folder = path if path.is_dir() else path.parent
    if path.exists():
        if path.is_file() and path.suffix != ".safetensors":
            raise UserError(f"expected a folder or a .safetensors file, found {path}")
        weights = path if path.is_file() else path / WEIGHTS
        alone = not weights.with_suffix(".json").is_file()
        if alone and weights.name == WEIGHTS and is_folder(folder):
            return (*read_folder(folder), str(weights))
        tensors, facts = read_weights(weights)
        plugins.load_run(weights.parent, facts.get("recipe"))
        return tensors, facts, str(weights)
    if text.startswith(_LOCAL):
        folder = expanded(text.removeprefix(_LOCAL))
    elif text.startswith(zoo.HUB):
        folder = zoo.fetch_repository(*zoo.parse_address(text))
    elif isinstance(source, str) and re.fullmatch(r"\w[\w.-]*", source):
        folder = zoo.fetch(zoo.find(source, seed))
    else:
        raise UserError(
            f"there is no {path}; a model on the Hub is {zoo.HUB}org/name[@revision], those of "
            "the zoo are shown by `ltbench list models pretrained=true`"
        )
    return (*read_folder(folder), text)

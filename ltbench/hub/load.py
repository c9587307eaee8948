from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.methods.weights import load_strict, read_weights
from ltbench.models import BACKBONES
from ltbench.records.record import WEIGHTS


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names that match a shell pattern.

    Args:
        pattern: of the names.
        pretrained: the names that ``load`` knows, instead of those that ``create_model`` knows:
            ours, then timm's.
    """
    if pretrained:
        from ltbench.hub import zoo

        return zoo.names(pattern)
    import timm

    ours = BACKBONES.names(pattern)
    return ours + [name for name in timm.list_models(pattern) if name not in ours]


def load(source: str | Path, *, seed: int = 0, device: str = "cpu") -> Method:
    """Return a trained method in evaluation mode: calling it gives the logits of its ``predict``.

    Args:
        source: the first of these that fits: a run's folder, a ``model.safetensors``, a folder
            written by ``ltbench publish``, ``local-dir:PATH`` of one, ``hf-hub:org/name`` with
            ``@revision`` or not, or a name of the zoo (``ltbench list models pretrained=true``).
        seed: of the run, for a name of the zoo.
        device: where to put it.

    Raises:
        UserError: the files are missing, damaged or from another model, or cannot be fetched.
    """
    method, _ = load_described(source, seed=seed)
    return method.to(device)


def load_described(source: str | Path, *, seed: int = 0) -> tuple[Method, dict[str, Any]]:
    """Return a trained method and the description that lies beside its weights."""
    from ltbench.methods.build import rebuild

    tensors, facts, origin = _read(source, seed)
    method = rebuild(facts, origin)
    load_strict(method, tensors, origin)
    return method.eval(), facts


def _read(source: str | Path, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """Return weights, description and what a message calls them."""
    from ltbench.hub import zoo
    from ltbench.hub.folder import is_folder, read_folder

    text, path = str(source), Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.exists():
        if path.is_file() and path.suffix != ".safetensors":
            raise UserError(f"expected a folder or a .safetensors file, found {path}")
        weights = path if path.is_file() else path / WEIGHTS
        alone = not weights.with_suffix(".json").is_file()
        if alone and weights.name == WEIGHTS and is_folder(folder):
            return (*read_folder(folder), str(weights))
        return (*read_weights(weights), str(weights))
    if text.startswith(_LOCAL):
        folder = Path(text.removeprefix(_LOCAL)).expanduser()
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


_LOCAL = "local-dir:"

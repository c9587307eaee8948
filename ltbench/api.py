from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltbench import checkpoint, registries
from ltbench.data.base import Data
from ltbench.errors import UserError
from ltbench.evaluation import evaluate_split
from ltbench.methods.base import Method
from ltbench.metrics import Metrics
from ltbench.runner import WEIGHTS, pick_device


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

    ours = registries.BACKBONES.names(pattern)
    return ours + [name for name in timm.list_models(pattern) if name not in ours]


def create_model(name: str, *, num_classes: int, head: str = "linear", **args: Any) -> nn.Module:
    """Return an untrained classifier: images [B, 3, H, W] to logits [B, C].

    Args:
        name: a registered backbone or any timm name.
        num_classes: number of classes C.
        head: ``linear`` or ``cosine``.
        args: ``pretrained``, ``weights`` and further arguments of timm's ``create_model``.

    Raises:
        UserError: the name or head is unknown.
    """
    from ltbench.backbones.base import create_backbone
    from ltbench.heads import CosineHead, LinearHead

    heads: dict[str, type[nn.Module]] = {"linear": LinearHead, "cosine": CosineHead}
    if head not in heads:
        raise UserError(f"`head`: expected linear or cosine, found `{head}`")
    backbone = create_backbone(name, **args)
    return nn.Sequential(backbone, heads[head](backbone.num_features, num_classes))


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
    from ltbench.hub.rebuild import rebuild

    tensors, facts, origin = _read(source, seed)
    method = rebuild(facts, origin)
    checkpoint.load_strict(method, tensors, origin)
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
        return (*checkpoint.read_weights(weights), str(weights))
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


def evaluate(
    module: nn.Module,
    dataset: str | Data,
    *,
    device: str = "auto",
    rule: str = "strict",
    workers: int = 2,
    batch_size: int = 250,
    **options: Any,
) -> Metrics:
    """Return the results of any module on the test set of a long-tailed data set.

    Args:
        module: images [B, 3, H, W] (normalised as the data set does) to logits [B, C].
        dataset: a registered name, or a loaded data set.
        device: ``auto``, ``cpu`` or ``cuda``.
        rule: how shot groups are cut, see ``ltbench.metrics.shot_groups``.
        workers: processes that decode images.
        batch_size: images per forward pass.
        options: those of the data set, e.g. ``root="images"``.

    Raises:
        UserError: the data set cannot be read, or the module has another number of classes.
    """
    if isinstance(dataset, str):
        from ltbench.validation import build_options

        dataset = build_options("DATASETS", dataset, options).load()  # type: ignore[attr-defined]
    where = pick_device(device)
    torch.manual_seed(0)
    return evaluate_split(
        module.to(where),
        dataset.test,  # type: ignore[union-attr]
        dataset.info.class_counts,  # type: ignore[union-attr]
        device=where,
        rule=rule,
        workers=workers,
        batch_size=batch_size,
    )

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltbench import checkpoint, registries
from ltbench.data.base import Data, DatasetInfo
from ltbench.errors import UserError
from ltbench.evaluation import evaluate_split
from ltbench.methods.base import Method
from ltbench.metrics import Metrics
from ltbench.runner import WEIGHTS, pick_device
from ltbench.trainer import build_method
from ltbench.validation import build_recipe


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that ``create_model`` knows and match a shell pattern: ours, then timm's."""
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


def load(path: str | Path, *, device: str = "cpu") -> Method:
    """Return a trained method in evaluation mode: calling it gives the logits of its ``predict``.

    Args:
        path: a run's folder or its ``model.safetensors``.
        device: where to put it.

    Raises:
        UserError: the files are missing, damaged or from another model.
    """
    method, _ = load_described(path)
    return method.to(device)


def load_described(path: str | Path) -> tuple[Method, dict[str, Any]]:
    """Return a trained method and the description that lies beside its weights."""
    file = Path(path)
    file = file / WEIGHTS if file.is_dir() else file
    tensors, facts = checkpoint.read_weights(file)
    try:
        tree = facts["recipe"]
        info = DatasetInfo(
            facts["dataset"],
            tuple(facts["class_counts"]),
            tuple(facts["class_names"]),
            tuple(facts["mean"]),
            tuple(facts["std"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file.with_suffix('.json')} lacks `{error}`: not a run's model"
        ) from error
    recipe = build_recipe({**tree, "backbone": {**tree["backbone"], **_NO_WEIGHTS}})
    method: Method | None = None
    for index in range(len(recipe.stages)):
        method = build_method(recipe, index, info, method)
    if method is None:
        raise UserError(f"{file}: the recipe has no stage")
    checkpoint.load_strict(method, tensors, str(file))
    return method.eval(), facts


_NO_WEIGHTS = {"pretrained": False, "weights": None}  # the trained ones replace them anyway


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

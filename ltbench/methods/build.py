"""A method from a recipe's stage, or from the description beside published weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ltbench.config.recipe import Recipe
from ltbench.config.validation import build_recipe
from ltbench.data.base import DatasetInfo
from ltbench.data.preprocessing import preprocessing_of
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.methods.base import Method, begins
from ltbench.methods.description import described_data
from ltbench.models.backbone import create_backbone
from ltbench.models.heads import LinearHead
from ltbench.models.loading import load_classifier
from ltbench.version import __version__


def build_backbone(recipe: Recipe, classes: int | None = None) -> Any:
    """Return the recipe's backbone with fresh or given weights.

    Args:
        recipe: the recipe.
        classes: number of classes C, on which the default width of adapters depends.
    """
    choice = recipe.backbone
    return create_backbone(
        choice.name,
        pretrained=choice.pretrained,
        weights=choice.weights,
        adapters=choice.adapters,
        classes=classes,
        **choice.args,
    )


def build_method(
    recipe: Recipe, index: int, info: DatasetInfo, previous: Method | None = None
) -> Method:
    """Return the method of a stage, on the backbone of the previous stage or on a new one.

    Args:
        recipe: the recipe.
        index: index of the stage.
        info: facts about the training data.
        previous: the method of the previous stage; ``None`` in the first stage.
    """
    stage = recipe.stages[index]
    new = previous is None or stage.start == "fresh"
    backbone: Any = None if previous is None or new else previous.backbone
    if backbone is None:
        backbone = build_backbone(recipe, info.num_classes)
    old = set() if previous is None else set(previous.modules())
    method: Method = METHODS.get(stage.method.name)(stage.method.config, backbone, info, previous)
    if new and recipe.backbone.weights is not None:
        load_classifier(method, recipe.backbone.weights, info.class_names)
    for prefix in stage.reset:
        old.difference_update(reset(method, prefix))
    if stage.head_init == "pytorch":
        for module in method.modules():
            if isinstance(module, LinearHead) and module not in old:
                nn.Linear.reset_parameters(module)
    return method


def reset(method: Method, prefix: str) -> list[nn.Module]:
    """Reinitialise the modules whose names start with ``prefix``, and return them.

    Layers have PyTorch's default initialisation. A name in the backbone also refers to its
    counterparts in all branches.

    Raises:
        UserError: no module of that name has initial weights.
    """
    named = {id(p) for names, p in method.known_as() if any(begins(n, prefix) for n in names)}
    found = {
        module: begin
        for module in method.modules()
        if callable(begin := getattr(module, "reset_parameters", None))
        and not named.isdisjoint(id(p) for p in module.parameters(recurse=False))
    }
    if not found:
        raise UserError(
            f"`reset`: no layer is called `{prefix}`; use the first parts of a module's name, e.g. "
            "`backbone.net.layer4.2`"
        )
    for begin in found.values():
        begin()
    return list(found)


def describe_model(recipe: Recipe, info: DatasetInfo) -> dict[str, Any]:
    """Return the description from which ``rebuild`` restores the method for saved weights."""
    return {
        "ltbench": __version__,
        "recipe": recipe.tree(),
        "digest": recipe.digest,
        "seed": recipe.seed,
        "dataset": info.name,
        "class_counts": list(info.class_counts),
        "class_names": list(info.class_names),
        "mean": list(info.mean),
        "std": list(info.std),
    }


_NO_WEIGHTS = {"pretrained": False, "weights": None}  # replaced by the trained weights


def rebuild(facts: dict[str, Any], origin: str) -> Method:
    """Return a described method, built as in training, with initial weights.

    Args:
        facts: description stored with published weights.
        origin: name of the model in messages.

    Raises:
        UserError: the description is incomplete or of another version.
    """
    info = described_data(facts, origin)
    tree = facts.get("recipe")
    if not isinstance(tree, dict) or not isinstance(tree.get("backbone"), dict):
        raise UserError(f"{origin} is not the description of a model: it has no recipe")
    recipe = build_recipe({**tree, "backbone": {**tree["backbone"], **_NO_WEIGHTS}})
    method: Method | None = None
    for index in range(len(recipe.stages)):
        method = build_method(recipe, index, info, method)
    if method is None:
        raise UserError(f"{origin}: the recipe has no stage")
    # Kernels of another layout round differently, and logits would differ from the recorded ones.
    layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    choice: Any = recipe.data
    method.transform = preprocessing_of(choice.name, choice.config, info.mean, info.std)
    return method.to(memory_format=layout)

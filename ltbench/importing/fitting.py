"""Network and recipe that fit a released checkpoint."""

from __future__ import annotations

from ltbench.config.recipe import Recipe
from ltbench.config.validation import build_recipe
from ltbench.errors import UserError, visible
from ltbench.importing.layouts.file import ReleasedFile
from ltbench.importing.layouts.parts import Parts
from ltbench.importing.networks import Network, find_network, misfit
from ltbench.methods.build import build_backbone

NULLABLE = ("proco", "ncl", "nclpp")  # methods whose classifier is linear without a scale
USUAL_SCALE = 30.0  # of cosine classifiers, where recipe and file say nothing


def fitting_network(parts: Parts, recipe: Recipe, file: ReleasedFile) -> Network:
    """Return our network for a file's weights.

    Args:
        parts: of the file.
        recipe: names the network that is tried first.
        file: named in messages.

    Raises:
        UserError: it is a network that ltbench does not have, or the adapters of another encoder.
    """
    choice = recipe.backbone
    if parts.adapters:
        return _adapted(parts, recipe)
    found = find_network(parts.body, {"name": choice.name, "args": choice.args})
    for tail in parts.tails if parts.branch_at == "whole" else ():
        problem = misfit(found.tensors, tail)
        if problem:
            raise UserError(f"{file.checkpoint.path}: a further network is another one: {problem}")
    return found


def _adapted(parts: Parts, recipe: Recipe) -> Network:
    """Return the recipe's encoder, which is not in the file, with the file's adapters."""
    choice = recipe.backbone
    if not (choice.pretrained or choice.weights) or choice.adapters is None:
        raise UserError(
            "the file holds adapters and no encoder: name a recipe with `backbone.adapters`, and "
            "its weights by backbone.pretrained=true or backbone.weights=FILE"
        )
    state = dict(build_backbone(recipe, len(parts.classifiers[0].weight)).net.state_dict())
    wanted = {n for n in state if "adapter" in n.split(".")}
    if wanted != set(parts.adapters):
        first = sorted(wanted ^ set(parts.adapters))[0]
        raise UserError(
            f"the adapters of the file are not those of the recipe: `{visible(first, 60)}` is in "
            "one of them only; set backbone.adapters to adaptformer or lora, as the file has it"
        )
    for name, tensor in parts.adapters.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"`{name}` has shape {list(tensor.shape)} in the file, {list(state[name].shape)} "
                "in the recipe; set backbone.adapters.width"
            )
    return Network(choice.name, dict(choice.args), {**state, **parts.adapters})


def fitting_recipe(
    recipe: Recipe, network: Network, parts: Parts, scale: float | None = None
) -> Recipe:
    """Return a recipe with a file's network, experts and kind of classifier.

    Args:
        recipe: to begin with.
        network: of the file.
        parts: of the file.
        scale: factor of a cosine classifier; ``None`` is that of the recipe.

    Raises:
        UserError: a scale is given, and the method has no cosine classifier.
    """
    tree = recipe.tree()
    backbone = tree["backbone"]
    if (network.name, network.args) != (backbone["name"], backbone.get("args") or {}):
        tree["backbone"] = {
            **{k: v for k, v in backbone.items() if k not in ("pretrained", "weights")},
            "name": network.name,
            "args": network.args,
        }
    count, kind = len(parts.classifiers), parts.classifiers[0].kind
    for stage in tree["stages"]:
        method = stage["method"]
        if "experts" in method and count > 1:
            method["experts"] = count
        if "branch_at" in method and parts.branch_at not in ("", "whole"):
            same = parts.branch_at == "layer3" and method["branch_at"] == "last"
            method["branch_at"] = method["branch_at"] if same else parts.branch_at
        if "scale" not in method:
            continue
        if kind == "linear" and method["name"] in NULLABLE:
            method["scale"] = None
        elif kind == "cosine" and method["scale"] is None:
            method["scale"] = USUAL_SCALE if scale is None else scale
    if scale is not None:
        last = tree["stages"][-1]["method"]
        if last.get("scale") is None:
            raise UserError(
                "`scale` is for cosine classifiers; that of the recipe's method has none: leave "
                "it out"
            )
        for stage in tree["stages"]:
            if stage["method"].get("scale") is not None:
                stage["method"]["scale"] = scale
    return build_recipe(tree)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.methods.base import Method

_NO_WEIGHTS = {"pretrained": False, "weights": None}  # the trained ones replace them anyway


def rebuild(facts: dict[str, Any], origin: str) -> Method:
    """Return the method that a description tells of, built as in training, with fresh weights.

    Args:
        facts: the description beside published weights.
        origin: what a message calls it.

    Raises:
        UserError: the description is incomplete or of another version.
    """
    import torch

    from ltbench.data.base import DatasetInfo
    from ltbench.trainer import build_method
    from ltbench.validation import build_recipe

    try:
        tree = facts["recipe"]
        info = DatasetInfo(
            facts["dataset"],
            tuple(facts["class_counts"]),
            tuple(facts["class_names"]),
            tuple(facts["mean"]),
            tuple(facts["std"]),
        )
        tree = {**tree, "backbone": {**tree["backbone"], **_NO_WEIGHTS}}
    except (KeyError, TypeError) as error:
        raise UserError(f"{origin} lacks `{error}`: not the description of a model") from error
    recipe = build_recipe(tree)
    method: Method | None = None
    for index in range(len(recipe.stages)):
        method = build_method(recipe, index, info, method)
    if method is None:
        raise UserError(f"{origin}: the recipe has no stage")
    # Kernels of the other layout round differently, and logits would not be the recorded ones.
    layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    return method.to(memory_format=layout)

"""Shorter schedules of the same shape."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from ltbench.errors import UserError
from ltbench.optim import Schedule
from ltbench.schema import EPOCHS, Config

if TYPE_CHECKING:
    from ltbench.recipe import Recipe


def with_epochs(recipe: Recipe, epochs: int, said: Container[str] = ()) -> Recipe:
    """Return a recipe whose longest stage has so many epochs, all that is counted in epochs alike.

    Warm-ups, milestones, windows of updates and beginnings of phases keep their share of the
    schedule, rounded, and last one epoch at least; a stage keeps so many that its learning rate is
    not 0 throughout. The record marks such a run as shortened.

    Args:
        recipe: the full schedule.
        epochs: of the longest stage, at least 1.
        said: dotted paths of values that were given beside ``epochs`` and stay as they are.

    Raises:
        UserError: ``epochs`` is not a positive number, the schedule has no epochs, or the length
            of its longest stage was given as well.
    """
    from ltbench.validation import build_recipe

    longest = max((stage.epochs or 0 for stage in recipe.stages), default=0)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"`epochs`: expected a number of epochs, at least 1, found {epochs!r}")
    if longest == 0:
        raise UserError(f"recipe `{recipe.name}` does not train: leave `epochs` out")
    for i, stage in enumerate(recipe.stages):
        if stage.epochs == longest and f"stages.{i}.epochs" in said:
            raise UserError(
                f"`epochs` = {epochs} and `stages.{i}.epochs` = {longest} both say how long the "
                "longest stage is; leave one of them out"
            )
    scaled = _scaled(recipe, epochs / longest, said, "")
    for i, stage in enumerate(scaled["stages"]):
        if stage["epochs"] is not None and f"stages.{i}.epochs" not in said:
            stage["epochs"] = Schedule(**stage["schedule"]).shortest(stage["epochs"])
    return build_recipe(scaled)


def _scaled(value: Any, factor: float, said: Container[str], path: str) -> Any:
    """Return plain data in which every number of epochs is multiplied, but for those ``said``."""
    from ltbench.recipe import Choice

    if isinstance(value, Choice):
        return {"name": value.name, **_scaled(value.config, factor, said, path)}
    if isinstance(value, Config):
        plain = {}
        for name, field in type(value).model_fields.items():
            extra, own = field.json_schema_extra, getattr(value, name)
            counted = isinstance(extra, dict) and extra.get("unit") == EPOCHS["unit"]
            at = f"{path}.{name}" if path else name
            if counted:
                plain[name] = own if at in said else _epochs(own, factor)
            else:
                plain[name] = _scaled(own, factor, said, at)
        return plain
    if isinstance(value, dict):
        return {k: _scaled(v, factor, said, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scaled(v, factor, said, f"{path}.{i}") for i, v in enumerate(value)]
    return value


def _epochs(value: Any, factor: float) -> Any:
    if isinstance(value, dict):  # by epoch
        return {_epochs(k, factor): v for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_epochs(v, factor) for v in value]
    return max(1, round(value * factor)) if value else value

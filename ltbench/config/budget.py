"""Shortened schedules of the same shape."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from typing import Any

from pydantic import ValidationError

from ltbench.config.optim import Schedule
from ltbench.config.recipe import Choice, Recipe
from ltbench.config.schema import EPOCHS, MOST_EPOCHS, Config
from ltbench.config.validation import build_recipe
from ltbench.errors import UserError, brief


def with_epochs(recipe: Recipe, epochs: int, said: Container[str] = ()) -> Recipe:
    """Rescale a recipe so that its longest stage has ``epochs`` epochs.

    All fields counted in epochs scale alike (warm-ups, milestones, windows of updates, starts of
    phases), rounded, to at least one epoch; a stage keeps enough epochs for a learning rate that is
    not always 0. The record marks such a run as shortened.

    Args:
        recipe: the full schedule.
        epochs: epochs of the longest stage, at least 1.
        said: dotted paths of explicitly given values, which are not scaled.

    Raises:
        UserError: ``epochs`` is not a positive number, the schedule has no epochs, or the length
            of its longest stage was given as well.
    """
    longest = max((stage.epochs or 0 for stage in recipe.stages), default=0)
    if isinstance(epochs, bool) or epochs not in range(1, MOST_EPOCHS + 1):
        raise UserError(
            f"`epochs`: expected a whole number from 1 to {MOST_EPOCHS:,}, found {brief(epochs)}"
        )
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
            with contextlib.suppress(ValidationError):  # of a field out of its range: said below
                stage["epochs"] = Schedule(**stage["schedule"]).shortest(stage["epochs"])
    return build_recipe(scaled)


def _scaled(value: Any, factor: float, said: Container[str], path: str) -> Any:
    """Return plain data with all epoch counts multiplied by ``factor``, except those ``said``."""
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
    if isinstance(value, dict):  # keyed by epoch
        return {_epochs(k, factor): v for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_epochs(v, factor) for v in value]
    return max(1, round(value * factor)) if value else value

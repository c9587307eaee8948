from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

EPOCHS: dict[str, Any] = {"unit": "epochs"}  # fields counted in epochs, which scale with a budget
# Fields added after records existed: part of the digest only if they differ from their default,
# which reproduces the previous behaviour.
ADDED: dict[str, Any] = {"digest": "unless default"}


class Config(BaseModel):
    """Base class of all options: unknown keys are errors, values are validated and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: ClassVar[int] = 0
    """Increased when the same options start to compute something else; from 1 on, part of digests
    and of resolved recipes in records. Recipes need not set it."""

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the given values completed with implied ones, e.g. the presets of a mode."""
        return values


class Tagged:
    """Annotation of a field with value ``{name: x, ...}``, validated against the options of ``x``.

    Args:
        registry: name of the registry of ``x`` (see ``ltbench.config.registry``).
    """

    def __init__(self, registry: str) -> None:
        self.registry = registry

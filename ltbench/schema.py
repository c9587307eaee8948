from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

EPOCHS: dict[str, Any] = {"unit": "epochs"}  # fields that count epochs: they follow a budget
# Fields that came after records existed: they count in the digest only where they are not at their
# default, which computes what was computed before.
ADDED: dict[str, Any] = {"digest": "unless default"}


class Config(BaseModel):
    """Base of every set of options: unknown keys are errors, values are checked and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: ClassVar[int] = 0
    """Raised when the same options come to compute something else; part of digests, and of the
    resolved recipes in records, from 1 on. A recipe need not name it."""

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return given values, and those that another one implies (a mode's presets)."""
        return values


class Tagged:
    """Marks a field whose value is ``{name: x, ...}``, checked against the options of ``x``.

    Args:
        registry: name of the registry in ``ltbench.registries`` that knows ``x``.
    """

    def __init__(self, registry: str) -> None:
        self.registry = registry

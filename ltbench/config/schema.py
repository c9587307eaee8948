from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

EPOCHS: dict[str, Any] = {"unit": "epochs"}  # fields counted in epochs, which scale with a budget
# Fields added after records existed: part of the digest only if they differ from their default,
# which reproduces the previous behaviour.
ADDED: dict[str, Any] = {"digest": "unless default"}
# Files that a run reads: their content is part of the digest, not their place.
CONTENT: dict[str, Any] = {"digest": "content"}
UNSEEN: dict[str, Any] = {"unseen": "if default"}  # fields that trees leave out at their default
NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"  # of a recipe or file; never climbs out of its folder
NAME_LENGTH = 120  # characters, so that a folder's name has room for the digest as well
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # half characters too
DEEPEST = 32  # lists and mappings inside each other
MOST_EPOCHS = 1_000_000  # of a stage
MOST = 2**31 - 1  # of counts that no computation comes near


class Config(BaseModel):
    """Base class of all options: unknown keys are errors, values are validated and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    revision: ClassVar[int] = 0
    """Increased when the same options start to compute something else; from 1 on, part of digests
    and of resolved recipes in records. Recipes need not set it."""

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the given values completed with implied ones, e.g. the presets of a mode."""
        return values

    def problems(self, epochs: int | None) -> list[str]:
        """Return the problems of these options in a stage of `epochs` epochs, one line each."""
        return []


class Tagged:
    """Annotation of a field with value ``{name: x, ...}``, validated against the options of ``x``.

    Args:
        registry: name of the registry of ``x`` (see ``ltbench.config.registry``).
    """

    def __init__(self, registry: str) -> None:
        self.registry = registry

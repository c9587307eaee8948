"""Facts about training data that lie beside published weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError, visible

MOST_CLASSES = 1_000_000


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    dataset: str = Field(pattern=r"^[A-Za-z0-9_][\w.-]{0,99}$")
    class_counts: tuple[Annotated[int, Field(ge=0, lt=10**12)], ...] = Field(
        min_length=1, max_length=MOST_CLASSES
    )
    class_names: tuple[Annotated[str, Field(max_length=1000)], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _consistent(self) -> _Facts:
        if len(self.class_names) != len(self.class_counts):
            raise ValueError(
                f"{len(self.class_names)} class names for {len(self.class_counts)} classes"
            )
        if min(self.std) <= 0:
            raise ValueError("`std` must be positive")
        return self


def described_data(facts: Mapping[str, Any], origin: str) -> DatasetInfo:
    """Return the training data's facts from a description of weights, types and ranges checked.

    Args:
        facts: description as plain data.
        origin: name of the model in messages.

    Raises:
        UserError: a fact is missing, of another type, or not possible.
    """
    names = _Facts.model_fields
    given = {name: _tuple(facts[name]) for name in names if name in facts}
    try:
        found = _Facts.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{visible(origin)} is not the description of a model: "
            f"{f'`{where}`: ' if where else ''}{said}; download or export it again"
        ) from error
    return DatasetInfo(found.dataset, found.class_counts, found.class_names, found.mean, found.std)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

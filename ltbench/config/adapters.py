"""Options of the adapters inside a pretrained network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ltbench.config.schema import Config

WIDEST = 65_536


class Adapters(Config):
    """Trained layers inside the blocks of a pretrained vision transformer."""

    name: Literal["adaptformer", "lora"] = "adaptformer"
    """adaptformer: a bottleneck beside the perceptron of each block; lora: low-rank additions to
    the queries and values of each block, which can be merged into the weights."""
    width: int | None = Field(None, ge=1, le=WIDEST)
    """Width of the bottleneck, or rank; null is the largest power of two up to C / (divisor L), of
    C classes and L blocks, at least 1."""
    divisor: Literal[2, 4] = 2
    """Divisor of the default width: 2, or 4 for lora in LIFT+."""
    init: Literal["kaiming_normal", "kaiming_uniform"] = "kaiming_normal"
    """Initial weights of the first layer of adaptformer, kaiming_uniform in LIFT+; its second
    layer begins as 0."""

    @model_validator(mode="after")
    def _own_options(self) -> Adapters:
        if self.name == "lora" and self.init != "kaiming_normal":
            raise ValueError("init is an option of `adaptformer`; leave it out with `lora`")
        return self

"""Options of a stage's optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ltbench.config.schema import ADDED, EPOCHS, MOST_EPOCHS, Config


class Optim(Config):
    """Optimizer of a stage; the learning rate is never rescaled."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    lr: float = Field(gt=0)
    """Base learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; first beta of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of all trained parameters, norms and biases included, as is common."""
    nesterov: bool = False
    """Nesterov momentum (SGD only)."""
    lr_factors: dict[str, float] = Field(default_factory=dict)
    """Multipliers of the learning rate by prefix of parameter names, e.g. {head: 0.2}; names in the
    backbone also refer to their counterparts in all branches."""


class Schedule(Config):
    """Learning-rate factor by epoch, general enough for all schedules of the literature.

    Reference: the schedules of the released codes, including their warm-up and off-by-one
        differences, called S-LDAM, S-GCL, S-PLOT, S-BBN, S-cos, S-cos-early and S-warmcos here.
    """

    name: Literal["constant", "multistep", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup: int = Field(0, ge=0, le=MOST_EPOCHS, json_schema_extra=EPOCHS)
    """Epochs of linear warm-up."""
    warmup_from: float = Field(0.0, ge=0, le=1)
    """Initial factor of the warm-up."""
    warmup_shift: Literal[0, 1] = 1
    """1: the first epoch is one step above `warmup_from`; 0: it is at `warmup_from`."""
    warmup_extra: Literal[0, 1] = Field(0, json_schema_extra=ADDED)
    """1: the warm-up line continues for one epoch beyond its end, above the base rate."""
    warmup_reach: Literal["last", "next"] = Field("last", json_schema_extra=ADDED)
    """Epoch in which the warm-up reaches the base rate: its last one, or the one after it."""
    milestones: tuple[int, ...] = Field((), max_length=100, json_schema_extra=EPOCHS)
    """0-based epochs at which `gamma` is applied (multistep)."""
    gamma: float = Field(0.1, gt=0, le=10)
    """Factor at each milestone (multistep)."""
    shift: Literal[0, 1] = 0
    """1: the scheduler steps before the epoch, so that each change occurs one epoch early."""
    tail: Literal[0, 1] = 0
    """1: the cosine is stretched by one epoch and ends above 0."""
    floor: float = Field(0.0, ge=0, le=1, json_schema_extra=ADDED)
    """Factor at which the cosine ends."""

    late: Literal[0, 1] = Field(0, json_schema_extra=ADDED)
    """1: the rate is set after each epoch, so that the first runs at the base rate and every other
    at that of the epoch before it."""

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor of the base rate in epoch ``epoch`` (0-based) of ``epochs``."""
        if self.late:
            epoch -= 1
        if epoch < 0:
            return 1.0
        if epoch < self.warmup + (self.warmup_extra if self.warmup else 0):
            steps = self.warmup - (self.warmup_reach == "last") + self.warmup_shift
            done = (epoch + self.warmup_shift) / max(1, steps)
            return self.warmup_from + (1 - self.warmup_from) * done
        at = epoch + self.shift
        if self.name == "multistep":
            return self.gamma ** sum(at >= m for m in self.milestones)
        if self.name == "cosine":
            span = epochs - self.warmup + self.tail
            cosine = 0.5 * (1 + math.cos(math.pi * (at - self.warmup) / span))
            return self.floor + (1 - self.floor) * cosine if self.floor else cosine
        return 1.0

    def shortest(self, epochs: int) -> int:
        """Return the smallest number of epochs >= ``epochs`` whose rates are not all 0, if any."""
        for longer in range(epochs, epochs + 4):  # warm-up, `shift` and the cosine's end: 3 at most
            if any(self.factor(e, longer) >= 1e-9 for e in range(min(longer, 1000))):
                return longer
        return epochs

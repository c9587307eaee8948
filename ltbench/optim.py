from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ltbench.errors import UserError
from ltbench.schema import ADDED, EPOCHS, Config

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Optim(Config):
    """Optimizer of a stage; the learning rate is used as written, never rescaled."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    """Base learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; first beta of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Applied to all trained parameters, norms and biases included, as the field does."""
    nesterov: bool = False
    lr_factors: dict[str, float] = Field(default_factory=dict)
    """Multiplier of the rate for parameters whose name starts with the key, e.g. {head: 0.2};
    names of the backbone mean its counterparts in all branches."""


class Schedule(Config):
    """Learning-rate factor by epoch; every schedule of the literature is one choice of fields.

    Reference: the rules named S-LDAM, S-GCL, S-PLOT, S-BBN, S-cos, S-cos-early and S-warmcos
        by this suite; they are the released codes' schedules, warm-up and off-by-one included.
    """

    name: Literal["constant", "multistep", "cosine"] = "constant"
    warmup: int = Field(0, ge=0, json_schema_extra=EPOCHS)
    """Epochs of linear warm-up."""
    warmup_from: float = Field(0.0, ge=0, le=1)
    """Factor that the warm-up starts from."""
    warmup_shift: Literal[0, 1] = 1
    """1: the first epoch is one step above `warmup_from`; 0: it is at `warmup_from`."""
    warmup_extra: Literal[0, 1] = Field(0, json_schema_extra=ADDED)
    """1: the line of the warm-up goes on for one epoch beyond its end, above the base rate."""
    milestones: tuple[int, ...] = Field((), json_schema_extra=EPOCHS)
    """0-based epochs at which `gamma` is applied (multistep)."""
    gamma: float = Field(0.1, gt=0)
    shift: Literal[0, 1] = 0
    """1: the scheduler steps before the epoch, so each rule acts one epoch early."""
    tail: Literal[0, 1] = 0
    """1: the cosine is stretched by one epoch and ends above 0."""

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the multiplier of the base rate in a 0-based epoch of ``epochs``."""
        if epoch < self.warmup + (self.warmup_extra if self.warmup else 0):
            done = (epoch + self.warmup_shift) / max(1, self.warmup - 1 + self.warmup_shift)
            return self.warmup_from + (1 - self.warmup_from) * done
        at = epoch + self.shift
        if self.name == "multistep":
            return self.gamma ** sum(at >= m for m in self.milestones)
        if self.name == "cosine":
            span = epochs - self.warmup + self.tail
            return 0.5 * (1 + math.cos(math.pi * (at - self.warmup) / span))
        return 1.0

    def shortest(self, epochs: int) -> int:
        """Return the smallest number of epochs, from ``epochs`` up, not all at rate 0."""
        while max(self.factor(e, epochs) for e in range(epochs)) < 1e-9:
            epochs += 1
        return epochs


def begins(name: str, prefix: str) -> bool:
    """Whether a parameter's name begins with the parts of a prefix: `head` begins `head.bias`."""
    return f"{name}.".startswith(f"{prefix}.")


def parameter_groups(
    named: Iterable[tuple[str | tuple[str, ...], nn.Parameter]], optim: Optim
) -> list[dict[str, Any]]:
    """Group trained parameters by learning-rate factor, in their own order.

    Args:
        named: parameters with their names; of several, the first counts where keys are as long.
        optim: whose ``lr_factors`` are used, the longest key that fits.

    Raises:
        UserError: a key of ``lr_factors`` matches no trained parameter.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    unused = set(optim.lr_factors)
    for names, parameter in named:
        own = (names,) if isinstance(names, str) else names
        keys = [k for name in own for k in optim.lr_factors if begins(name, k)]
        unused -= set(keys)
        factor = optim.lr_factors[max(keys, key=len)] if keys else 1.0
        groups.setdefault(factor, []).append(parameter)
    if unused:
        raise UserError(
            f"`optim.lr_factors` names `{sorted(unused)[0]}`, but no trained parameter starts so; "
            "use the first parts of a parameter's name, e.g. `backbone` or `head`"
        )
    return [{"params": params, "factor": factor} for factor, params in groups.items()]


def build_optimizer(
    named: Iterable[tuple[str | tuple[str, ...], nn.Parameter]], optim: Optim
) -> Optimizer:
    """Return the optimizer of a stage over its trained parameters; see ``parameter_groups``."""
    import torch

    groups = parameter_groups(named, optim)
    for group in groups:
        group["lr"] = optim.lr * group["factor"]
    if optim.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=optim.lr, betas=(optim.momentum, 0.999), weight_decay=optim.weight_decay
        )
    return torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov and optim.momentum > 0,
    )


def set_lr(optimizer: Optimizer, optim: Optim, factor: float) -> float:
    """Set every group's rate for an epoch and return the base rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group["factor"] * factor
    return optim.lr * factor

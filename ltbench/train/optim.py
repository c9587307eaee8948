from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ltbench.config.optim import Optim
from ltbench.errors import UserError
from ltbench.methods.base import begins

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def parameter_groups(
    named: Iterable[tuple[str | tuple[str, ...], nn.Parameter]], optim: Optim
) -> list[dict[str, Any]]:
    """Group trained parameters by learning-rate factor, in their order.

    Args:
        named: parameters with their names; the first of several names wins if keys tie in length.
        optim: options with ``lr_factors``, of which the longest matching key applies.

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
            f"`optim.lr_factors`: no trained parameter begins with `{sorted(unused)[0]}`; "
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
    """Set the learning rate of every group and return the base rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group["factor"] * factor
    return optim.lr * factor

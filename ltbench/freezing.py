"""Which parts of a method a stage begins anew, trains and normalises in which mode."""

from __future__ import annotations

from torch import nn

from ltbench.backbones.batchnorm import scale_and_shift, set_batchnorm_mode
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.optim import begins
from ltbench.recipe import BatchNormPolicy, Stage


def freeze(method: Method, stage: Stage, batchnorm: BatchNormPolicy = "local") -> list[nn.Module]:
    """Mark which parameters a stage trains and return the modules that are wholly frozen.

    Args:
        method: of the stage.
        stage: says which parts are frozen.
        batchnorm: says whether batch normalisation is trained; its layers are not among the
            modules returned for that alone.

    Raises:
        UserError: a frozen part does not exist, or nothing is left to train.
    """
    prefixes = method.freeze if stage.freeze is None else stage.freeze
    stages = {*method.backbone.stages, "last"}
    trained_bn = {id(p) for p in scale_and_shift(method)} if stage.frozen_bn == "trained" else set()
    frozen: set[int] = set()
    for prefix in prefixes:
        found = [p for names, p in method.known_as() if any(begins(n, prefix) for n in names)]
        if not found and prefix in stages:
            found = method.parameters_of(prefix)
        if not found:
            raise UserError(
                f"`freeze`: nothing is called `{prefix}`; use a stage of the backbone "
                f"({', '.join(method.backbone.stages)}, last), `backbone`, or the first parts of a "
                "parameter's name"
            )
        frozen |= {id(p) for p in found} - (trained_bn if prefix not in method.freeze else set())
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    if batchnorm in ("frozen", "statistics"):
        for parameter in scale_and_shift(method):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in method.parameters()):
        raise UserError("`freeze` leaves nothing to train; name fewer parts")
    return [
        module
        for module in method.modules()
        if (own := list(module.parameters())) and all(id(p) in frozen for p in own)
    ]


def reset(method: Method, prefix: str) -> list[nn.Module]:
    """Begin the modules anew whose names start with ``prefix``, and return them.

    Layers begin as PyTorch initialises them. A name of the backbone means its counterparts in all
    branches.

    Raises:
        UserError: no module of that name has initial weights.
    """
    named = {id(p) for names, p in method.known_as() if any(begins(n, prefix) for n in names)}
    found = {
        module: begin
        for module in method.modules()
        if callable(begin := getattr(module, "reset_parameters", None))
        and not named.isdisjoint(id(p) for p in module.parameters(recurse=False))
    }
    if not found:
        raise UserError(
            f"`reset`: no layer is called `{prefix}`; use the first parts of a module's name, e.g. "
            "`backbone.net.layer4.2`"
        )
    for begin in found.values():
        begin()
    return list(found)


def set_modes(
    method: Method,
    stage: Stage,
    frozen: list[nn.Module],
    batchnorm: BatchNormPolicy = "local",
) -> None:
    """Put the method in training mode, and batch normalisation as asked."""
    method.train()
    chosen = stage.frozen_bn or method.frozen_bn
    modes = {"": method.frozen_bn, **chosen} if isinstance(chosen, dict) else {"": chosen}
    names = {module: name for name, module in method.named_modules()}
    for prefix in sorted(modes, key=len):
        for module in frozen:
            if not prefix or begins(names[module], prefix):
                set_batchnorm_mode(module, "eval" if modes[prefix] == "eval" else "train")
    if batchnorm == "frozen":
        set_batchnorm_mode(method, "eval")

"""Frozen parameters and batch-normalisation modes of a stage."""

from __future__ import annotations

from torch import nn

from ltbench.config.recipe import BatchNormPolicy, Stage
from ltbench.errors import UserError
from ltbench.methods.base import Method, begins, lies_in
from ltbench.models.adapters import NAME
from ltbench.models.batchnorm import scale_and_shift, set_batchnorm_mode


def freeze(method: Method, stage: Stage, batchnorm: BatchNormPolicy = "local") -> list[nn.Module]:
    """Set ``requires_grad`` of all parameters and return the modules that are entirely frozen.

    Args:
        method: method of the stage.
        stage: the stage, with its frozen parts.
        batchnorm: policy of batch normalisation; layers frozen only by it are not returned.

    Raises:
        UserError: a frozen part does not exist, or no parameter is left to train.
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
    frozen -= _kept(method, stage)
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    if batchnorm in ("frozen", "statistics"):
        for parameter in scale_and_shift(method):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in method.parameters()):
        raise UserError("`freeze` leaves nothing to train; freeze fewer parts")
    return [
        module
        for module in method.modules()
        if (own := list(module.parameters())) and all(id(p) in frozen for p in own)
    ]


def _kept(method: Method, stage: Stage) -> set[int]:
    """Return the parameters that are trained although they lie in frozen parts.

    Raises:
        UserError: a part that the stage names does not exist.
    """
    kept: set[int] = set()
    for part in method.but if stage.but is None else stage.but:
        found = [p for names, p in method.known_as() if any(lies_in(n, part) for n in names)]
        if not found and part in {*method.backbone.stages, "last"}:
            found = method.parameters_of(part)
        if not found and stage.but is not None:
            hint = (
                "the backbone has no adapters: add backbone.adapters=adaptformer"
                if part == NAME
                else "use parts of a parameter's name, or a stage of the backbone"
            )
            raise UserError(f"`but`: nothing is called `{part}`; {hint}")
        kept |= {id(p) for p in found}
    return kept


def set_modes(
    method: Method,
    stage: Stage,
    frozen: list[nn.Module],
    batchnorm: BatchNormPolicy = "local",
) -> None:
    """Set training mode, and the mode of batch normalisation of the stage."""
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

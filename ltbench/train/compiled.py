"""Passes of a backbone's stages, compiled (``run.compile=inductor``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ltbench.config.recipe import Choice
from ltbench.errors import UserError
from ltbench.methods.base import Method

RECOMPILE_LIMIT = 64  # variants of one function: stages, modes of normalisation, passes
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CompiledStages:
    """Stages of a backbone whose forward passes are compiled, at the first one.

    Only inside ``active``: evaluation, short batches, copies and a method's own passes run the
    modules as they are. So does a stage while something is hooked to its layers, e.g. to record
    what enters them.

    Args:
        method: method with the backbone.
        stages: names of its stages.
        backend: of ``torch.compile``.
    """

    def __init__(self, method: Method, stages: Sequence[str], backend: str = "inductor") -> None:
        import torch._dynamo.config as dynamo
        import torch._functorch.config as functorch

        functorch.donated_buffer = False  # a graph is walked again, for gradients of another part
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
        self.calls: list[tuple[nn.Module, Callable[..., Any]]] = [
            (module, torch.compile(module.forward, backend=backend, dynamic=False))
            for stage in stages
            for module in method.backbone.modules_of(stage)
            if any(True for child in module.children() for _ in child.parameters())
            # in single layers, and in pooling, there is nothing to fuse
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use the compiled passes inside the block."""
        free = [(module, call) for module, call in self.calls if not _hooked(module)]
        for module, call in free:
            module.forward = call
        try:
            yield
        finally:
            for module, _ in free:
                del module.forward


def compiled_stages(method: Method, update: Choice) -> list[str]:
    """Return the stages that are compiled under an update.

    Under PLOT they are those before its part, whose layers it records and differentiates by class;
    under an update that is not known here there are none.

    Args:
        method: of the training stage.
        update: of the training stage.
    """
    stages = list(method.backbone.stages)
    if update.name in ("plain", "sam", "focal_sam", "imb_sam"):
        return stages
    part = getattr(update.config, "part", ()) if update.name == "plot" else "whole"
    names = {part} if isinstance(part, str) else set(part)
    if names & {"whole", "backbone"}:
        return []
    places = [stages.index(name) for name in names if name in stages]
    places += [len(stages) - 1] if "last" in names else []
    return stages[: min(places, default=len(stages))]


def check_compiler(device: torch.device, how: str = "inductor") -> None:
    """Check that what ``run.compile`` needs on a device is there.

    Args:
        device: of the training.
        how: ``inductor`` or ``graphs``.

    Raises:
        UserError: it is not.
    """
    if how == "graphs":
        if device.type != "cuda":
            raise UserError(
                f"`run.compile=graphs` captures training steps in CUDA graphs and needs a GPU; the "
                f"device is {device.type}: leave run.compile out, or use run.compile=inductor"
            )
        return
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError(
            "`run.compile=inductor` needs Triton on a GPU; pip install triton, or leave it out"
        )
    variable, usual = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else _CXX
    names = (os.environ[variable],) if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"`run.compile=inductor` needs a compiler ({', '.join(names)}), found none; install "
            f"one, name it by the variable {variable}, or leave run.compile out"
        )


_CXX = ("CXX", ("g++", "clang++"))  # what TorchInductor calls for a CPU


def _hooked(module: nn.Module) -> bool:
    """Return whether a hook is registered on a module inside another one, or on it."""
    return any(getattr(inner, name) for inner in module.modules() for name in HOOKS)

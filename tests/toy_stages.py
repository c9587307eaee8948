"""Toy stages of every method, stepped under every update."""

from __future__ import annotations

import toys

from ltbench.config import validation
from ltbench.config.optim import Optim
from ltbench.config.recipe import Choice, Stage
from ltbench.train.freezing import freeze, set_modes
from ltbench.train.optim import build_optimizer
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun

KINDS = {
    "plain": ("plain", {}),
    "sam": ("sam", {"rho": 0.05}),
    "focal-sam": ("focal_sam", {"rho": 0.05}),
    "imb-sam": ("imb_sam", {"rho": 0.05}),
    "plot-cagrad": ("plot", {"part": "last"}),
    "plot-mgda": ("plot", {"solver": {"name": "mgda"}, "collapse_weight": 0.0}),
    "plot-pcgrad": ("plot", {"solver": "pcgrad", "part": "whole"}),
    "plot-epo": ("plot", {"solver": "epo", "rho": 0.0}),
    "plot-official": ("plot", {"mode": "official"}),
    "plot-exact": ("plot", {"class_gradients": "exact", "solver": "mean"}),
    "plot-certified": ("plot", {"class_gradients": "certified", "rounds": 2}),
    "plot-sampled": ("plot", {"max_classes": 2, "class_gradient": "class_mean"}),
}


def stage_of(name: str) -> Stage:
    options = validation.build_options("METHODS", name, toys.OPTIONS.get(name, {}))
    instance = validation.build_options("SAMPLERS", "instance", {})
    plain = validation.build_options("UPDATES", "plain", {})
    return Stage(
        method=Choice(name, options),
        epochs=5,
        batch_size=24,
        optim=Optim(lr=0.05),
        sampler=Choice("instance", instance),
        update=Choice("plain", plain),
    )


def ready(name: str, **kw):
    method = toys.method(name, **kw)
    stage = stage_of(name)
    frozen = freeze(method, stage)
    set_modes(method, stage, frozen)
    named = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    return method, StepRun(method, build_optimizer(named, Optim(lr=0.05, momentum=0.9)))


def make_update(key: str, method):
    name, options = KINDS[key]
    options = dict(options)
    if name == "plot" and not any(p.requires_grad for p in method.backbone.parameters()):
        options.pop("mode", None)  # a frozen backbone: the head is what can be controlled
        options["part"] = "head"
    return UPDATES.get(name)(validation.build_options("UPDATES", name, options))

"""Tiny problems shared by the tests: a long tail of blobs on 8x8 images, a small conv network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Method, Progress
from ltbench.models.backbone import Backbone
from ltbench.updates.base import Log, StepRun, Update

COUNTS = (60, 30, 12, 5)
INFO = DatasetInfo("toy", COUNTS, ("a", "b", "c", "d"))
FRESH = ["m2m"]  # begin anew; the stage before is their helper
BEFORE = {"shike_stage2": "shike"}  # the method of the stage before, where `ce` will not do
POSTHOC = [name for name, part in METHODS.parts().items() if not part.trains]
STAGE2 = [name for name in METHODS.parts() if METHODS.get(name).kind == "two-stage"] + FRESH
STAGE1 = [name for name in METHODS.parts() if name not in STAGE2 + POSTHOC]
# What moves without being trained by the update, or in later epochs only.
ALONE = {"paco": "twin", "difficulty_net": "net", "rsg": "pairs"}
OPTIONS: dict[str, dict[str, Any]] = {
    "mislas": {"smooth_head": 0.3, "smooth_tail": 0.0},
    "ldam_drw": {"reweight_from": 0},
    "class_balanced": {"reweight_from": 0},
    "bbn": {"branch_at": "last"},
    "ride": {"branch_at": "layer1", "reweight_from": 0},
    "sade": {"branch_at": "layer1"},
    "dirmixe": {"branch_at": "layer1", "draws": 6, "penalty_from": 0, "penalty": 0.1},
    "etf": {"lengths": "batch"},
    "balpoe": {"branch_at": "layer1"},
    "mdcs": {"branch_at": "layer1"},
    "rsg": {"generate_from": 0, "reweight_from": 0, "centers": 3},
    "m2m": {"generate_from": 0, "gamma": 0.0, "beta": 0.5},  # most searches are accepted
    "cc_sam": {"noise": 0.5},
    "paco": {"queue": 44, "dim": 8},
    "gpaco": {"queue": 44, "dim": 8},
    "bcl": {"dim": 8},
    "proco": {"dim": 8},
    "ncl": {"hard": 2},
    "nclpp": {"hard": 2, "copies": 2},
    "difficulty_net": {"hidden": 8},
}

# Facts of a checkpoint, as a run writes them.
FACTS = {
    "digest": "0" * 16,
    "seed": 0,
    "stage": 0,
    "history": [{"epoch": 1.0, "loss": None}],
    "worlds": [1],
    "worlds_from": ["stage 0, epoch 0, step 0"],
    "threads": [1],
    "seconds": 1.5,
    "optimizer": {"lr": 0.1},
    "resume": {"torch": "2"},
}


def images(n: int, seed: int = 0, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class shows as a bright quarter, labels drawn by class counts."""
    rng = np.random.default_rng(seed)
    labels = torch.tensor(rng.choice(len(COUNTS), size=n, p=np.array(COUNTS) / sum(COUNTS)))
    labels[: len(COUNTS)] = torch.arange(len(COUNTS))  # every class is present
    x = torch.tensor(rng.normal(size=(n, 3, size, size)) * 0.5, dtype=torch.float32)
    half = size // 2
    for i, k in enumerate(labels.tolist()):
        x[i, :, half * (k // 2) : half * (k // 2 + 1), half * (k % 2) : half * (k % 2 + 1)] += 2.0
    return x, labels


def batch(n: int = 24, seed: int = 0) -> Batch:
    x, y = images(n, seed)
    return Batch((x,), y, torch.arange(n))


def dressed(plain: Batch, method: Method) -> Batch:
    """The batch with the views and streams that a method needs, each a function of the batch."""
    x = plain.views[0]
    views = tuple(x * (1 - 0.2 * view) for view in range(method.views))
    streams = {
        name: Batch(
            tuple(x.flip(2) * (1 + 0.1 * (i + view)) for view in range(stream.views)),
            plain.labels,
            plain.index,
        )
        for i, (name, stream) in enumerate(method.streams_for(method.config).items())
    }
    return replace(plain, views=views, streams=streams)


def step(update: Update, run: StepRun, micro: list[Batch], at: Progress) -> Log:
    """What the trainer does for one step."""
    method = run.method
    if at.step == 0:
        method.on_epoch(at)
    micro = [
        method.prepare(dressed(part, method), replace(at, micro=i)) for i, part in enumerate(micro)
    ]
    log = update.step(run, micro, at)
    method.after_step(micro, at)
    return log


def backbone(norm: bool = True, seed: int = 0) -> Backbone:
    """Three small stages; without normalisation, ranks agree exactly with one process."""
    torch.manual_seed(seed)

    def block(i: int, o: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(i, o, 3, 2, 1, bias=not norm)]
        layers += [nn.BatchNorm2d(o)] if norm else []
        return nn.Sequential(*layers, nn.Tanh())

    return Backbone.from_stages(
        {"stem": block(3, 6), "layer1": block(6, 8), "layer2": block(8, 12)},
        num_features=12,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def method(name: str, norm: bool = True, seed: int = 0):
    """A method on the tiny network, on top of another stage where it needs one."""
    cls = METHODS.get(name)
    options = validation.build_options("METHODS", name, OPTIONS.get(name, {}))
    net = backbone(norm, seed)
    torch.manual_seed(seed + 1)
    previous = None
    if name in STAGE2 + POSTHOC:
        first = BEFORE.get(name, "ce")
        given = validation.build_options("METHODS", first, OPTIONS.get(first, {}))
        previous = METHODS.get(first)(given, net, INFO)
    if name in FRESH:
        net = backbone(norm, seed + 7)
    try:
        return cls(options, net, INFO, previous)
    except UserError as error:
        raise AssertionError(
            f"{name}: {error}\n(a method that continues a stage has `kind` two-stage, or is in "
            "FRESH of tests/toys.py; options that suit four classes are in OPTIONS there)"
        ) from error


def at(step: int = 0, epoch: int = 0) -> Progress:
    return Progress(seed=0, stage=0, epoch=epoch, epochs=5, step=step, lr=0.05)

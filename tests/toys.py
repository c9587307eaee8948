"""Tiny problems shared by the tests: a long tail of blobs on 8x8 images, a small conv network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ltbench import registries, validation
from ltbench.backbones.base import Backbone
from ltbench.data.base import DatasetInfo
from ltbench.methods.base import Batch, Progress

COUNTS = (60, 30, 12, 5)
INFO = DatasetInfo("toy", COUNTS, ("a", "b", "c", "d"))
STAGE1 = ["ce", "mixup", "ldam_drw", "balanced_softmax", "logit_adjustment"]
STAGE2 = ["crt", "lws", "mislas", "plot_stage2"]
POSTHOC = ["tau_norm", "logit_adjustment_posthoc"]
OPTIONS = {"mislas": {"smooth_head": 0.3, "smooth_tail": 0.0}, "ldam_drw": {"reweight_from": 0}}


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


def backbone(norm: bool = True, seed: int = 0) -> Backbone:
    """Three small stages; without normalisation, ranks agree exactly with one process."""
    torch.manual_seed(seed)

    def block(i: int, o: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(i, o, 3, 2, 1, bias=not norm)]
        layers += [nn.BatchNorm2d(o)] if norm else []
        return nn.Sequential(*layers, nn.Tanh())

    last = nn.Sequential(block(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone.from_stages(
        {"stem": block(3, 6), "layer1": block(6, 8), "layer2": last}, num_features=12
    )


def method(name: str, norm: bool = True, seed: int = 0):
    """A method on the tiny network, on top of a cross-entropy stage where it needs one."""
    cls = registries.METHODS.get(name)
    options = validation.build_options("METHODS", name, OPTIONS.get(name, {}))
    net = backbone(norm, seed)
    torch.manual_seed(seed + 1)
    previous = None
    if name in STAGE2 + POSTHOC:
        ce = registries.METHODS.get("ce")
        previous = ce(validation.build_options("METHODS", "ce", {}), net, INFO)
    return cls(options, net, INFO, previous)


def at(step: int = 0, epoch: int = 0) -> Progress:
    return Progress(seed=0, stage=0, epoch=epoch, epochs=5, step=step)

"""Titles of data sets, backbones and methods as the literature writes them, and matching them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

DATASETS = {
    "cifar10_lt": "CIFAR-10-LT",
    "cifar100_lt": "CIFAR-100-LT",
    "imagenet_lt": "ImageNet-LT",
    "places_lt": "Places-LT",
    "inat18": "iNaturalist-2018",
    "digits_lt": "Digits-LT",
}

METHODS = {
    "ce": "CE",
    "mixup": "Mixup",
    "ldam_drw": "LDAM-DRW",
    "balanced_softmax": "Balanced Softmax",
    "logit_adjustment": "Logit Adjustment",
    "logit_adjustment_posthoc": "Logit Adjustment (post-hoc)",
    "crt": "cRT",
    "crt_mixup": "cRT+Mixup",
    "lws": "LWS",
    "tau_norm": "tau-norm",
    "mislas": "MiSLAS",
    "focal": "Focal Loss",
    "class_balanced": "Class-Balanced CE",
    "vs": "VS",
    "lade": "LADE",
    "gcl": "GCL",
    "disalign": "DisAlign",
    "cc_sam": "CC-SAM",
    "bbn": "BBN",
    "reslt": "ResLT",
    "ride": "RIDE",
    "sade": "SADE",
    "rsg": "RSG",
    "paco": "PaCo",
    "bcl": "BCL",
    "m2m": "M2m",
    "difficulty_net": "Difficulty-Net",
    "ldam_drw_sam": "LDAM-DRW + SAM",
}

SHORT = {"inat18": ("inat", "inat2018", "inaturalist"), "digits_lt": ("digits",)}
_SUFFIX = re.compile(r"_(cifar100?|imagenet_lt|places_lt|inat)(_resnex?t\d+)?(_if\d+)?$")


def key(text: str) -> str:
    """Return a name without case and punctuation; the signs of shell patterns stay."""
    return re.sub(r"[^a-z0-9*?\[\]]", "", text.lower())


def matches(pattern: str, *names: str) -> bool:
    """Whether a shell pattern fits one of some names, case and punctuation left aside."""
    return any(fnmatch.fnmatchcase(key(name), key(pattern)) for name in names)


def dataset_title(name: str) -> str:
    """Return the title of a registered data set; other names stay."""
    return DATASETS.get(name, name)


def dataset_names(title: str) -> tuple[str, ...]:
    """Return all names a user may give a data set: title, registered name, both without `-LT`."""
    registered = {t: name for name, t in DATASETS.items()}.get(title, title)
    names = (title, registered, *SHORT.get(registered, ()))
    return (*names, *(re.sub(r"[-_]lt$", "", n, flags=re.IGNORECASE) for n in names))


def backbone_title(name: str) -> str:
    """Return the title of a backbone, e.g. ResNet-32 for `resnet32_cifar`; timm's others stay."""
    found = re.fullmatch(r"(resnet|resnext)(\d+)(_cifar|_32x4d)?(\.\w+)?", name)
    if not found:
        return name
    return f"{'ResNet' if found[1] == 'resnet' else 'ResNeXt'}-{found[2]}"


def network_title(backbone: Mapping[str, Any]) -> str:
    """Return the title of a recipe's backbone with its arguments, e.g. ResNet-20 (widths 8, 16).

    Args:
        backbone: that part of the resolved recipe: ``name`` and perhaps ``args``.
    """
    title = backbone_title(str(backbone.get("name", "")))
    args = [
        f"{name} {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in sorted((backbone.get("args") or {}).items())
    ]
    return f"{title} ({'; '.join(args)})" if args else title


def method_title(recipe: str) -> str:
    """Return the title of a recipe's method, e.g. MiSLAS + PLOT for `mislas_plot_inat`."""
    name = _SUFFIX.sub("", recipe)
    base = name.removesuffix("_plot")
    title = METHODS.get(base, base)
    return title if base == name else f"{title} + PLOT"

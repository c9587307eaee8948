"""Titles of data sets, backbones and methods as the literature writes them, and matching them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ltbench.data import DATASETS
from ltbench.methods import METHODS
from ltbench.models import BACKBONES

# Titles of methods trained in combination, by the names of their recipes.
COMBINED = {
    "ce_wd5e3": "CE + tuned weight decay",
    "crt_mixup": "cRT+Mixup",
    "ldam_drw_sam": "LDAM-DRW + SAM",
    "glmc_maxnorm": "GLMC + MaxNorm",
    "logit_adjustment_focal_sam": "Logit Adjustment + Focal-SAM",
    "ce_imb_sam": "ImbSAM",
    "lift_focal_sam": "LIFT + Focal-SAM",
}
ENCODERS = {  # titles of pretrained encoders, by their names in timm without the weights' tag
    "vit_base_patch16_clip_quickgelu_224": "CLIP ViT-B/16",
    "vit_large_patch14_clip_quickgelu_224": "CLIP ViT-L/14",
}


class RecipeName(NamedTuple):
    """Parts of a recipe's name: `mislas_plot`, `cifar10_lt`, ``, `50` and `small` or `frozen`."""

    method: str
    dataset: str = ""
    backbone: str = ""
    ratio: str = ""
    track: str = ""


def split_name(recipe: str) -> RecipeName:
    """Split the name of a recipe; a name that ends in no data set is all method."""
    datasets = {part.suffix: name for name, part in DATASETS.parts().items() if part.suffix}
    found = re.fullmatch(
        rf"(.+?)_({'|'.join(map(re.escape, datasets))})"
        r"(?:_(resnex?t\d+|in21k))?(?:_if(\d+))?(?:_(small|frozen))?",
        recipe,
    )
    if not found:
        return RecipeName(recipe)
    method, suffix, backbone, ratio, track = found.groups(default="")
    return RecipeName(method, datasets[suffix], backbone, ratio, track)


def key(text: str) -> str:
    """Return a name without case and punctuation; the signs of shell patterns stay, `++` is pp."""
    return re.sub(r"[^a-z0-9*?\[\]]", "", text.lower().replace("++", "pp"))


def matches(pattern: str, *names: str) -> bool:
    """Return True if a shell pattern matches one of the names, ignoring case and punctuation."""
    return any(fnmatch.fnmatchcase(key(name), key(pattern)) for name in names)


def dataset_title(name: str) -> str:
    """Return the title of a registered data set; other names stay."""
    return DATASETS.title(name)


def dataset_name(title: str) -> str:
    """Return the registered name of a data set from its title; other titles stay."""
    return next((name for name, part in DATASETS.parts().items() if part.title == title), title)


def dataset_names(title: str) -> tuple[str, ...]:
    """Return all names a user may give a data set: title, registered name, both without `-LT`."""
    registered = dataset_name(title)
    facts = DATASETS.facts(registered)
    names = (title, registered, *filter(None, (facts.suffix, *facts.aliases)))
    return (*names, *(re.sub(r"[-_]lt$", "", n, flags=re.IGNORECASE) for n in names))


def backbone_title(name: str) -> str:
    """Return the title of a backbone, e.g. ResNet-32 for `resnet32_cifar`.

    Of timm's, ResNet and ResNeXt have one, with or without the weights' tag, and the encoders that
    recipes use; other names stay.
    """
    network, _, tag = name.partition(".")
    if tag == "openai" and network in ENCODERS:
        return ENCODERS[network]
    if name == "vit_base_patch16_224.augreg_in21k":
        return "ImageNet-21k ViT-B/16"
    found = re.fullmatch(r"(resnet|resnext)(\d+)(_32x4d)?(\.\w+)?", name)
    if name in BACKBONES or not found:
        return BACKBONES.title(name)
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
    name = split_name(recipe).method
    base = name.removesuffix("_plot")
    title = COMBINED.get(base) or METHODS.title(base)
    return title if base == name else f"{title} + PLOT"


def usual_title(method: str) -> str:
    """Return the title of a method that a published table prints under another name."""
    return next((part.title for part in METHODS.parts().values() if method in part.aliases), method)

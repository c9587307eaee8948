"""Layouts of released checkpoints: which tensors are backbone, experts and classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ltbench.errors import UserError, did_you_mean, visible
from ltbench.importing.layouts import several, single
from ltbench.importing.layouts.file import ReleasedFile
from ltbench.importing.layouts.parts import Parts


@dataclass(frozen=True)
class Family:
    """A layout.

    Args:
        title: methods whose authors' code writes it.
        fits: returns whether a file has it.
        take: returns the parts.
    """

    title: str
    fits: Callable[[ReleasedFile], bool]
    take: Callable[[ReleasedFile], Parts]


def find_family(file: ReleasedFile, asked: str = "auto") -> tuple[str, Parts]:
    """Return the family of a file, told by its names, and its parts.

    Args:
        file: the file.
        asked: name of the family, or ``auto``.

    Raises:
        UserError: no family has such names, or the family is one that ltbench cannot represent.
    """
    if asked != "auto":
        name = SAME.get(asked, asked)
        if name not in FAMILIES:
            known = sorted({*FAMILIES, *SAME})
            raise UserError(
                f"`family`: expected auto or one of {', '.join(known)}, found "
                f"`{visible(asked, 40)}`{did_you_mean(asked, known)}"
            )
        return name, FAMILIES[name].take(file)
    for name, family in FAMILIES.items():
        if family.fits(file):
            return name, family.take(file)
    shown = ", ".join(visible(n, 60) for n in list(file.state)[:4])
    outer = ", ".join(visible(str(n), 40) for n in list(file.outer)[:6])
    raise UserError(
        f"{file.checkpoint.path}: no family has these names ({outer}; tensors {shown}); known are "
        f"{', '.join(FAMILIES)}: give `family=` if it is one of them"
    )


def _outer(*keys: str) -> Callable[[ReleasedFile], bool]:
    """Return a test for keys at the top of a file."""
    return lambda file: set(keys) <= set(file.outer)


def _names(*patterns: str) -> Callable[[ReleasedFile], bool]:
    """Return a test for beginnings of tensors' names, all of which must be there."""
    return lambda file: file.has(*patterns)


FAMILIES: dict[str, Family] = {  # the first that fits is taken
    "mislas": Family(
        "MiSLAS, Difficulty-Net, H2T",
        _outer("state_dict_model", "state_dict_classifier"),
        single.mislas,
    ),
    "gcl_places": Family(
        "GCL on Places-LT", _outer("model_state_dict", "classifier_state_dict"), single.gcl_places
    ),
    "decoupling": Family(
        "classifier-balancing, LADE, BALMS",
        lambda file: bool(single.decoupling_key(file)),
        single.decoupling,
    ),
    "lift": Family("LIFT, LIFT+", _outer("tuner"), single.lift),
    "paco": Family("PaCo, GPaCo", _names(r"encoder_q\."), single.paco),
    "ncl": Family("NCL", _names(r"backbone\.0\.", r"classifier"), several.ncl),
    "bbn": Family("BBN", _names(r"backbone\.cb_block\."), several.bbn),
    "shike": Family("SHIKE", _names(r"shallow_exps\.", r"layer3s\."), several.shike),
    "ride": Family(
        "RIDE, SADE, BalPoE, MDCS, DirMixE",
        _names(r"(backbone\.)?layer[23]s\.0\."),
        several.ride,
    ),
    "reslt": Family("ResLT", _names(r"BNH\.|finalBlock\."), several.reslt),
    "bcl": Family("BCL, ProCo", _names(r"encoder\.", r"fc\.weight"), single.bcl),
    "weight_balancing": Family(
        "weight balancing", _names(r"encoder\.fc\.weight"), single.weight_balancing
    ),
    "glmc": Family("GLMC", _names(r"fc_cb\."), single.glmc),
    "disalign": Family("DisAlign", _names(r"network\.(stem|res2)\."), single.disalign),
    "m2m": Family("M2m", _names(r"conv_1_3x3\."), single.m2m),
    "gcl_classifier": Family(
        "GCL, second stage",
        lambda file: set(file.state) <= {"weight", "bias"},
        single.gcl_classifier,
    ),
    "ldam": Family(
        "LDAM-DRW, GCL, CE, VS, torchvision, timm",
        _names(r"(backbone\.)?conv1\.weight"),
        single.ldam,
    ),
}
SAME = {  # further names of a layout
    **dict.fromkeys(("difficulty_net", "h2t"), "mislas"),
    **dict.fromkeys(("lade", "balms", "crt", "lws", "tau_norm"), "decoupling"),
    **dict.fromkeys(("sade", "balpoe", "mdcs", "dirmixe"), "ride"),
    **dict.fromkeys(("gcl", "ce", "vs", "rsg", "cmo", "torchvision", "timm"), "ldam"),
    "gpaco": "paco",
    "proco": "bcl",
    "nclpp": "ncl",
    "lift_plus": "lift",
}

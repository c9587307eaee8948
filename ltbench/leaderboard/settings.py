"""Settings of rows: which results may stand in one table."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ltbench.config import plugins
from ltbench.data.shots import GROUPS
from ltbench.methods import METHODS
from ltbench.records.aggregate import Row
from ltbench.records.claims import initial_weights
from ltbench.records.literature import FACTS, UNKNOWN, longest_stage
from ltbench.records.record import Record

SETTINGS = {
    "plain": "one network, crop and flip, at most 200 epochs",
    "strong": "strong augmentation, experts, a larger network or longer",
    "pretrained": "pre-trained",
    "small": "small track: ResNet-20 of widths 8, 16, 32, 60 epochs",
    UNKNOWN: "setting not stated",
}
"""Headings of the tables, in their order."""
LONGEST = 200  # epochs of the longest stage in the first table
MILD = {"none", "crop", "flip", "jitter"}  # words of augmentations in the first table
WIDTHS = (16, 32, 64)  # of the usual ResNet-32 of CIFAR
SMALL = ({"name": "resnet20_cifar", "args": {"widths": [8, 16, 32]}}, 60)  # network, epochs
BRANCHES = ("experts", "branch_at", "medium_and_tail")  # options of methods with several branches
AUGMENTING = {"cuda": "a curriculum of augmentations"}  # methods that augment beyond a pipeline
PRETRAINED = r"CLIP|ImageNet-21k"  # how networks begin whose weights are not of the training data


class Setting(NamedTuple):
    """Setting of a row.

    Args:
        name: key of ``SETTINGS``.
        because: what decided it, as one line; empty for the first table.
    """

    name: str
    because: str


def record_setting(record: Record, row: Row) -> Setting:
    """Return the setting of a record, from its resolved recipe.

    Args:
        record: one seed of the row.
        row: with dataset, backbone, epochs and augmentation of the record.
    """
    resolved = record.recipe.resolved
    if is_small(record):
        return Setting("small", "the small track")
    if record.imported is not None:  # of these the recipe says the network only
        begin = _started(row)
    else:
        start = initial_weights(resolved)
        begin = "" if start is None else f"from {start}"
    if _mapping(resolved.get("backbone")).get("adapters"):
        begin = begin or "adapters"
    stages = resolved.get("stages")
    methods = [
        _mapping(_mapping(stage).get("method"))
        for stage in (stages if isinstance(stages, Sequence) else ())
    ]
    more = [text for method in methods for text in _beyond(method)]
    missing = ["outside code"] if plugins.marks(resolved) else []
    return _setting(row, begin, more, missing)


def is_small(record: Record) -> bool:
    """Return whether a record is a complete run of the small track."""
    network, epochs = SMALL
    resolved = record.recipe.resolved
    backbone = _mapping(resolved.get("backbone"))
    stages = resolved.get("stages")
    lengths = [_mapping(s).get("epochs") for s in stages] if isinstance(stages, list) else []
    return (
        record.imported is None
        and not record.shortened
        and not plugins.marks(resolved)
        and initial_weights(resolved) is None
        and record.dataset.name.startswith("cifar")
        and {key: backbone.get(key) for key in network} == network
        and max((n for n in lengths if isinstance(n, int)), default=0) == epochs
    )


def published_setting(row: Mapping[str, Any]) -> Setting:
    """Return the setting of a published row, from its columns and what is known of its method.

    Args:
        row: of ``published.csv``, or of the table.
    """
    method = str(row.get("printed", row["method"]))
    family = re.split(r" w/ | \(| \+ ", method)[0]
    several = re.search(r"\(\d+ (?:experts|networks)\)", method)
    more = [several[0].strip("()")] if several else []
    if not several and family in _branched():
        more = ["experts or branches"]
    return _setting(row, _started(row), more, [])


def settle(rows: Iterable[Row]) -> None:
    """Set ``setting`` and ``because`` of published rows; tables that print one result share facts.

    Args:
        rows: published ones with the columns of the table.
    """
    groups: dict[tuple[Any, ...], list[tuple[Row, list[Row]]]] = {}
    for row in rows:
        same = groups.setdefault((*same_place(row), row["overall"]), [])
        known, twins = next((g for g in same if agree(row, g[0])), ({**row}, []))
        if not twins:
            same.append((known, twins))
        share_facts(known, row)
        twins.append(row)
    for known, twins in (group for same in groups.values() for group in same):
        name, because = published_setting(known)
        for row in twins:
            row.update(setting=name, because=because)


def same_place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what results must share to be one that several tables print."""
    return tuple(row[k] for k in ("dataset", "imbalance_ratio", "method", "backbone"))


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether shot groups and facts of two published results can be those of one."""
    return all(None in (one[k], other[k]) or one[k] == other[k] for k in GROUPS) and all(
        UNKNOWN in (one[k], other[k]) or one[k] == other[k] for k in FACTS
    )


def share_facts(known: Row, other: Mapping[str, Any]) -> None:
    """Fill in the shot groups and facts that one result lacks and the other has."""
    for group in GROUPS:
        if known[group] is None:
            known[group] = other[group]
    for fact in FACTS:
        if known[fact] == UNKNOWN:
            known[fact], known[f"{fact}_from"] = other[fact], other[f"{fact}_from"]


def rank(setting: str) -> int:
    """Return the place of a setting's table among the others."""
    return [*SETTINGS].index(setting)


def _setting(row: Mapping[str, Any], start: str, more: list[str], missing: list[str]) -> Setting:
    """Return the setting that follows from all facts.

    Args:
        row: with dataset, backbone, epochs and augmentation.
        start: pre-training; empty for a random start.
        more: what sets a training apart from one network with mild augmentation.
        missing: facts that are not known.
    """
    if start:
        return Setting("pretrained", start)
    epochs = longest_stage(row["epochs"])
    words = set(str(row["augmentation"]).split(", "))
    size = _size(str(row["dataset"]), str(row["backbone"]))
    if size and size != UNKNOWN:
        more = [*more, size]
    if row["augmentation"] != UNKNOWN and not words <= MILD:
        more = [*more, str(row["augmentation"])]
    if epochs is not None and epochs > LONGEST:
        more = [*more, f"{epochs} epochs"]
    if more:
        return Setting("strong", "; ".join(dict.fromkeys(more)))
    missing = [*missing, *(["network"] if size == UNKNOWN else [])]
    missing += [] if epochs is not None else ["epochs"]
    missing += [] if row["augmentation"] != UNKNOWN else ["augmentation"]
    if missing:
        return Setting(UNKNOWN, ", ".join(missing))
    return Setting("plain", "")


def _started(row: Mapping[str, Any]) -> str:
    """Return the pre-training that a network's name or the field's protocol says, or nothing."""
    network = str(row["backbone"])
    if re.match(PRETRAINED, network):
        return network
    places = row["dataset"] == "Places-LT" and network == "ResNet-152"
    return "on ImageNet, as usual on Places-LT" if places else ""


def _size(dataset: str, network: str) -> str:
    """Return a network on CIFAR that is larger than ResNet-32, ``unknown``, or nothing."""
    if not dataset.startswith("CIFAR"):
        return ""
    if not network:
        return UNKNOWN
    found = re.fullmatch(r"ResNet-(\d+)(?: \((.*)\))?", network)
    if found is None or int(found[1]) > 32:
        return network
    widths = re.search(r"widths ([\d, ]+)", found[2] or "")
    wide = widths and any(
        int(w) > usual for w, usual in zip(re.findall(r"\d+", widths[1]), WIDTHS, strict=False)
    )
    return network if wide or "wide" in (found[2] or "").replace("widths", "") else ""


def _beyond(method: Mapping[str, Any]) -> list[str]:
    """Return what sets a method of a resolved recipe apart from one network."""
    found = [AUGMENTING[name] for name in [str(method.get("name"))] if name in AUGMENTING]
    if "experts" in method:
        found += [f"{method['experts']} experts"] * (method["experts"] != 1)
    elif any(option in method for option in BRANCHES):
        found.append("branches")
    return found


@functools.cache
def _branched() -> frozenset[str]:
    """Return the titles of the methods with several experts or branches."""
    return frozenset(
        part.title or name
        for name, part in METHODS.parts().items()
        if set(BRANCHES) & set(METHODS.options(name).model_fields)
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}

"""Layouts of several branches, experts or networks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ltbench.errors import UserError, visible
from ltbench.importing.layouts.file import (
    ReleasedFile,
    State,
    below,
    find_classifier,
    last_names,
    number_of_features,
    without,
)
from ltbench.importing.layouts.parts import Classifier, Parts

SECOND = 3  # place of the second convolution in ``FusedBranches.shallow``, after one with ReLU


def bbn(file: ReleasedFile) -> Parts:
    """Return the parts of shared blocks, a last block for each branch, and one classifier."""
    state = below(file.state, "backbone.")
    head = last_names(below(file.state, "classifier."))
    shared = without(state, "cb_block.", "rb_block.")
    group = max(_numbers(shared, r"layer(\d)\."))
    place = 1 + max(int(n.split(".")[1]) for n in shared if n.startswith(f"layer{group}."))
    first, other = (
        file.load({f"layer{group}.{place}.{n}": t for n, t in below(state, f"{b}_block.").items()})
        for b in ("cb", "rb")
    )
    body = {**file.load(shared), **first}
    features = number_of_features(body)
    if "weight" in head and features in head["weight"].shape:
        raise UserError(
            f"{file.checkpoint.path}: its classifier is on the features of the shared blocks, of "
            "which the last group has one less than the others (CC-SAM, PLOT); ltbench's CIFAR "
            "ResNets have equal groups"
        )
    classifier = find_classifier(file, head, 2 * features, bare="cosine")
    return Parts(body, (classifier,), tails=(other,), branch_at="block")


def reslt(file: ReleasedFile) -> Parts:
    """Return the parts of a network, ResLT's three branches and their shared classifier."""
    state = file.state
    if file.has(r"BNH\."):
        norms = [below(state, f"BN{b}.") for b in "HMT"]
        block = {f"{k}.{n}": t for k, norm in enumerate(norms) for n, t in norm.items()}
        body = below(state, "model.") if file.has(r"model\.") else state
        body = without(body, "BNH.", "BNM.", "BNT.", "linear.", "fc.")
        head = below(state, "linear.") or below(state, "model.linear.")
    else:
        block = below(state, "finalBlock.")
        body, head = without(state, "finalBlock.", "fc."), below(state, "fc.")
    tensors = file.load(body)
    classifier = find_classifier(file, head, number_of_features(tensors), square="linear")
    return Parts(tensors, (classifier,), block=file.load(block))


def ride(file: ReleasedFile) -> Parts:
    """Return the parts of shared stages, and last stages and a classifier for each expert."""
    state = below(file.state, "backbone.") if file.has(r"backbone\.") else file.state
    experts = _numbers(state, r"layer\ds\.(\d+)\.")
    split = sorted({m[1] for n in state if (m := re.match(r"(layer\d)s\.\d+\.", n))})
    shared = without(state, *(f"{g}s." for g in split), "linears.", "expert_help_pred")
    tails = [
        file.load({f"{g}.{n}": t for g in split for n, t in below(state, f"{g}s.{e}.").items()})
        for e in experts
    ]
    body = {**file.load(shared), **tails[0]}
    features = number_of_features(body)
    heads = tuple(find_classifier(file, below(state, f"linears.{e}."), features) for e in experts)
    return Parts(body, heads, tails=tuple(tails[1:]), branch_at=split[0])


def ncl(file: ReleasedFile) -> Parts:
    """Return the parts of several networks."""
    experts = _numbers(file.state, r"backbone\.(\d+)\.")
    name = "classifier_ce" if file.has(r"classifier_ce\.") else "classifier"
    bodies = [file.load(below(file.state, f"backbone.{e}.")) for e in experts]
    features = number_of_features(bodies[0])
    own = (below(file.state, f"{name}.{e}.") for e in experts)
    heads = [find_classifier(file, head, features, bare="cosine") for head in own]
    # The authors' cosine classifier has a bias too, so that its names are those of a linear one.
    heads = [Classifier("either", h.weight, h.bias) if h.bias is not None else h for h in heads]
    tails = tuple(bodies[1:])
    return Parts(bodies[0], tuple(heads), tails=tails, branch_at="whole")


def shike(file: ReleasedFile) -> Parts:
    """Return the parts of experts with convolutions of inner maps."""
    state = file.state
    experts = _numbers(state, r"layer3s\.(\d+)\.")
    heads = "rt_classifiers" if file.has(r"rt_classifiers\.") else "classifiers"
    others = ("layer3s.", "shallow_exps.", "classifiers.", "rt_classifiers.")
    tails = [
        file.load({f"layer3.{n}": t for n, t in below(state, f"layer3s.{e}.").items()})
        for e in experts
    ]
    body = {**file.load(without(state, *others)), **tails[0]}
    fusion: State = {}
    for name, stored in below(state, "shallow_exps.").items():
        place = re.fullmatch(r"(\d+)\.convs\.StridedConv(\d)\.conv\.([01])\.(\w+)", name)
        if place is None:
            raise UserError(f"{file.checkpoint.path}: `{visible(name, 60)}` is no part of SHIKE")
        expert, step, layer, kind = place.groups()
        fusion[f"{expert}.{SECOND * min(int(step), 1) + int(layer)}.{kind}"] = stored
    features = number_of_features(body)
    classifiers = tuple(
        find_classifier(file, below(state, f"{heads}.{e}."), features) for e in experts
    )
    return Parts(body, classifiers, tuple(tails[1:]), "layer3", fusion=file.load(fusion))


def _numbers(names: Iterable[str], pattern: str) -> list[int]:
    """Return the numbers at the group of a pattern that begins some names, in order."""
    return sorted({int(m[1]) for name in names if (m := re.match(pattern, name))})

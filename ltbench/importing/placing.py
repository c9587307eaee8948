"""Released weights in the place of a method's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.importing.layouts.parts import Classifier, Parts
from ltbench.methods.base import Method
from ltbench.methods.disalign import CalibratedHead
from ltbench.methods.weights import inference_state
from ltbench.models.branches import ExpertHead
from ltbench.models.heads import CosineHead, LinearHead, NormalizedHead, ScaledHead, ShiftedHead
from ltbench.models.residual import ResLTHead

BACKBONE = "backbone.net."
TAIL = re.compile(r"branches\.copies\.(\d+)\.net\.(.+)")
FUSION = "branches.shallow."


def placed(
    method: Method, network: Mapping[str, Tensor], parts: Parts, heads: Sequence[Classifier]
) -> dict[str, Tensor]:
    """Return released weights by the names of the tensors that a method predicts with.

    Args:
        method: built from the recipe; may be on the meta device.
        network: weights of the backbone by the names of ours.
        parts: of the file.
        heads: classifiers of the file, classes in the order of the data set.

    Raises:
        UserError: the file's model is not one of this method; says in what they differ.
    """
    own = inference_state(method)
    found: dict[str, Tensor] = {}
    tau = getattr(method.config, "tau", 1.0)
    found.update({f"head.{n}": t for n, t in _head(method.head, parts, heads, tau).items()})
    branches = getattr(method, "branches", None)
    _check_number(method, 1 if branches is None else len(branches.copies) + 1, parts)
    fusion = _counted(parts.fusion)
    for name, like in own.items():
        if name in found:
            pass
        elif name.startswith(BACKBONE):
            found[name] = network[name.removeprefix(BACKBONE)]
        elif place := TAIL.fullmatch(name):
            found[name] = _of(parts.tails[int(place[1])], place[2], int(place[1]) + 2)
        elif name.removeprefix(FUSION) in fusion:
            found[name] = fusion[name.removeprefix(FUSION)]
        else:
            raise UserError(
                f"the method {_name(method)} predicts with `{name}`, which the file has no "
                "counterpart of; name a recipe of the method that made it"
            )
        found[name] = _like(found[name], like, name)
    return {name: found[name] for name in own}


def _head(
    head: nn.Module, parts: Parts, given: Sequence[Classifier], tau: float
) -> dict[str, Tensor]:
    """Return the weights of a method's classifier by its names; ``tau`` is of tau-norm."""
    if isinstance(head, ExpertHead):
        if len(given) != len(head.experts):
            raise UserError(
                f"the file has {_count(given, 'classifier')}, the recipe's method has "
                f"{len(head.experts)} experts; name a recipe of the method that made it"
            )
        return _numbered("experts", [_one(h, c) for h, c in zip(head.experts, given, strict=True)])
    if len(given) != 1:
        raise UserError(
            f"the file has {_count(given, 'classifier')} (experts or an ensemble), the recipe's "
            "method has one; name a recipe of the method that made it"
        )
    if isinstance(head, ResLTHead):
        if not parts.block:
            raise UserError("the file has no branches of ResLT, the recipe's method has them")
        block = {f"block.{n}": t for n, t in _counted(parts.block).items()}
        wanted = {n for n in head.state_dict() if n.startswith("block.")}
        if wanted != set(block):
            other = "a 1x1 convolution" if head.block.__class__ is nn.ModuleList else "three norms"
            raise UserError(
                f"the branches of the file are {other}, those of the recipe's method are not; "
                "name the recipe of the data set that the file is of"
            )
        return {**block, **_prefixed("classifier", _one(head.classifier, given[0]))}
    if parts.block:
        raise UserError("the file has branches of ResLT, the recipe's method has none")
    if isinstance(head, NormalizedHead):
        _require(given[0], "linear")
        return {"weight": NormalizedHead(given[0].weight.float(), tau).weight}
    return _one(head, given[0])


def _one(head: nn.Module, given: Classifier) -> dict[str, Tensor]:
    """Return the weights of a classifier without experts."""
    if isinstance(head, ScaledHead):
        bare = Classifier(given.kind, given.weight, given.bias)
        factors = torch.ones(len(given.weight)) if given.scales is None else given.scales
        return {**_prefixed("head", _one(head.head, bare)), "scale": factors}
    if given.scales is not None:
        raise UserError(
            "the file has learned scales of the logits (LWS, MiSLAS), the recipe's method has "
            "none; name a recipe of `lws` or `mislas`"
        )
    if isinstance(head, ShiftedHead):
        return {**_prefixed("head", _one(head.head, given)), "offset": head.offset}
    if isinstance(head, CalibratedHead):
        raise UserError(
            "the recipe's method calibrates the logits (DisAlign), the file has no calibration"
        )
    if isinstance(head, CosineHead):
        _require(given, "cosine")
        turned = {"weight": given.weight.T.contiguous()}
        if head.bias is not None:
            return {**turned, "bias": _bias(given)}
        _without_bias(given)
        return turned
    if isinstance(head, LinearHead):
        _require(given, "linear")
        if head.bias is not None:
            return {"weight": given.weight, "bias": _bias(given)}
        _without_bias(given)
        return {"weight": given.weight}
    raise UserError(
        f"the recipe's method has a classifier of its own ({type(head).__name__}), which no "
        "family of files is mapped to"
    )


def _bias(given: Classifier) -> Tensor:
    return torch.zeros(len(given.weight)) if given.bias is None else given.bias


def _without_bias(given: Classifier) -> None:
    """Raise ``UserError`` if a classifier has a bias other than 0."""
    if given.bias is not None and given.bias.any():
        raise UserError("the classifier of the file has a bias, that of the recipe has none")


def _require(given: Classifier, kind: str) -> None:
    """Raise ``UserError`` if a classifier is of another kind."""
    if given.kind not in (kind, "either"):
        raise UserError(
            f"the classifier of the file is {given.kind}, that of the recipe's method is {kind}; "
            "name a recipe of the method that made the file"
        )


def _check_number(method: Method, own: int, parts: Parts) -> None:
    """Raise ``UserError`` if the numbers of branches differ."""
    theirs = len(parts.tails) + 1
    if own != theirs:
        raise UserError(
            f"the network of the file has {theirs} branch{'es' * (theirs > 1)}, that of the method "
            f"{_name(method)} has {own}; name a recipe of the method that made the file"
        )


def _like(given: Tensor, own: Tensor, name: str) -> Tensor:
    """Return a weight in the precision of the method's own.

    Raises:
        UserError: it has another shape.
    """
    if given.shape != own.shape:
        raise UserError(
            f"`{name}` has shape {list(given.shape)} in the file, that of the recipe has "
            f"{list(own.shape)}; give the options of the recipe that the file was made with"
        )
    return given.to(own.dtype).clone(memory_format=torch.contiguous_format)


def _of(tail: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    if name.endswith("num_batches_tracked") and name not in tail:
        return torch.zeros((), dtype=torch.int64)
    if name not in tail:
        raise UserError(f"branch {number} of the file lacks `{name}`; it is another network")
    return tail[name]


def _counted(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return normalisations with the counters that old files lack."""
    means = [n for n in block if n.endswith("running_mean")]
    names = [n.replace("running_mean", "num_batches_tracked") for n in means]
    return {**{n: torch.zeros((), dtype=torch.int64) for n in names}, **block}


def _numbered(prefix: str, each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{prefix}.{k}.{n}": t for k, part in enumerate(each) for n, t in part.items()}


def _prefixed(prefix: str, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{n}": t for n, t in part.items()}


def _count(items: Sequence[Any], what: str) -> str:
    return f"{len(items)} {what}{'s' * (len(items) != 1)}"


def _name(method: Method) -> str:
    return type(method).__name__

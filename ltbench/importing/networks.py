"""Networks of released weights, told by the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltbench.errors import UserError, visible
from ltbench.models.backbone import create_backbone

CIFAR = {20: "resnet20_cifar", 32: "resnet32_cifar", 44: "resnet44_cifar", 56: "resnet56_cifar"}
CIFAR_WIDTHS, WIDTHS = [16, 32, 64], [64, 128, 256, 512]
Shape = tuple[str, tuple[int, ...], int]
# Residual block, blocks of each group, groups of the 3x3 convolutions: name, see ltbench.models.
RESNETS: dict[Shape, str] = {
    ("basic", (1, 1, 1, 1), 1): "resnet10",
    ("basic", (2, 2, 2, 2), 1): "resnet18",
    ("basic", (3, 4, 6, 3), 1): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 1): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 1): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 1): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 32): "resnext50_32x4d",
    ("bottleneck", (3, 4, 23, 3), 32): "resnext101_32x4d",
}
SMALL_STEM: dict[Shape, str] = {("basic", (3, 4, 6, 3), 1): "resnet34_cifar"}
LIKE = {("basic", 1): "resnet34", ("bottleneck", 1): "resnet152"}
LIKE[("bottleneck", 32)] = "resnext50_32x4d"
COUNTER = "num_batches_tracked"  # missing in files of old versions


@dataclass(frozen=True)
class Network:
    """A network of ours and released weights for it.

    Args:
        name: registered backbone, or a name of timm.
        args: options of the architecture.
        tensors: weights by the names of our network.
    """

    name: str
    args: dict[str, Any]
    tensors: dict[str, Tensor]


def find_network(state: Mapping[str, Tensor], choice: Mapping[str, Any]) -> Network:
    """Return our network for released weights, which may have no classifier.

    The recipe's own backbone is taken if it has these names and shapes. Otherwise depth, widths and
    groups are read off the shapes.

    Args:
        state: weights by the names of the file, prefixes of wrappers removed.
        choice: ``backbone`` of the recipe.

    Raises:
        UserError: it is a network that ltbench does not have; says in what it differs.
    """
    named = str(choice["name"])
    own = shapes_of(named, choice.get("args") or {})
    if own is not None and not misfit(own, state):
        return Network(named, dict(choice.get("args") or {}), _completed(own, state))
    name, args = _inferred(state, named)
    own = shapes_of(name, args)
    problem = "it cannot be built" if own is None else misfit(own, state)
    if own is None or problem:
        raise UserError(f"the file is not a {name}: {problem}; it is another network")
    return Network(name, args, _completed(own, state))


def shapes_of(name: str, args: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the state dict of a backbone without memory; ``None`` if it cannot be built."""
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return None
    bare = name.partition(".")[0]
    try:
        with torch.device("meta"):
            return dict(create_backbone(bare, **args).net.state_dict())
    except (UserError, RuntimeError, NotImplementedError):
        return None


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return in what weights differ from those of a network, or nothing."""
    for name, like in own.items():
        if name.endswith(COUNTER):
            continue
        if name not in state:
            return f"it lacks `{name}`"
        if state[name].shape != like.shape:
            found, wanted = list(state[name].shape), list(like.shape)
            return f"its `{name}` has shape {found}, that of the network {wanted}"
    extra = [name for name in state if name not in own]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        return f"it also has `{visible(extra[0], 80)}`{more}"
    return ""


def _completed(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in the order of the network, counters that are missing at zero."""
    return {n: state[n] if n in state else torch.zeros((), dtype=torch.int64) for n in own}


def _inferred(state: Mapping[str, Tensor], named: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of the network that the shapes describe."""
    first = re.compile(r"layer(\d)\.\d+\.conv1\.weight")
    groups = {int(m[1]) for name in state if (m := first.fullmatch(name))}
    stem = state.get("conv1.weight")
    if stem is None or not groups:
        others = [n for n in state if not n.startswith(("conv1.", "bn1."))]
        shown = ", ".join(f"`{visible(name, 60)}`" for name in (others or list(state))[:2])
        more = "".join(f"; {said}" for said in _foreign(state))
        raise UserError(
            f"the file is no ResNet of ltbench and no {named}: expected `conv1.weight` and "
            f"`layer1.0.conv1.weight`, found {shown or 'nothing'}{more}"
        )
    blocks = tuple(_blocks(state, group) for group in sorted(groups))
    if groups == {1, 2, 3} and stem.shape[-1] == 3:
        return _cifar(state, blocks)
    if groups == {1, 2, 3, 4}:
        return _large(state, blocks)
    raise UserError(
        f"the file has a ResNet of {len(groups)} groups with a stem of {list(stem.shape)}; ltbench "
        "has those of CIFAR (3 groups, 3x3 stem) and of ImageNet (4 groups)"
    )


def _foreign(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what a CIFAR ResNet of ltbench does not have."""
    learned = [n for n in state if re.search(r"\.(shortcut|downsample)\.0\.weight$", n)]
    if "conv1.bias" in state:
        yield "its first convolution has a bias"
    if learned:
        yield f"its shortcuts have weights (`{visible(learned[0], 60)}`)"


def _blocks(state: Mapping[str, Tensor], group: int) -> int:
    return len({n.split(".")[1] for n in state if re.match(rf"layer{group}\.\d+\.", n)})


def _cifar(state: Mapping[str, Tensor], blocks: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Return our CIFAR ResNet of these shapes, or say in what theirs differs."""
    said = next((f for f in _foreign(state) if "bias" in f), "")
    depth = 6 * blocks[0] + 2
    args: dict[str, Any] = {}
    if any(n.endswith(".shortcut.0.weight") for n in state):
        args["shortcut"] = "projection"
    elif any(".downsample." in n for n in state):
        said = said or next(_foreign(state), "")
    if len(set(blocks)) > 1:
        said = f"its groups have {', '.join(map(str, blocks))} blocks, ours have equal numbers"
    elif depth not in CIFAR:
        said = f"it has {blocks[0]} blocks a group; ltbench has depths {', '.join(map(str, CIFAR))}"
    if said:
        raise UserError(f"the file is not one of ltbench's CIFAR ResNets: {said}")
    widths = [state["conv1.weight"].shape[0]]
    widths += [state[f"layer{g}.0.conv2.weight"].shape[0] for g in (2, 3)]
    if widths != CIFAR_WIDTHS:
        args["widths"] = widths
    return CIFAR[depth], args


def _large(state: Mapping[str, Tensor], blocks: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Return the ResNet or ResNeXt of these shapes."""
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    last, expansion = ("conv3", 4) if kind == "bottleneck" else ("conv2", 1)
    try:
        middle = state["layer1.0.conv2.weight"].shape
        groups = 1 if kind == "basic" else middle[0] // middle[1]
        channels = [state[f"layer{g}.0.{last}.weight"].shape[0] // expansion for g in range(1, 5)]
    except (KeyError, IndexError, ZeroDivisionError):
        raise UserError("the file is not a ResNet: its first blocks have other layers") from None
    name = RESNETS.get((kind, blocks, groups))
    if state["conv1.weight"].shape[-1] == 3:
        name = SMALL_STEM.get((kind, blocks, groups))
        if name is None:
            raise UserError("the file is a ResNet of 4 groups whose stem is a 3x3 convolution")
    args: dict[str, Any] = {}
    if name is None:
        name = LIKE.get((kind, groups))
        args["layers"] = list(blocks)
    if name is None:
        raise UserError(
            f"the file is a ResNet of {kind} blocks with {groups} groups in a convolution; ltbench "
            "has 1 and 32"
        )
    if channels != WIDTHS:
        args["channels"] = channels
    return name, args

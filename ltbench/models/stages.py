"""Partition of a network into consecutive stages, and views that hold a range of stages."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ltbench.errors import UserError
from ltbench.models.cifar_resnet import CifarResNet

POOL = "pool"
POOLING = ("forward_head", POOL)  # steps that turn feature maps into features
VIT_STAGES = 4  # transformer blocks are split into quarters; the last quarter is "last"


@dataclass(frozen=True)
class Stage:
    """Sequence of consecutive operations of a network.

    Args:
        name: name of the stage in recipes.
        steps: attribute paths in the network (modules or methods), called in order.
        owns: paths of further modules or parameters that the steps use.
    """

    name: str
    steps: tuple[str, ...]
    owns: tuple[str, ...] = ()


def stages_of(net: nn.Module) -> tuple[Stage, ...]:
    """Return the stages of a timm network.

    CIFAR ResNets, timm's ResNet family (ResNeXt included), ConvNeXt and EfficientNet have ``stem``
    and their residual stages. Vision transformers have ``stem`` (patches and positions) and
    ``stage1`` to ``stage4``, a quarter of the blocks each. Pooling and all later operations belong
    to the last stage. Any other network is a single stage called ``whole``.
    """
    if _runs_as(net, CifarResNet):
        return _with_head([Stage("stem", ("conv1", "bn1", "act1")), *_layers(3)])
    if _runs_as(net, ResNet):
        return _with_head([Stage("stem", ("conv1", "bn1", "act1", "maxpool")), *_layers(4)])
    if _runs_as(net, ConvNeXt):
        blocks = [
            Stage(f"stage{i + 1}", (f"stages.{i}",))
            for i, _ in enumerate(net.get_submodule("stages").children())
        ]
        return _with_head([Stage("stem", ("stem",)), *blocks], "norm_pre")
    if _runs_as(net, EfficientNet):
        blocks = [
            Stage(f"stage{i + 1}", (f"blocks.{i}",))
            for i, _ in enumerate(net.get_submodule("blocks").children())
        ]
        return _with_head([Stage("stem", ("conv_stem", "bn1")), *blocks], "conv_head", "bn2")
    if _runs_as(net, VisionTransformer):
        return _with_head(
            [_vit_stem(net), *_quarters(len([*net.get_submodule("blocks").children()]))], "norm"
        )
    return (Stage("whole", ("forward",)),)


def cut_before_last_block(net: nn.Module, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return stages whose last one is only the last residual block and the pooling.

    Raises:
        UserError: the last stage is not a sequence of blocks.
    """
    last = stages[-1]
    first, *after = last.steps
    blocks = attrgetter(first)(net) if first != "forward" else None
    if not isinstance(blocks, nn.Sequential) or len(blocks) < 2 or set(after) - set(POOLING):
        raise UserError(
            f"the backbone's stage `{last.name}` cannot be cut before its last block; name a stage "
            f"instead: {', '.join(stage.name for stage in stages)}"
        )
    *before, block = (f"{first}.{name}" for name, _ in blocks.named_children())
    return (
        *stages[:-1],
        Stage(last.name, tuple(before), last.owns),
        Stage("last block", (block, *after)),
    )


def units(
    net: nn.Module, stages: tuple[Stage, ...]
) -> Iterator[tuple[int, nn.Module | nn.Parameter]]:
    """Yield the largest modules and parameters that lie in one stage, with the stage's index."""
    claims = _claims(stages)
    pending = [("", net)]
    while pending:
        prefix, module = pending.pop(0)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield claims.get(prefix + name, len(stages) - 1), parameter
        for name, child in module._modules.items():
            path = prefix + name
            if child is None:
                continue
            if path not in claims and _contains_claims(path, claims):
                pending.append((f"{path}.", child))
            else:
                yield claims.get(path, len(stages) - 1), child


def view(net: nn.Module, stages: tuple[Stage, ...], wanted: range) -> nn.Module:
    """Return a shallow copy of a network that holds only the wanted stages.

    Modules, parameters and names are shared with the network.
    """
    return _view(net, _claims(stages), len(stages) - 1, wanted, "")


def _view(
    module: nn.Module, claims: dict[str, int], last: int, wanted: range, prefix: str
) -> nn.Module:
    shell = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        kept = {
            n: t for n, t in getattr(module, kind).items() if claims.get(prefix + n, last) in wanted
        }
        shell.__dict__[kind] = kept
    children: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        path = prefix + name
        if child is not None and path not in claims and _contains_claims(path, claims):
            children[name] = _view(child, claims, last, wanted, f"{path}.")
        elif claims.get(path, last) in wanted:
            children[name] = child
    shell.__dict__["_modules"] = children
    return shell


def _runs_as(net: nn.Module, family: type[nn.Module]) -> bool:
    """Return whether a network is of a family and does not override its forward methods."""
    return isinstance(net, family) and all(
        getattr(type(net), method) is getattr(family, method)
        for method in ("forward", "forward_features")
    )


def _layers(count: int) -> list[Stage]:
    return [Stage(f"layer{i}", (f"layer{i}",)) for i in range(1, count + 1)]


def _vit_stem(net: nn.Module) -> Stage:
    return Stage(
        "stem",
        ("patch_embed", "_pos_embed", "patch_drop", "norm_pre"),
        owns=("pos_drop", *net._parameters),  # class and register tokens, positions
    )


def _quarters(depth: int) -> list[Stage]:
    count = min(VIT_STAGES, depth)
    bounds = [round(depth * i / count) for i in range(count + 1)]
    return [
        Stage(f"stage{i + 1}", tuple(f"blocks.{b}" for b in range(bounds[i], bounds[i + 1])))
        for i in range(count)
    ]


def _with_head(stages: list[Stage], *before: str) -> tuple[Stage, ...]:
    """Append the operations after the blocks, a norm if any and pooling, to the last stage."""
    last = stages[-1]
    return (*stages[:-1], Stage(last.name, (*last.steps, *before, "forward_head"), last.owns))


def _claims(stages: tuple[Stage, ...]) -> dict[str, int]:
    return {path: i for i, stage in enumerate(stages) for path in (*stage.steps, *stage.owns)}


def _contains_claims(path: str, claims: dict[str, int]) -> bool:
    return any(claim.startswith(f"{path}.") for claim in claims)

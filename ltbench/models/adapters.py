"""Adapters: a few trained layers inside the blocks of a pretrained vision transformer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.config.adapters import Adapters
from ltbench.errors import UserError

NAME = "adapter"  # of an adapter in a block; parts of a parameter's name are joined by dots
SLOPE = math.sqrt(5)  # of Kaiming's initialisation


class DownLinear(nn.Linear):
    """Linear layer into a bottleneck: Kaiming-normal weight with a = sqrt(5), bias 0."""

    def reset_parameters(self) -> None:
        """Reinitialise weight and bias."""
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        nn.init.zeros_(self.bias)


class UniformDownLinear(DownLinear):
    """Linear layer into a bottleneck: Kaiming-uniform weight with a = sqrt(5), bias 0."""

    def reset_parameters(self) -> None:
        """Reinitialise weight and bias."""
        nn.init.kaiming_uniform_(self.weight, a=SLOPE)
        nn.init.zeros_(self.bias)


class FactorLinear(nn.Linear):
    """First factor of a low-rank matrix: uniform within 1 / sqrt(rank), no bias.

    That is Kaiming-uniform with a = sqrt(5) for the factor as the authors store it, [D, rank].
    """

    def reset_parameters(self) -> None:
        """Reinitialise the weight."""
        nn.init.kaiming_uniform_(self.weight, a=SLOPE, mode="fan_out")


class ZeroLinear(nn.Linear):
    """Linear layer that begins as zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to 0."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Scale(nn.Module):
    """Learnable factor, 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def reset_parameters(self) -> None:
        """Set the factor to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input times the factor."""
        return x * self.weight


class AdaptFormer(nn.Module):
    """Bottleneck beside the perceptron of a transformer block, zero at the start.

    Reference: Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual
        Recognition, NeurIPS 2022, arXiv:2205.13535; in the form of Shi et al., Long-Tail Learning
        with Foundation Model: Heavy Fine-Tuning Hurts, ICML 2024, arXiv:2309.10019 (LIFT), with a
        layer norm of its own and a learnable scale.
    Departures: none known.

    Args:
        width: width D of the tokens.
        rank: width of the bottleneck.
        uniform: draw the first layer from a uniform distribution instead of a normal one.
    """

    def __init__(self, width: int, rank: int, uniform: bool = False) -> None:
        super().__init__()
        down = UniformDownLinear if uniform else DownLinear
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.down = down(width, rank)
        self.up = ZeroLinear(rank, width)
        self.scale = Scale()

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to tokens [B, N, D], from tokens after the attention."""
        added: Tensor = self.scale(self.up(F.relu(self.down(self.norm(x)))))
        return added


class AdaptFormerBlock(Block):
    """timm's transformer block with an AdaptFormer beside its perceptron."""

    adapter: AdaptFormer

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the tokens [B, N, D] after the block."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *args, **options)))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + self.adapter(x)
        return out


class LowRank(nn.Module):
    """Product of two low-rank matrices over their rank, zero at the start.

    Args:
        width: width D of the tokens.
        rank: of the product.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = FactorLinear(width, rank, bias=False)
        self.up = ZeroLinear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added for tokens [B, N, D]."""
        added: Tensor = self.up(self.down(x)) / self.down.out_features
        return added

    def matrix(self) -> Tensor:
        """Return the matrix [D, D] to be added to a weight."""
        return self.up.weight @ self.down.weight / self.down.out_features


class LoRA(nn.Module):
    """Low-rank additions to the queries and values of self-attention.

    Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022,
        arXiv:2106.09685; scaled by one over the rank, as in the code of LIFT, arXiv:2309.10019.
    Departures: none known.

    Args:
        width: width D of the tokens.
        rank: of each addition.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query, self.value = LowRank(width, rank), LowRank(width, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to queries, keys and values [B, N, 3 D]."""
        query, value = self.query(x), self.value(x)
        return torch.cat([query, torch.zeros_like(query), value], dim=-1)

    def matrix(self) -> Tensor:
        """Return the matrix [3 D, D] to be added to the weight of queries, keys and values."""
        query, value = self.query.matrix(), self.value.matrix()
        return torch.cat([query, torch.zeros_like(query), value])


class LoRALinear(nn.Linear):
    """Queries, keys and values of a block of timm with LoRA."""

    adapter: LoRA

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values [B, N, 3 D]."""
        added: Tensor = self.adapter(x)
        return super().forward(x) + added


def default_rank(num_classes: int, blocks: int, divisor: int = 2) -> int:
    """Return the default width of adapters: the largest power of two up to C / (divisor L).

    Reference: Shi et al., Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts,
        ICML 2024, arXiv:2309.10019 (LIFT): the adapters have at most about as many weights as the
        classifier.
    Departures: none known.

    Args:
        num_classes: number of classes C, >= 1.
        blocks: number of blocks L, >= 1.
        divisor: 2; 4 for LoRA in LIFT+.

    Returns:
        At least 1.
    """
    return 1 << max(0, (num_classes // (divisor * blocks)).bit_length() - 1)


def add_adapters(net: nn.Module, choice: Adapters, num_classes: int | None) -> int:
    """Put adapters into every block of a vision transformer of timm, and return their width.

    The blocks themselves are extended: timm's names of parameters stay as they are, and
    ``blocks.3.adapter.*`` (AdaptFormer) or ``blocks.3.attn.qkv.adapter.*`` (LoRA) are new. Until
    they are trained the network computes what it did before.

    Args:
        net: the network.
        choice: kind, width and initial weights.
        num_classes: number of classes C, of which the default width is a function.

    Raises:
        UserError: the network has no blocks that can take adapters, or the width is not known.
    """
    blocks = list(_blocks(net))
    rank = choice.width
    if rank is None:
        if num_classes is None:
            raise UserError(
                "`backbone.adapters.width`: its default follows from the number of classes, which "
                "is not known here; give a width"
            )
        rank = default_rank(num_classes, len(blocks), choice.divisor)
    for block in blocks:
        weight = block.norm1.weight
        width = block.attn.qkv.in_features
        if choice.name == "lora":
            block.attn.qkv.adapter = LoRA(width, rank).to(weight)
            block.attn.qkv.__class__ = LoRALinear
        else:
            uniform = choice.init == "kaiming_uniform"
            block.adapter = AdaptFormer(width, rank, uniform).to(weight)
            block.__class__ = AdaptFormerBlock
    return rank


def adapters_in(net: nn.Module) -> list[nn.Module]:
    """Return the adapters of a network."""
    return [m for m in net.modules() if isinstance(m, AdaptFormer | LoRA)]


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter, by its dotted name."""
    return NAME in name.split(".")


def without_adapters(names: Iterable[str]) -> list[str]:
    """Return the names of the parameters and buffers that belong to no adapter."""
    return [name for name in names if not is_adapter(name)]


def mergeable(net: nn.Module) -> bool:
    """Return whether a network has adapters, and all can become part of its weights."""
    found = adapters_in(net)
    return bool(found) and all(isinstance(adapter, LoRA) for adapter in found)


@torch.no_grad()
def merged(net: nn.Module) -> nn.Module:
    """Return a copy of a network with its LoRA as part of the weights, under timm's names.

    Args:
        net: the network, or a module that contains it.

    Raises:
        UserError: it has an AdaptFormer, which is not linear.
    """
    if any(isinstance(adapter, AdaptFormer) for adapter in adapters_in(net)):
        raise UserError(
            "adapters of kind adaptformer are not linear, so they cannot become part of the "
            "encoder's weights; keep them beside it, or train with backbone.adapters=lora"
        )
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, LoRALinear):
            module.weight += module.adapter.matrix()
            del module.adapter
            layer: nn.Module = module
            layer.__class__ = nn.Linear
    return plain


def _blocks(net: nn.Module) -> Iterable[Any]:
    """Yield the blocks of a vision transformer.

    Raises:
        UserError: there are none, or they are not timm's plain ones.
    """
    found = getattr(net, "blocks", None)
    blocks = list(found) if isinstance(found, nn.Sequential) else []
    plain = bool(blocks) and all(
        type(block) is Block and type(block.attn) is Attention and type(block.attn.qkv) is nn.Linear
        for block in blocks
    )
    if not plain:
        raise UserError(
            f"`backbone.adapters`: required a vision transformer with timm's plain blocks, e.g. "
            f"vit_base_patch16_clip_quickgelu_224.openai, found {type(net).__name__}; take one, or "
            "leave adapters out"
        )
    return blocks

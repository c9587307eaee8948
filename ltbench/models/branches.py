"""Backbones with a shared trunk and several branches or experts."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from ltbench.models.backbone import Backbone, StageChain, checked_maps
from ltbench.models.heads import CosineHead, LinearHead
from ltbench.models.stages import Stage, cut_before_last_block, view


class Branches(nn.Module):
    """Shared trunk with several tails: images to the features of every branch [B, E, D].

    Trunk and first tail are those of the backbone. The other tails are initialised independently
    or, if the backbone is already trained, from copies of its weights. Only the other tails are
    submodules of this module, so that a method holds each parameter once.

    Args:
        backbone: the backbone to branch.
        count: number of branches E, at least 1.
        at: first stage of the tails: name of a stage, ``last``, or ``block`` for the last residual
            block only.
        trained: a previous stage trained the backbone; given weights count as trained.

    Raises:
        UserError: there is no such stage, or the last stage has no blocks.
    """

    def __init__(
        self, backbone: Backbone, count: int, at: str = "last", trained: bool = False
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"`count` must be at least 1, found {count}")
        before, self._own = cut(backbone, at)
        self._before = before
        stages, place = (*before, *self._own), range(len(before), len(before) + len(self._own))
        tail = StageChain(view(backbone.net, stages, place), self._own)
        self.copies = nn.ModuleList(copy.deepcopy(tail) for _ in range(count - 1))
        if not (trained or backbone.pretrained):
            redraw(self.copies)
        self._backbone = (backbone,)  # in a tuple: not a submodule

    @property
    def backbone(self) -> Backbone:
        """Backbone with trunk and first tail."""
        return self._backbone[0]

    def originals(self) -> dict[str, str]:
        """Return the counterparts in the backbone of all parameters of the other tails.

        Returns:
            Names in the backbone by names in this module.
        """
        names = (name for name, _ in self.copies.named_parameters())
        return {f"copies.{name}": name.partition(".")[2] for name in names}

    def trunk(self, images: Tensor) -> Tensor:
        """Return the output of the trunk, the input of all tails."""
        steps = tuple(step for stage in self._before for step in stage.steps)
        return self.backbone.do(steps, images)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage of the trunk, first to last."""
        found = [images]
        for stage in self._before:
            found.append(self.backbone.do(stage.steps, found[-1]))
        return found[1:]

    def tail(self, branch: int, x: Tensor) -> Tensor:
        """Return the features [B, D] of one branch."""
        if branch == 0:
            return self.backbone.do(tuple(step for stage in self._own for step in stage.steps), x)
        features: Tensor = self.copies[branch - 1](x)
        return features

    def tail_maps(self, branch: int, x: Tensor) -> Tensor:
        """Return the feature maps [B, D, H, W] of one branch before pooling.

        Raises:
            UserError: the network has no feature maps.
        """
        chain = self.backbone if branch == 0 else cast(StageChain, self.copies[branch - 1])
        *before, end = (step for stage in self._own for step in stage.steps)
        return checked_maps(chain.do(tuple(before), x), end)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of all branches on the same images [B, E, D]."""
        x = self.trunk(images)
        return torch.stack([self.tail(e, x) for e in range(len(self.copies) + 1)], dim=1)

    def standalone(self) -> Standalone:
        """Return an equivalent module that includes the backbone."""
        return Standalone(self)


class Standalone(nn.Module):
    """``Branches`` with the backbone as a submodule, for publication.

    Args:
        branches: the module to wrap.
    """

    def __init__(self, branches: Branches) -> None:
        super().__init__()
        self.backbone, self.branches = branches.backbone, branches

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of all branches [B, E, D]."""
        features: Tensor = self.branches(images)
        return features


class ExpertHead(nn.Module):
    """One classifier for each expert: features [B, E, D] to logits [B, E, C].

    Args:
        experts: number of experts E.
        num_features: number of features D.
        num_classes: number of classes C.
        scale: factor of the cosine, > 0; ``None`` is linear classifiers.
        bias: add a bias to each; linear classifiers always have one.
    """

    def __init__(
        self,
        experts: int,
        num_features: int,
        num_classes: int,
        scale: float | None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            LinearHead(num_features, num_classes)
            if scale is None
            else CosineHead(num_features, num_classes, scale, bias)
            for _ in range(experts)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every expert."""
        pairs = zip(self.experts, features.unbind(dim=1), strict=True)
        return torch.stack([head(own) for head, own in pairs], dim=1)


class ExpertMean(nn.Module):
    """Mean logits of all experts, for publication: images to logits [B, C].

    Args:
        features: module from images to the features of every expert [B, E, D].
        head: module from these features to the logits of every expert [B, E, C].
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits."""
        logits: Tensor = self.head(self.features(images)).mean(dim=1)
        return logits


def cut(backbone: Backbone, at: str) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """Return the stages of a backbone before ``at`` and from ``at`` on; see ``Branches``."""
    if at == "block":
        stages = cut_before_last_block(backbone.net, backbone._stages)
        return stages[:-1], stages[-1:]
    start = backbone._range(at).start
    return backbone._stages[:start], backbone._stages[start:]


@torch.no_grad()
def redraw(module: nn.Module) -> None:
    """Redraw the weights of untrained copies with the same standard deviations.

    Weights with one dimension, e.g. of normalisations, are kept.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.is_meta:
            nn.init.normal_(parameter, std=float(parameter.std(correction=0)))

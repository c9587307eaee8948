"""Weights of a released model by what they are: network, further branches, classifiers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["linear", "cosine", "either"]


@dataclass(frozen=True)
class Classifier:
    """Classifier of a released model.

    Args:
        kind: linear, cosine, or either of them where the names of the file do not tell.
        weight: [C, D].
        bias: [C], or ``None``.
        scales: learned factors of the logits of each class [C], or ``None``.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor | None = None
    scales: Tensor | None = None

    def permuted(self, order: Tensor) -> Classifier:
        """Return the classifier with its classes in another order.

        Args:
            order: label of the class at each position [C].
        """
        where = torch.argsort(order)

        def moved(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows[where].contiguous()

        weight = self.weight[where].contiguous()
        return Classifier(self.kind, weight, moved(self.bias), moved(self.scales))


@dataclass(frozen=True)
class Parts:
    """Released weights by what they are.

    Args:
        body: of the network without its classifier, by the names of the file.
        classifiers: one, or one for each expert or network.
        tails: of each further expert, the weights of its own stages.
        branch_at: first stage that the experts have of their own; ``block`` is the last residual
            block, ``whole`` all of the network.
        block: branches of ResLT by the names of ``ResLTHead.block``.
        fusion: convolutions of inner maps by the names of ``FusedBranches.shallow`` (SHIKE).
        adapters: weights inside the blocks of an encoder that is not in the file (LIFT).
    """

    body: dict[str, Tensor]
    classifiers: tuple[Classifier, ...]
    tails: tuple[dict[str, Tensor], ...] = ()
    branch_at: str = ""
    block: dict[str, Tensor] = field(default_factory=dict)
    fusion: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, Tensor] = field(default_factory=dict)

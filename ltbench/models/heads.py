"""Classifiers on pooled features: [B, D] to logits [B, C]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.losses.precision import full


class LinearHead(nn.Linear):
    """Linear classifier with the initialisation of the long-tailed literature.

    The weight is Kaiming-normal (fan-in, gain sqrt(2)) as in the literature's CIFAR codes; the
    bias has PyTorch's uniform initialisation. ``head_init: pytorch`` of a stage initialises both
    as ``nn.Linear`` does, as in other codes. Both are stored as in ``nn.Linear``: weight [C, D],
    bias [C].

    Args:
        num_features: number of features D.
        num_classes: number of classes C.
        bias: add a bias.
    """

    def __init__(self, num_features: int, num_classes: int, bias: bool = True) -> None:
        super().__init__(num_features, num_classes, bias=bias)

    def reset_parameters(self) -> None:
        """Reinitialise weight and bias."""
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight)


class CosineHead(nn.Module):
    """Scaled cosine between features and one direction per class.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss, NeurIPS 2019, arXiv:1906.07413 (the classifier of the authors' code).
    Departures: the authors multiply by the scale inside the loss; here it is part of the head,
        so that predicted probabilities and calibration are those of the trained model.

    Args:
        num_features: number of features D.
        num_classes: number of classes C.
        scale: factor of the cosine, > 0.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_features, num_classes))  # [D, C]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the columns: uniform in (-1, 1), then normalised."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C] in [-scale, scale].

        Under autocast they are in single precision: half would round a logit of 30 by up to 0.1.
        """
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self._logits(full(features))
        return self._logits(features)

    def _logits(self, features: Tensor) -> Tensor:
        return self.scale * (F.normalize(features, dim=1) @ F.normalize(self.weight, dim=0))

    def extra_repr(self) -> str:
        """Return sizes and scale for ``repr``."""
        features, classes = self.weight.shape
        return f"num_features={features}, num_classes={classes}, scale={self.scale}"


class ScaledHead(nn.Module):
    """Classifier whose logits, bias included, are multiplied by a learnable scale per class.

    Reference: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217 (learnable weight scaling); Zhong et al., Improving
        Calibration for Long-Tailed Recognition, CVPR 2021, arXiv:2104.00466 (MiSLAS stage 2).
    Departures: the decoupling code multiplies in place; the values are the same.

    Args:
        head: the classifier to scale; freezing it is up to the method.
        num_classes: number of classes C.
    """

    def __init__(self, head: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.head = head
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return scaled logits [B, C]."""
        logits: Tensor = self.scale * self.head(features)
        return logits


class ShiftedHead(nn.Module):
    """Classifier with a constant added to its logits, e.g. for post-hoc logit adjustment.

    Args:
        head: the classifier to shift.
        offset: constant added to the logits [C]; stored, not trained.
    """

    offset: Tensor

    def __init__(self, head: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("offset", offset.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return shifted logits [B, C]."""
        logits: Tensor = self.head(features) + self.offset
        return logits


class NormalizedHead(nn.Module):
    """Linear classifier without bias, each weight vector divided by its norm to the power tau.

    Reference: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217, Eqn 4.
    Departures: none known; the bias is dropped, as in the authors' code.

    Args:
        weight: trained weight, one row per class [C, D]; a row of zeros stays zero.
        tau: exponent of the norms: 0 keeps them, 1 removes them.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, tau: float) -> None:
        super().__init__()
        norms = weight.detach().norm(dim=1, keepdim=True)
        floor = torch.finfo(weight.dtype).tiny
        self.register_buffer("weight", weight.detach() / norms.clamp(min=floor) ** tau)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return F.linear(features, self.weight)

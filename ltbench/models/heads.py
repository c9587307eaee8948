"""Classifiers on pooled features: [B, D] to logits [B, C]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.errors import UserError
from ltbench.losses.etf import SHORTEST, etf_directions
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
        bias: add a bias, 0 at the start.
    """

    def __init__(
        self, num_features: int, num_classes: int, scale: float = 30.0, bias: bool = False
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_features, num_classes))  # [D, C]
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the columns: uniform in (-1, 1), then normalised."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=0))
            if self.bias is not None:
                self.bias.zero_()

    @torch.no_grad()
    def point(self, directions: Tensor) -> None:
        """Set the direction of each class, in any floating-point type.

        Args:
            directions: one row per class [C, D]; their lengths do not matter.

        Raises:
            UserError: the shape is another, or a row is zero or not finite.
        """
        classes, features = self.weight.shape[::-1]
        if directions.shape != (classes, features):
            raise UserError(
                f"initial directions of a cosine classifier: required {[classes, features]} "
                f"(classes, features), found {list(directions.shape)}; take those of these classes "
                "and this backbone"
            )
        unit = F.normalize(directions.double(), dim=1)
        bad = (unit.norm(dim=1) - 1).abs().nan_to_num(1.0) > 1e-3
        if bad.any():
            raise UserError(
                f"initial directions of a cosine classifier: that of class {int(bad.nonzero()[0])} "
                "is zero or not finite; give other features"
            )
        self.weight.copy_(unit.T)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C], in [-scale, scale] without a bias.

        Under autocast they are in single precision: half would round a logit of 30 by up to 0.1.
        """
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self._logits(full(features))
        return self._logits(features)

    def _logits(self, features: Tensor) -> Tensor:
        logits = self.scale * (F.normalize(features, dim=1) @ F.normalize(self.weight, dim=0))
        return logits if self.bias is None else logits + self.bias

    def extra_repr(self) -> str:
        """Return sizes and scale for ``repr``."""
        features, classes = self.weight.shape
        return f"num_features={features}, num_classes={classes}, scale={self.scale}"


def text_directions(embeddings: Tensor, projection: Tensor) -> Tensor:
    """Return the direction of each class in the features of an image encoder, from its text.

    Reference: Shi et al., Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts,
        ICML 2024, arXiv:2309.10019 (LIFT), semantic-aware initialisation.
    Departures: none known.

    Args:
        embeddings: text features in the space shared with images, of any length [C, E].
        projection: image projection, features to shared space; timm's ``head.weight`` [E, D].

    Returns:
        Unit rows [C, D].
    """
    return F.normalize(F.normalize(embeddings, dim=1) @ projection, dim=1)


def class_mean_directions(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the direction of each class's mean feature.

    Reference: Shi et al., Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts,
        ICML 2024, arXiv:2309.10019 (LIFT), for encoders without text.
    Departures: none known.

    Args:
        features: features [N, D].
        labels: class of each [N].
        num_classes: number of classes C.

    Returns:
        Unit rows [C, D]; zero for a class without features.
    """
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    return F.normalize(sums / labels.bincount(minlength=num_classes).clamp(min=1)[:, None], dim=1)


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


class ETFHead(nn.Module):
    """Fixed classifier of equal angles on normalised features.

    Features pass a batch normalisation and, with ``unit``, are brought to length 1; logits are
    their products with the directions, which are drawn once and never trained.

    Reference: Yang et al., Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a
        Learnable Classifier at the End of Deep Neural Network?, NeurIPS 2022, arXiv:2203.09081.
    Departures: none known.

    Args:
        num_features: number of features D, at least C.
        num_classes: number of classes C, at least 2.
        unit: bring features to length 1.

    Raises:
        UserError: there are fewer features than classes.
    """

    directions: Tensor

    def __init__(self, num_features: int, num_classes: int, unit: bool = True) -> None:
        super().__init__()
        if not num_features >= num_classes >= 2:
            raise UserError(
                f"an ETF classifier needs 2 classes or more and as many features as classes, found "
                f"{num_features} features and {num_classes} classes; take a wider backbone, e.g. "
                "`backbone.args.widths=[32,64,128]` of a CIFAR ResNet"
            )
        self.norm = nn.BatchNorm1d(num_features)
        self.unit = unit
        drawn = torch.rand(num_features, num_classes, dtype=torch.float64)
        directions = etf_directions(torch.linalg.qr(drawn).Q)
        self.register_buffer("directions", directions.to(torch.get_default_dtype()))

    def normalised(self, features: Tensor) -> Tensor:
        """Return normalised features [B, D], under autocast in single precision."""
        with torch.autocast(features.device.type, enabled=False):
            found: Tensor = self.norm(full(features))
            return F.normalize(found, dim=1, eps=SHORTEST) if self.unit else found

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C], with ``unit`` cosines."""
        return self.logits(self.normalised(features))

    def logits(self, normalised: Tensor) -> Tensor:
        """Return logits [B, C] of normalised features."""
        with torch.autocast(normalised.device.type, enabled=False):
            return normalised @ self.directions

"""Options of contrastive methods."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ltbench.config.schema import MOST, Config


class PaCo(Config):
    """Options of PaCo."""

    revision: ClassVar[int] = 1  # the projection used to have no normalisation

    queue: int = Field(8192, ge=1)
    """Length of the queue of keys."""
    dim: int = Field(128, ge=1)
    """Dimension of projected features."""
    temperature: float = Field(0.2, gt=0)
    """Temperature of the contrastive loss."""
    alpha: float = Field(0.05, ge=0)
    """Weight of each positive feature (of the anchor's class)."""
    beta: float = Field(1.0, gt=0)
    """Weight of the positive centre (of the anchor's class)."""
    gamma: float = Field(1.0, ge=0)
    """Weight of features, relative to centres, in the denominator."""
    momentum: float = Field(0.999, ge=0, le=1)
    """Momentum of the encoder's moving average."""
    projection_init: Literal["kaiming_normal", "pytorch"] = "pytorch"
    """Initial weights of the projection's last layer: as in the public CIFAR codes, or the
    default of `nn.Linear`."""


class GPaCo(Config):
    """Options of GPaCo."""

    queue: int = Field(8192, ge=1)
    """Length of the queue of earlier features."""
    dim: int = Field(128, ge=1)
    """Dimension of projected features."""
    temperature: float = Field(0.2, gt=0)
    """Temperature of the contrastive loss."""
    alpha: float = Field(0.05, ge=0)
    """Weight of each positive feature (of the anchor's class)."""
    beta: float = Field(1.0, gt=0)
    """Weight of the positive centre (of the anchor's class)."""
    gamma: float = Field(1.0, ge=0)
    """Weight of features, relative to centres, in the denominator."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of `beta` that goes to the centres of the other classes."""
    projection_init: Literal["kaiming_normal", "pytorch"] = "pytorch"
    """Initial weights of the projection's last layer: as in the public CIFAR codes, or the
    default of `nn.Linear`."""


class BCL(Config):
    """Options of BCL."""

    lam: float = Field(1.0, ge=0)
    """Weight of the classification loss."""
    mu: float = Field(0.35, ge=0)
    """Weight of the contrastive loss."""
    temperature: float = Field(0.07, gt=0)
    """Temperature of the contrastive loss."""
    dim: int = Field(1024, ge=1)
    """Dimension of projected features."""
    scale: float = Field(30.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine."""


class ProCo(Config):
    """Options of ProCo."""

    alpha: float = Field(1.0, ge=0)
    """Weight of the contrastive loss."""
    temperature: float = Field(0.1, gt=0)
    """Temperature of the contrastive loss."""
    dim: int = Field(128, ge=8, le=MOST)
    """Dimension of projected features."""
    hidden: int | None = Field(None, ge=1, le=MOST)
    """Width of the projection's hidden layer; null is the number of features."""
    scale: float | None = Field(None, gt=0)
    """Scale s of a cosine classifier: logits are s times the cosine; null is a linear one."""

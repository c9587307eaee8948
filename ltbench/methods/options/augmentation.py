"""Options of methods that mix, paste or generate images or features."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ltbench.config.schema import EPOCHS, MOST, Config
from ltbench.methods.options.losses import LDAMDRW


class ChosenLoss(Config):
    """Options of methods that change images only, and train with one of the usual losses."""

    loss: Literal["bs", "ce_drw", "ldam_drw"] = "bs"
    """Loss: balanced softmax, or cross-entropy or LDAM with class weights late in training."""
    max_margin: float = Field(0.5, ge=0)
    """Margin of the rarest class, in units of the cosine; ldam_drw only."""
    scale: float = Field(30.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine; ldam_drw only."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """Beta of the effective number; 0 gives equal weights; ce_drw and ldam_drw."""
    reweight_from: int | None = Field(160, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with class weights; null is never; ce_drw and
    ldam_drw."""


class CMO(ChosenLoss):
    """Options of CMO."""

    oversampling: float = Field(1.0, ge=0, le=3)
    """Exponent a of the weights n_k^-a of pasted images: 1 is class-balanced, 0 uniform."""
    probability: float = Field(0.5, ge=0, le=1)
    """Probability that patches are pasted in a step."""
    alpha: float = Field(1.0, gt=0)
    """Lambda ~ Beta(alpha, alpha); 1 is uniform."""
    start: int = Field(4, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with pasted patches."""
    stop_before: int = Field(3, ge=0, json_schema_extra=EPOCHS)
    """Last epochs of the stage without pasted patches."""


class CUDA(CMO):
    """Options of CUDA."""

    accept: float = Field(0.6, ge=0, lt=1)
    """Share of right answers that a class has to exceed at every strength up to its level; 0.4 on
    large sets."""
    trials: int = Field(10, ge=1, le=MOST)
    """Images of a class that are tried at strength 0; s + 1 times as many at strength s."""
    most: int = Field(10, ge=0, le=30)
    """Highest level: number of operations and, out of 30, their strength."""
    augmented: float = Field(0.5, ge=0, le=1)
    """Probability that an image is augmented at the level of its class."""
    paste: bool = False
    """Paste patches of class-balanced images, too, as CMO does."""


class GLMC(Config):
    """Options of GLMC."""

    oversampling: float = Field(0.0, ge=0, le=3)
    """Exponent k of the weights n_k^-k of partner images: 0 is uniform, 1 class-balanced."""
    reweighting: float = Field(1.2, ge=0, le=10)
    """Exponent r of the class weights n_k^-r of the re-weighted labels, scaled to sum to C."""
    consistency: float = Field(4.0, ge=0)
    """Weight w of the agreement of both mixtures."""
    dim: int = Field(128, ge=1, le=MOST)
    """Dimension of projected features: 128 on CIFAR, 256 on large sets."""
    alpha: float = Field(1.0, gt=0)
    """Lambda ~ Beta(alpha, alpha); 1 is uniform."""


class M2m(Config):
    """Options of M2m."""

    generate_from: int = Field(160, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with generated images."""
    beta: float = Field(0.999, ge=0, lt=1)
    """Acceptance parameter; near 1, only seeds of much more frequent classes are accepted."""
    lam: float = Field(0.5, ge=0)
    """Weight of the seed class's logit in the trained model, which is minimised."""
    gamma: float = Field(0.9, ge=0, le=1)
    """Smallest confidence of the helper in the target class."""
    steps: int = Field(10, ge=1)
    """Gradient steps of the translation."""
    step_size: float = Field(0.1, gt=0)
    """Length of a step, with pixels in [0, 1]."""
    noise: float = Field(0.5, ge=0)
    """Largest L2 norm of the initial noise."""


class RSG(LDAMDRW):
    """Options of RSG in addition to those of LDAM-DRW."""

    revision: ClassVar[int] = 1  # weight decay used to act on unused parameters

    generate_from: int = Field(160, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with generated samples; the pair classifier is
    trained before it."""
    centers: int = Field(15, ge=1)
    """Centers per class."""
    strength: float = Field(1.0, gt=0, le=1)
    """Fraction of the larger of the head and tail groups of a batch that is paired."""
    head_share: float = Field(0.2, gt=0, lt=1)
    """Fraction of the classes, the most frequent ones, whose variation is transferred."""
    vectors: Literal["memory", "channels"] = "memory"
    """Vectors of the variation loss: consecutive numbers in memory, as released, or the
    channels at each position, as in the paper."""
    center_weight: float = Field(0.1, ge=0)
    """Weight of the center loss and of the pair classifier's loss."""
    variation_weight: float = Field(0.01, ge=0)
    """Weight of the variation loss."""

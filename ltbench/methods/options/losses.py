"""Options of methods that are a loss on one classifier."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ltbench.config.schema import ADDED, EPOCHS, Config


class CE(Config):
    """Options of cross-entropy: none."""


class Mixup(Config):
    """Options of mixup."""

    alpha: float = Field(1.0, gt=0)
    """Lambda ~ Beta(alpha, alpha); 1 is uniform, smaller values mix less."""


class Focal(Config):
    """Options of focal loss."""

    gamma: float = Field(2.0, ge=0)
    """Exponent of the factor (1 - p); 0 is cross-entropy."""


class ClassBalanced(Config):
    """Options of the class-balanced loss."""

    beta: float = Field(0.9999, ge=0, lt=1)
    """Beta of the effective number; 0 gives equal weights."""
    gamma: float = Field(0.0, ge=0)
    """Focusing parameter of the focal loss; 0 is cross-entropy."""
    reweight_from: int | None = Field(0, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with class weights; null is never."""
    divide: Literal["images", "weight"] = "images"
    """Divisor of the weighted losses: the number of images, or the sum of weights."""


class LDAMDRW(Config):
    """Options of LDAM-DRW."""

    max_margin: float = Field(0.5, ge=0)
    """Margin of the rarest class, in units of the cosine."""
    scale: float = Field(30.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """Beta of the effective number; 0 gives equal weights."""
    reweight_from: int | None = Field(160, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with class weights; null is never."""


class BalancedSoftmax(Config):
    """Options of balanced softmax: none."""


class LogitAdjustment(Config):
    """Options of logit adjustment in the loss."""

    tau: float = Field(1.0, ge=0)
    """Strength of the prior; 1 is Balanced Softmax, 0 is cross-entropy."""


class VS(Config):
    """Options of the VS loss."""

    gamma: float = Field(0.3, ge=0)
    """Exponent of the factors (n_k / n_max)^gamma; 0 is logit adjustment."""
    tau: float = Field(1.0, ge=0)
    """Strength of the added log prior; 0 leaves only the factors."""


class LADE(Config):
    """Options of LADE."""

    alpha: float = Field(0.1, ge=0)
    """Weight of the regulariser; 0 is prior-adjusted cross-entropy."""
    lam: float = Field(0.01, ge=0)
    """Weight of the squared term inside the regulariser."""


class GCL(Mixup):
    """Options of GCL."""

    alpha: float = Field(1.0, ge=0)
    """Lambda of mixup ~ Beta(alpha, alpha); 0 disables mixup."""
    scale: float = Field(30.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine."""
    noise: float = Field(0.5, ge=0)
    """Largest noise of the rarest class, in units of the cosine."""
    margin: float = Field(0.0, ge=0)
    """Margin subtracted from the cosine of the label."""
    focus: float = Field(0.0, ge=0)
    """Exponent of the focal factor (1 - p), held constant in the gradient; 0 omits it."""


class GCLStage2(GCL):
    """Options of GCL, stage 2."""

    mix: Literal["images_and_labels", "labels"] = Field(
        "images_and_labels", json_schema_extra=ADDED
    )
    """Targets of mixup; with `labels` the images are not mixed, but the labels are."""
    scale: float = Field(20.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine."""
    margin: float = Field(0.1, ge=0)
    """Margin subtracted from the cosine of the label."""
    focus: float = Field(1.0, ge=0)
    """Exponent of the focal factor (1 - p), held constant in the gradient; 0 omits it."""


class ETF(Mixup):
    """Options of the fixed classifier with dot regression."""

    alpha: float = Field(1.0, ge=0)
    """Lambda of mixup ~ Beta(alpha, alpha); 0 disables mixup."""
    unit: bool = True
    """Bring features to length 1."""
    lengths: Literal["unit", "batch"] = "unit"
    """Lengths of the class directions in the loss: 1, or those that weight the classes of a batch
    equally."""
    length_weight: float = Field(0.0, ge=0)
    """Weight of the mean length of the features, which is added to the loss; has an effect only
    without `unit`."""


class CCSAM(Mixup):
    """Options of CC-SAM, stage 1."""

    alpha: float = Field(1.0, ge=0)
    """Lambda of mixup ~ Beta(alpha, alpha); 0 disables mixup."""
    flat: float = Field(0.5, ge=0, le=1)
    """Weight of the loss under the perturbed classifier."""
    noise: float = Field(1e-6, ge=0)
    """Scale of the perturbations."""


class DifficultyNet(Config):
    """Options of Difficulty-Net."""

    hidden: int = Field(128, ge=1)
    """Width of the hidden layers."""
    layers: int = Field(2, ge=1)
    """Number of hidden layers."""
    lam: float = Field(0.3, ge=0)
    """Weight of the driver loss."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate of the network (Adam)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of the network."""
    meta_gradient: bool = True
    """Train the network on the meta loss too; false: on the driver loss only."""

"""Options of later stages, in which a classifier is trained again or corrected post hoc."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ltbench.config.schema import Config
from ltbench.methods.options.losses import CE


class CRT(CE):
    """Options of cRT: none."""


class LWS(CE):
    """Options of LWS: none."""


class TauNorm(Config):
    """Options of tau-normalisation."""

    tau: float = Field(1.0, ge=0)
    """Exponent of the norms: 0 keeps them, 1 removes them."""


class LogitAdjustmentPosthoc(Config):
    """Options of post-hoc logit adjustment."""

    tau: float = Field(1.0, ge=0)
    """Strength of the prior; 0 leaves the model unchanged."""


class MiSLAS(Config):
    """Options of MiSLAS, stage 2."""

    smooth_head: float = Field(0.3, ge=0, le=1)
    """Label smoothing of the largest class."""
    smooth_tail: float = Field(0.0, ge=0, le=1)
    """Label smoothing of the smallest class, at most `smooth_head`."""
    shape: Literal["concave", "linear", "convex", "exponential"] = "concave"
    """Shape of the smoothing between the two, as a function of class counts."""
    power: float | None = Field(None, gt=0)
    """Exponent of shape `exponential`; null for the other shapes."""

    @model_validator(mode="after")
    def _consistent(self) -> MiSLAS:
        if self.smooth_tail > self.smooth_head:
            raise ValueError("smooth_tail must be at most smooth_head")
        if (self.shape == "exponential") != (self.power is not None):
            raise ValueError("power is required by shape `exponential`, and by no other")
        return self


class LOS(Config):
    """Options of LOS, stage 2."""

    smoothing: float = Field(0.98, ge=0, le=1)
    """Share of the label that is spread over all classes; at 1 nothing of the label is left."""


class WeightBalancing(Config):
    """Options of weight balancing, stage 2."""

    beta: float = Field(0.9999, ge=0, lt=1)
    """Beta of the effective number in the class weights; 0 gives equal weights."""
    limit: float = Field(0.1, ge=0, le=1)
    """Largest norm of a class's weights: its place between the smallest norm as the stage begins,
    0, and the largest, 1."""
    project: Literal["step", "epoch"] = "epoch"
    """Shorten longer weights after each step, as in the paper, or each epoch, as in the code."""


class H2T(Config):
    """Options of H2T, stage 2."""

    share: float = Field(0.25, ge=0, le=1)
    """Share rho of the channels that come from an image of another draw; 0 is cRT on the old
    classifier."""


class DisAlign(Config):
    """Options of DisAlign."""

    rho: float = Field(1.2, ge=0)
    """Class weights are pi_k^(-rho), scaled to sum to C; 0 gives equal weights."""
    form: Literal["paper", "code"] = "code"
    """Combination of calibrated and original logits."""


class PlotStage2(Config):
    """Options of the released stage 2."""

    div: float = Field(2.0, gt=0)
    """Divisor of the class weights log(n_max / n_k + 0.01) / div."""
    adver_reg: float = Field(1.0, ge=0)
    """Length of the feature shift of a class, in units of its weight."""
    up_limit: float = Field(1.0, ge=0, le=1)
    """Largest weight of the shifted loss, reached by a linear ramp over the epochs."""

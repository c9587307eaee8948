"""Options of methods with several branches, experts or networks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ltbench.config.schema import ADDED, EPOCHS, MOST, Config
from ltbench.methods.options.losses import Mixup


class BBN(Config):
    """Options of BBN."""

    revision: ClassVar[int] = 1  # part names used to refer to the first branch only

    branch_at: str = "block"
    """Start of the separate branches: the last residual `block`, or the name of a stage."""
    horizon: Literal["stage", "hundreds"] = "stage"
    """T_max of the schedule: the epochs of the stage, or these rounded up to hundreds."""


class ResLT(Config):
    """Options of ResLT."""

    medium_and_tail: int | None = Field(None, ge=0)
    """Number of rarest classes of the second branch; null is 65 % of the classes."""
    tail: int | None = Field(None, ge=0)
    """Number of rarest classes of the third branch, at most `medium_and_tail`; null is 30 % of
    the classes."""
    beta: float = Field(0.995, ge=0, le=1)
    """Weight of the branch losses; 1 - beta is the weight of the fused loss."""
    block: Literal["bn", "conv1x1"] = "bn"
    """Type of a branch: a batch normalisation (CIFAR), or a third of a 1x1 convolution."""
    gamma: float | None = Field(None, ge=0)
    """Evaluate with weights w / |w|^gamma and no bias; null evaluates as trained."""
    eval_after_pooling: bool = False
    """Evaluate the branches on pooled features."""
    fused_floor: bool = Field(False, json_schema_extra=ADDED)
    """Add 1e-7 to the probabilities of the fused loss, as in the branch losses."""

    @model_validator(mode="after")
    def _nested(self) -> ResLT:
        both = self.medium_and_tail, self.tail
        if None not in both and self.group_sizes(0)[1] > self.group_sizes(0)[0]:
            raise ValueError("tail must be at most medium_and_tail")
        return self

    def group_sizes(self, num_classes: int) -> tuple[int, int]:
        """Return the numbers of rarest classes of the second and third branch."""
        medium, tail = self.medium_and_tail, self.tail
        if medium is None:
            medium = max(round(0.65 * num_classes), tail or 0)
        return medium, min(round(0.3 * num_classes), medium) if tail is None else tail


class Experts(Config):
    """Options of all methods with experts."""

    revision: ClassVar[int] = 1  # part names used to refer to the first expert only

    experts: int = Field(3, ge=2)
    """Number of experts E."""
    branch_at: str = "layer2"
    """First stage with separate weights per expert, e.g. layer3 of a ResNet-50."""
    scale: float = Field(30.0, gt=0)
    """Scale s of the cosine classifiers: logits are s times the cosine."""


class RIDE(Experts):
    """Options of RIDE."""

    max_margin: float = Field(0.5, ge=0)
    """Margin of the rarest class, in units of the cosine."""
    diversity: float = -0.2
    """Weight kappa of the experts' divergence from their mean; negative pushes them apart."""
    temperature_factor: float = Field(0.05, ge=0, le=1)
    """Factor r that lowers the temperatures of rarer classes; 0 makes them equal."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """Beta of the effective number; 0 gives equal weights."""
    reweight_from: int | None = Field(160, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with class weights and temperatures; null is
    never."""


class SADE(Experts):
    """Options of SADE."""

    experts: Literal[3] = 3
    """Number of experts, always three."""
    tau: float = Field(2.0, ge=0)
    """Strength of the reversed prior in the third expert: 2, or 1 on Places-LT and
    iNaturalist."""


class BalPoE(Experts, Mixup):
    """Options of BalPoE."""

    alpha: float = Field(0.4, ge=0)
    """Lambda of mixup ~ Beta(alpha, alpha); 0 disables mixup."""
    strengths: Literal["limits", "uniform"] | tuple[float, ...] = "limits"
    """Strength of the log prior in each expert's loss: from `tau_min` to `tau_max` in equal steps
    (limits), at the middles of equal intervals between them (uniform), or one number for each
    expert; their mean should be 1."""
    tau_min: float = 0.0
    """Smallest strength; negative ones favour frequent classes."""
    tau_max: float = 2.0
    """Largest strength, at least `tau_min`."""

    @model_validator(mode="after")
    def _one_strength_per_expert(self) -> BalPoE:
        if self.tau_min > self.tau_max:
            raise ValueError("tau_min must be at most tau_max")
        if not isinstance(self.strengths, str) and len(self.strengths) != self.experts:
            raise ValueError(
                f"strengths: give one for each of {self.experts} experts, found "
                f"{len(self.strengths)}"
            )
        return self


class MDCS(Experts):
    """Options of MDCS."""

    powers: tuple[float, ...] = Field((-0.5, 1.0, 2.5), min_length=2, max_length=100)
    """Exponent q of the class counts in the logit adjustment of each expert: 0 is cross-entropy, 1
    Balanced Softmax."""
    consistency: float = Field(0.6, ge=0)
    """Weight of the divergence of the strong view from the weak one."""
    warmup: int = Field(20, ge=1, json_schema_extra=EPOCHS)
    """Epoch, counted from 1, from which that weight is the full one, after a linear ramp."""

    @model_validator(mode="after")
    def _one_each(self) -> MDCS:
        if len(self.powers) != self.experts:
            raise ValueError(
                f"powers must have one number per expert, {self.experts}, found {len(self.powers)}"
            )
        return self


class SHIKE(Experts):
    """Options of SHIKE, stage 1."""

    branch_at: str = "last"
    """First stage with separate weights per expert; the inner stages before it, but the first, are
    those that the experts combine with."""
    suppression: float = Field(10.0, ge=0)
    """Weight of the divergences from the common target of the other classes."""
    label_logit: float = -30.0
    """Logit of the label in the experts' predictions without it."""


class SHIKEStage2(Config):
    """Options of SHIKE, stage 2."""

    scale: float = Field(30.0, gt=0)
    """Scale s of the cosine classifiers: logits are s times the cosine."""


class DirMixE(Experts):
    """Options of DirMixE."""

    experts: Literal[3] = 3
    """Number of experts, always three."""
    draws: int = Field(60, ge=1)
    """Test priors drawn in each step."""
    concentration: float = Field(1e4, gt=0)
    """Concentration of the priors around their centres: the sum of Dirichlet parameters."""
    power: float = Field(1.3, ge=0)
    """Exponent r of the ratio of test to training prior in the loss; 0 leaves cross-entropy."""
    penalty: float = Field(5.0, ge=0)
    """Weight lambda of the upper semi-variance of the losses over the draws."""
    penalty_from: int | None = Field(160, ge=0, json_schema_extra=EPOCHS)
    """First epoch of the stage, counted from 0, with the penalty; null is never."""


class NCL(Config):
    """Options of NCL."""

    experts: int = Field(3, ge=2)
    """Number of networks E."""
    hard: int | None = Field(None, ge=1, le=MOST)
    """Number of hard classes of an image, its label included; null is 30 % of the classes."""
    diversity: float = Field(0.6, ge=0)
    """Weight of the networks' distillation into each other."""
    scale: float | None = Field(None, gt=0)
    """Scale s of cosine classifiers, which have a bias; null is linear ones."""
    prediction: Literal["ensemble", "single"] = "ensemble"
    """Predict by the mean of all networks, or by the first one alone."""


class NCLPlusPlus(NCL):
    """Options of NCL++."""

    experts: int = Field(2, ge=2)
    """Number of networks E."""
    copies: int = Field(4, ge=1, le=64)
    """Augmented copies of each image in a batch."""

"""Options of the methods, by the name of their classes: what a recipe can set.

They stand apart from the methods, which import torch, so that a recipe is checked and shown
without it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ltbench.config.schema import ADDED, CONTENT, EPOCHS, MOST, Config


class CE(Config):
    """Options of cross-entropy: none."""


class Mixup(Config):
    """Options of mixup."""

    alpha: float = Field(1.0, gt=0)
    """Lambda ~ Beta(alpha, alpha); 1 is uniform, smaller values mix less."""


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


class HeadInit(Config):
    """Initial directions of a cosine classifier."""

    name: Literal["random", "text", "class_mean"] = "random"
    """random directions; text: those of a table of the class names' text features, brought back by
    the encoder's own projection; class_mean: of the mean features of each class's training images,
    without augmentation."""
    file: str | None = Field(None, json_schema_extra=CONTENT)
    """Table of text features, written by `ltbench data text-table` for these classes and this
    encoder; text only."""
    images: int | None = Field(None, ge=1, le=MOST)
    """Most training images of a class in its mean, drawn at random; null is all; class_mean
    only."""

    @model_validator(mode="after")
    def _own_options(self) -> HeadInit:
        if self.file is not None and self.name != "text":
            raise ValueError(f"file is an option of init `text`, not of `{self.name}`")
        if self.images is not None and self.name != "class_mean":
            raise ValueError(f"images is an option of init `class_mean`, not of `{self.name}`")
        return self


class LIFT(LogitAdjustment):
    """Options of LIFT in addition to those of logit adjustment."""

    scale: float = Field(25.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine."""
    init: HeadInit = HeadInit()
    """Initial directions of the classifier."""


class LIFTPlus(LIFT):
    """Options of LIFT+: those of LIFT."""


class ClassMean(Config):
    """Options of the class-mean classifier."""

    scale: float = Field(25.0, gt=0)
    """Scale s of the cosine classifier, which calibration depends on and accuracy does not."""
    images: int | None = Field(None, ge=1, le=MOST)
    """Most training images of a class in its mean, drawn at random; null is all."""


class ZeroShot(Config):
    """Options of the classifier from text."""

    scale: float = Field(100.0, gt=0)
    """Scale s of the cosine classifier, which calibration depends on and accuracy does not."""
    file: str | None = Field(None, json_schema_extra=CONTENT)
    """Table of text features, written by `ltbench data text-table` for these classes and this
    encoder."""


class LogitAdjustmentPosthoc(Config):
    """Options of post-hoc logit adjustment."""

    tau: float = Field(1.0, ge=0)
    """Strength of the prior; 0 leaves the model unchanged."""


class CRT(CE):
    """Options of cRT: none."""


class LWS(CE):
    """Options of LWS: none."""


class TauNorm(Config):
    """Options of tau-normalisation."""

    tau: float = Field(1.0, ge=0)
    """Exponent of the norms: 0 keeps them, 1 removes them."""


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


class PlotStage2(Config):
    """Options of the released stage 2."""

    div: float = Field(2.0, gt=0)
    """Divisor of the class weights log(n_max / n_k + 0.01) / div."""
    adver_reg: float = Field(1.0, ge=0)
    """Length of the feature shift of a class, in units of its weight."""
    up_limit: float = Field(1.0, ge=0, le=1)
    """Largest weight of the shifted loss, reached by a linear ramp over the epochs."""


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


class DisAlign(Config):
    """Options of DisAlign."""

    rho: float = Field(1.2, ge=0)
    """Class weights are pi_k^(-rho), scaled to sum to C; 0 gives equal weights."""
    form: Literal["paper", "code"] = "code"
    """Combination of calibrated and original logits."""


class CCSAM(Mixup):
    """Options of CC-SAM, stage 1."""

    alpha: float = Field(1.0, ge=0)
    """Lambda of mixup ~ Beta(alpha, alpha); 0 disables mixup."""
    flat: float = Field(0.5, ge=0, le=1)
    """Weight of the loss under the perturbed classifier."""
    noise: float = Field(1e-6, ge=0)
    """Scale of the perturbations."""


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

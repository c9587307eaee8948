from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.distributed import ranks
from ltbench.losses import cross_entropy_rows, mixup_rows
from ltbench.losses.adaptive import class_perturbed_logits, radii_of, radius_divisors
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.mixup import Mixup
from ltbench.models.heads import LinearHead


class CCSAM(Mixup):
    """Stage 1 of CC-SAM: Mixup with a classifier that is perturbed against each class in turn.

    Stage 2 is the method `plot_stage2`.

    Reference: Zhou et al., Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed
        Recognition, CVPR 2023, section 3.2; the radius is that of the authors' code.
    Departures: as in the code, only the classifier is perturbed, and the perturbed loss takes the
        first label of a mixed image only. A class with one training image, for which the code
        divides by zero, has the radius of a class with two; a zero gradient perturbs nothing.
        Gradients are means over the global batch (each micro-batch with gradient accumulation).
        A mixed image is one row with the class of its first label. A classifier of the previous
        stage that is not linear is replaced.
    """

    Config = options.CCSAM
    config: options.CCSAM
    head: nn.Linear
    divisors: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the divisors of the radii from the class counts."""
        super().setup(previous)
        scalars = sum(p.numel() for p in self.head.parameters())
        divisors = radius_divisors(self.info.class_counts, scalars)
        self.register_buffer("divisors", divisors, persistent=False)

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier if it is linear, else a new one."""
        if previous is not None and isinstance(previous.head, nn.Linear):
            return previous.head
        return LinearHead(self.backbone.num_features, self.info.num_classes)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch, unless ``alpha`` is 0."""
        return super().prepare(batch, at) if self.config.alpha > 0 else batch

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image: ``flat`` weights the perturbed loss against the plain."""
        features = self.backbone(batch.views[0])
        logits = self.head(features)
        if batch.partner is None:
            plain = cross_entropy_rows(logits, batch.labels)
        else:
            plain = mixup_rows(logits, batch.labels, batch.partner, batch.lam)
        perturbed = self.perturbed(features, logits, batch)
        flat = self.config.flat
        rows = (1 - flat) * plain + flat * cross_entropy_rows(perturbed, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())

    def perturbed(self, features: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """Return the logits [B, C] of each row under the classifier perturbed for its class."""
        known = features.detach(), logits.detach()
        inputs, outputs = (x.float() if x.dtype.itemsize < 4 else x for x in known)
        residuals = outputs.softmax(dim=1) - batch.lam * one_hot(batch.labels, outputs)
        if batch.partner is not None:
            residuals = residuals - (1 - batch.lam) * one_hot(batch.partner, outputs)
        parameters = list(self.head.parameters())
        scalars = sum(p.numel() for p in parameters)
        size = sum((p.detach() ** 2).sum() for p in parameters) ** 0.5
        sizes, start = batch.per_rank, ranks.first_row(batch.per_rank)
        owners, *everyone = ranks.all_gather_labelled(batch.labels, [inputs, residuals], sizes)
        return class_perturbed_logits(
            logits,
            features,
            batch.labels,
            anchors=(owners, everyone[0], everyone[1]),
            radii=radii_of(self.divisors, size, self.config.noise),
            scalars=scalars,
            bias=self.head.bias is not None,
            share=slice(start, start + len(batch.labels)),
            total=ranks.all_reduce_,
        )


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Return one-hot labels with the shape and dtype of ``like`` [B, C]."""
    return F.one_hot(labels, like.shape[1]).to(like)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from ltbench.data.shots import ShotRule, shot_groups
from ltbench.errors import DivergenceError, UserError

if TYPE_CHECKING:
    from torch import Tensor, device

BINS = 15
UNKNOWN = -1  # label and prediction in open-set recognition

_SCALE = 2**36  # confidences are summed as integers, so that the order does not matter


def open_set_f(
    predictions: Sequence[int] | Tensor,
    labels: Sequence[int] | Tensor,
    *,
    rejected_is_wrong: bool,
) -> float:
    """Return the F-measure of open-set recognition.

    -1 stands for unknown: as a label, an image of no known class; as a prediction, a rejected
    image. True positives are known images with the right class. Precision counts known images
    with a wrong class as false positives, "recall" counts accepted unknown images as false
    negatives.

    Reference: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019,
        arXiv:1904.05160 (``rejected_is_wrong=True``); Kang et al., Decoupling Representation and
        Classifier for Long-Tailed Recognition, ICLR 2020, arXiv:1910.09217 (``False``), each as
        in the authors' code.
    Departures: 0 without true positives, instead of the codes' small constants. Both codes
        use an unusual definition of recall, which is kept.

    Args:
        predictions: predicted classes, or -1 [B].
        labels: true classes, or -1 [B].
        rejected_is_wrong: count a rejected known image as a false positive.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: the numbers of predictions and labels differ.
    """
    import torch

    predicted, true = torch.as_tensor(predictions), torch.as_tensor(labels)
    if predicted.shape != true.shape or true.dim() != 1:
        raise ValueError(
            f"expected as many predictions as labels, found shapes {list(predicted.shape)} and "
            f"{list(true.shape)}"
        )
    known, accepted, right = true != UNKNOWN, predicted != UNKNOWN, predicted == true
    hits = int((known & right).sum())
    wrong = int((known & ~right & (accepted | rejected_is_wrong)).sum())
    missed = int((~known & accepted).sum())
    return 2 * hits / max(2 * hits + wrong + missed, 1)  # of hits / (hits + wrong or missed)


class Metrics(BaseModel):
    """Test results as integer counts, from which all averages are derived.

    Args:
        class_counts: training images of each class [C].
        shot_rule: definition of shot groups, see ``shot_groups``.
        correct: correctly classified test images of each class [C].
        total: test images of each class [C].
        bin_count: test images by confidence, in 15 equal bins (lo, hi] over [0, 1].
        bin_confidence: sum of the confidences in each bin.
        bin_correct: correctly classified images in each bin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_counts: tuple[NonNegativeInt, ...] = Field(min_length=1)
    shot_rule: ShotRule = "strict"
    correct: tuple[NonNegativeInt, ...]
    total: tuple[NonNegativeInt, ...]
    bin_count: tuple[NonNegativeInt, ...] = Field(min_length=BINS, max_length=BINS)
    bin_confidence: tuple[float, ...] = Field(min_length=BINS, max_length=BINS)
    bin_correct: tuple[NonNegativeInt, ...] = Field(min_length=BINS, max_length=BINS)

    @classmethod
    def from_counts(
        cls,
        correct: Sequence[int],
        total: Sequence[int],
        bins: Sequence[tuple[int, float, int]],
        class_counts: Sequence[int],
        rule: str | tuple[int, int] = "strict",
    ) -> Metrics:
        """Return metrics from per-class counts and calibration bins.

        Args:
            correct: correctly classified images of each class [C].
            total: images of each class [C].
            bins: (images, sum of confidence, correct) of each of the 15 bins.
            class_counts: training images of each class [C].
            rule: see ``shot_groups``.
        """
        count, confidence, right = zip(*bins, strict=True)
        values: Mapping[str, Any] = {
            "class_counts": tuple(class_counts),
            "shot_rule": rule,
            "correct": tuple(correct),
            "total": tuple(total),
            "bin_count": count,
            "bin_confidence": confidence,
            "bin_correct": right,
        }
        return cls.model_validate(values)

    @model_validator(mode="after")
    def _consistent(self) -> Metrics:
        classes = len(self.class_counts)
        if not len(self.correct) == len(self.total) == classes:
            raise ValueError(
                f"expected {classes} classes in correct and total, found {len(self.correct)} "
                f"and {len(self.total)}"
            )
        for k, (right, of) in enumerate(zip(self.correct, self.total, strict=True)):
            if right > of:
                raise ValueError(f"class {k} has {right} correct of {of} images")
        if sum(self.total) == 0:
            raise ValueError("expected at least one test image, found none")
        bins = (sum(self.bin_count), sum(self.bin_correct))
        if bins != (sum(self.total), sum(self.correct)):
            raise ValueError(
                f"bins hold {bins[0]} images, {bins[1]} correct; classes hold "
                f"{sum(self.total)}, {sum(self.correct)} correct"
            )
        for b, (count, confidence, right) in enumerate(self._bins()):
            low, high = b / BINS * count, (b + 1) / BINS * count
            if right > count or not low - 1e-6 <= confidence <= high + 1e-6:
                raise ValueError(
                    f"bin {b} with {count} images cannot hold {right} correct and a sum of "
                    f"confidences of {confidence:g}"
                )
        return self

    def _bins(self) -> list[tuple[int, float, int]]:
        return list(zip(self.bin_count, self.bin_confidence, self.bin_correct, strict=True))

    @property
    def top1(self) -> float:
        """Top-1 accuracy in [0, 1], called *overall* in the literature."""
        return sum(self.correct) / sum(self.total)

    @property
    def mean_recall(self) -> float:
        """Mean recall of the classes that have test images; equals ``top1`` on a balanced set."""
        recall = self._recall(range(len(self.total)))
        return 0.0 if recall is None else recall  # never: some class has images

    @property
    def many(self) -> float | None:
        """Mean recall of the many-shot classes; ``None`` if there are none."""
        return self._recall(shot_groups(self.class_counts, self.shot_rule)["many"])

    @property
    def medium(self) -> float | None:
        """Mean recall of the medium-shot classes; ``None`` if there are none."""
        return self._recall(shot_groups(self.class_counts, self.shot_rule)["medium"])

    @property
    def few(self) -> float | None:
        """Mean recall of the few-shot classes; ``None`` if there are none."""
        return self._recall(shot_groups(self.class_counts, self.shot_rule)["few"])

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence| of each bin, averaged over images."""
        gaps = (abs(right - confidence) for _, confidence, right in self._bins())
        return sum(gaps) / sum(self.bin_count)

    def with_rule(self, rule: ShotRule) -> Metrics:
        """Return the same counts with another definition of shot groups."""
        return self.model_copy(update={"shot_rule": rule})

    def _recall(self, classes: Sequence[int]) -> float | None:
        recalls = [self.correct[k] / self.total[k] for k in classes if self.total[k]]
        return sum(recalls) / len(recalls) if recalls else None


class Accumulator:
    """Accumulates integer results over batches on the device, without synchronisation.

    Ranks are combined by summing ``tensor()``, whose size is fixed; the sum does not depend on the
    number of ranks or their order.

    Args:
        num_classes: number of classes C.
        device: device of the logits.
    """

    def __init__(self, num_classes: int, device: device | str = "cpu") -> None:
        import torch

        self.num_classes = num_classes
        # correct [C], total [C], then images, confidence and correct of the bins, then failures
        size = 2 * num_classes + 3 * BINS + 1
        self._sums = torch.zeros(size, dtype=torch.int64, device=device)
        inner = torch.arange(1, BINS, dtype=torch.float64, device=device)
        self._edges = inner / BINS

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            logits: [B, C].
            labels: class of each image [B], in 0..C-1.
        """
        import torch

        predicted = logits.argmax(dim=1)
        probability = torch.softmax(logits, dim=1, dtype=torch.float64)
        confidence = probability.gather(1, predicted[:, None])[:, 0]
        self.count(confidence, predicted == labels, labels)

    def count(self, confidence: Tensor, correct: Tensor, labels: Tensor) -> None:
        """Add images by confidence.

        Args:
            confidence: probability of the predicted class [B], in [0, 1].
            correct: true where the prediction is right [B].
            labels: class of each image [B].
        """
        import torch

        classes, right = self.num_classes, correct.long()
        confidence = confidence.double()
        finite = confidence.isfinite()
        confidence = torch.where(finite, confidence, 0.0)
        bins = 2 * classes + torch.bucketize(confidence, self._edges)  # (lo, hi]
        ones = torch.ones_like(right)
        index = [
            labels,
            labels + classes,
            bins,
            bins + BINS,
            bins + 2 * BINS,
            torch.full_like(right, len(self._sums) - 1),
        ]
        values = [right, ones, ones, (confidence * _SCALE).round().long(), right, (~finite).long()]
        self._sums.index_add_(0, torch.cat(index), torch.cat(values))

    def tensor(self) -> Tensor:
        """Return all sums as one int64 tensor, which may be summed over ranks."""
        return self._sums

    def load_tensor(self, sums: Tensor) -> None:
        """Replace the sums, e.g. by those of all ranks."""
        self._sums = sums

    def metrics(
        self, class_counts: Sequence[int], rule: str | tuple[int, int] = "strict"
    ) -> Metrics:
        """Return the metrics of all batches so far.

        Args:
            class_counts: training images of each class [C].
            rule: see ``shot_groups``.

        Raises:
            UserError: there were no images, or logits were not finite.
        """
        sums = self._sums.tolist()
        classes = self.num_classes
        total = sums[classes : 2 * classes]
        if sums[-1]:
            raise DivergenceError(
                f"the model returns NaN or infinite logits for {sums[-1]} of {sum(total)} images; "
                "training has diverged or the weights are damaged"
            )
        if not sum(total):
            raise UserError("nothing to evaluate: expected at least one test image, found none")
        bins = sums[2 * classes : -1]
        triples = zip(bins[:BINS], bins[BINS : 2 * BINS], bins[2 * BINS :], strict=True)
        return Metrics.from_counts(
            sums[:classes],
            total,
            [(count, confidence / _SCALE, right) for count, confidence, right in triples],
            class_counts,
            rule,
        )

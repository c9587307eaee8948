from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ltbench.config import schema
from ltbench.data.base import Source
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import sample
from ltbench.diagnose.figures import openset as figures
from ltbench.diagnose.figures.openset import SCORES
from ltbench.diagnose.predictions import Seen, groups_of, see
from ltbench.diagnose.scores import accepted, auroc, fpr_at
from ltbench.diagnose.sentences import number
from ltbench.diagnose.unknown import as_own, files_of, source_of
from ltbench.errors import UserError
from ltbench.evaluation.metrics import UNKNOWN, open_set_f
from ltbench.seeding import derive, keyed_permutation

if TYPE_CHECKING:
    import pandas as pd

DEFINITIONS = {"oltr": True, "decoupling": False}  # whether a rejected known image counts as wrong
STEPS = 101  # thresholds of a curve
BINS = 40  # of a histogram


class Openset(Diagnostic):
    """Separation of images of known classes from images of unknown classes."""

    title = "Open set"
    shown = (
        "Distributions of the scores of known and unknown images; the open-set F-measure at every "
        "threshold; ROC curves, the share of accepted known images against that of accepted "
        "unknown images."
    )
    computed = (
        "Three scores: the largest softmax probability, the log-sum-exp of the logits (the "
        "negative energy), and the largest cosine between the features of an image and the class "
        "prototypes, which are the mean training features of each class. The predicted class is "
        "that of the largest logit, for the cosine that of the nearest prototype; images with a "
        "score below the threshold are rejected. The F-measure follows both public definitions: "
        "OLTR's, where a rejected known image counts as wrong, and that of the decoupling code, "
        "where it does not; both count an accepted unknown image as missed. Published values use "
        "the softmax with the threshold 0.1; the PLOT paper uses the cosine to prototypes, without "
        "public code or a stated threshold. The best threshold on these images is given for OLTR's "
        "definition, as an upper bound; for the other definition it is meaningless, since F tends "
        "to 1 when all but a few confident images are rejected. AUROC and FPR95 take known images "
        "as positives: FPR95 is the share of unknown images accepted when 95 % of the known ones "
        "are. Both are also given for the known images of each shot group against all unknown "
        "ones. Unknown images are cropped, resized and normalised like those of the model's data; "
        "users must ensure that they contain no known class."
    )
    see = (
        "Known and unknown images should be well separated. The meaning of the softmax threshold "
        "0.1 depends on the number of classes: with ten classes it rejects nothing. Few-shot "
        "classes often have scores like unknown ones: a threshold that rejects unknown images also "
        "rejects the tail."
    )

    captions: ClassVar[dict[str, str]] = {
        "scores": "Scores of known images by shot group and of unknown images (grey).",
        "f_measure": "F-measure at each threshold by both definitions; the dotted line is the "
        "published threshold.",
        "roc": "Known against unknown images accepted; the marker is FPR95.",
    }
    headings: ClassVar[dict[str, str]] = {
        "separation": "Separation of known and unknown images",
        "f_measure": "F-measure",
        "curve": "F-measure by threshold",
        "roc": "ROC curve",
        "histogram": "Histogram of scores",
    }

    class Options(schema.Config):
        """Options of the open set."""

        unknown: str | None = None
        """Folder of images of unknown classes, or a text file with one path per line."""
        dataset: str | None = None
        """Alternatively, a registered data set whose test images are the unknown images."""
        root: str | None = None
        """Folder of that data set."""
        options: dict[str, Any] = Field({})
        """Further options of that data set."""
        images: int | None = Field(None, ge=1)
        """Largest number of unknown images, drawn at random; all if not given."""
        threshold: float = Field(0.1, ge=0, le=1)
        """Softmax threshold: images with a lower largest probability are rejected."""
        prototype_images: int = Field(100, ge=1)
        """Largest number of training images per class for its prototype."""

        @model_validator(mode="after")
        def _one_source(self) -> Openset.Options:
            if self.unknown is not None and self.dataset is not None:
                raise ValueError("give unknown=FOLDER or dataset=NAME, not both")
            return self

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return the tables of ``open_set_tables``.

        Raises:
            UserError: no unknown images are given, or they cannot be read.
        """
        source = self._unknown(subject)
        order = keyed_permutation(derive(0, "diagnose", "unknown"), len(source))
        order = np.sort(order[: self.options.images])
        prototypes = class_prototypes(subject, self.options.prototype_images)
        known = score(see(subject, subject.data.test), prototypes)
        unknown = score(see(subject, *as_own(subject, source, order)), prototypes)
        return open_set_tables(known, unknown, groups_of(subject), self.options.threshold)

    def _unknown(self, subject: Subject) -> Source:
        """Return the source of the unknown images."""
        cfg = self.options
        if cfg.unknown is not None:
            return files_of(cfg.unknown)
        if cfg.dataset is None:
            raise UserError(
                "openset needs images of unknown classes: openset.unknown=FOLDER, or "
                "openset.dataset=NAME openset.root=DIR for the test images of a data set"
            )
        from ltbench.config.validation import build_options

        values = {**cfg.options, **({"root": cfg.root} if cfg.root is not None else {})}
        data = build_options("DATASETS", cfg.dataset, values).load()  # type: ignore[attr-defined]
        if data.info.class_names == subject.data.info.class_names:
            raise UserError(
                f"openset.dataset={cfg.dataset} has the classes that {subject.name} was trained "
                "on; give one of other classes"
            )
        return source_of(data.test)

    def images(self, subject: Subject) -> int:
        """Return the known images; unknown ones are counted only when they are read."""
        if self.options.unknown is None and self.options.dataset is None:
            return 0
        each = self.options.prototype_images * subject.data.info.num_classes
        return (
            len(subject.data.test)
            + min(len(subject.data.train), each)
            + (self.options.images or len(subject.data.test))
        )

    def describe(self, tables: Tables) -> list[str]:
        """Say which score separates best, and for which shot group least."""
        table = tables["separation"]
        overall = table[table["group"] == "overall"].sort_values("auroc", ascending=False)
        pairs = zip(overall["score"], overall["auroc"], strict=True)
        parts = [f"{SCORES[s]} {number(a)}" for s, a in pairs]
        best = overall.iloc[0]
        groups = table[(table["score"] == best["score"]) & (table["group"] != "overall")]
        by_group = ", ".join(
            f"{g} {number(a)}" for g, a in zip(groups["group"], groups["auroc"], strict=True)
        )
        return [
            f"separation of {best['known']:,} known from {best['unknown']:,} unknown images, AUROC "
            f"(0.5 is chance): {', '.join(parts)}.",
            f"AUROC of the best score by shot group of the known images: {by_group}.",
        ]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures ``scores``, ``f_measure`` and ``roc``."""
        return {
            "scores": figures.scores_figure(results),
            "f_measure": figures.f_figure(results),
            "roc": figures.roc_figure(results),
        }


@dataclass(frozen=True)
class Scored:
    """Scores of images, higher for known ones, and predicted classes.

    Args:
        scores: scores by name, float64 [N].
        predicted: predicted classes by name of the score, int64 [N].
        labels: class of each image, int64 [N]; meaningless for unknown images.
    """

    scores: Mapping[str, np.ndarray]
    predicted: Mapping[str, np.ndarray]
    labels: np.ndarray


def class_prototypes(subject: Subject, images: int) -> Tensor:
    """Return the mean features of the training images of each class, float64 [C, D].

    Args:
        subject: the trained model; its training images are not augmented.
        images: largest number of images per class, drawn at random.
    """
    split, classes = subject.data.train, range(subject.data.info.num_classes)
    total: Tensor | None = None
    count = torch.zeros(len(classes), dtype=torch.float64, device=subject.device)
    for seen in see(subject, split, sample(split.labels, classes, each=images)):
        features = seen.features.double()
        if total is None:
            total = features.new_zeros(len(classes), features.shape[1])
        total.index_add_(0, seen.labels, features)
        count += torch.bincount(seen.labels, minlength=len(classes))
    if total is None:
        raise UserError(f"{subject.name} has no training images, so that there are no prototypes")
    return total / count.clamp(min=1)[:, None]


def score(batches: Iterable[Seen], prototypes: Tensor) -> Scored:
    """Return the scores of images.

    Args:
        batches: logits and features of the images.
        prototypes: class prototypes [C, D].

    Raises:
        UserError: a score is not finite.
    """
    parts = []
    for seen in batches:
        logits = seen.logits.double()
        log_p, best = logits.log_softmax(dim=1).max(dim=1)
        cosine, nearest = (
            F.normalize(seen.features.double(), dim=1) @ F.normalize(prototypes, dim=1).T
        ).max(dim=1)
        three = torch.stack([log_p.exp(), logits.logsumexp(dim=1), cosine])
        classes = torch.stack([best, best, nearest])
        parts.append([x.cpu().numpy() for x in (three, classes, seen.labels)])
    values, answers, labels = (np.concatenate(p, axis=-1) for p in zip(*parts, strict=True))
    if not np.isfinite(values).all():
        raise UserError(
            "the model's scores are NaN or infinite; training has diverged or the weights are "
            "damaged"
        )
    by_name = dict(zip(SCORES, values, strict=True))
    return Scored(by_name, dict(zip(SCORES, answers, strict=True)), labels)


def open_set_tables(
    known: Scored, unknown: Scored, groups: Mapping[str, Sequence[int]], threshold: float
) -> Tables:
    """Return the tables of the comparison of known and unknown images.

    Args:
        known: scores of known images, with labels.
        unknown: scores of unknown images; labels are ignored.
        groups: classes of each shot group.
        threshold: threshold of the softmax score.

    Returns:
        Tables ``separation`` (a row per score and group of known images), ``f_measure`` (a row per
        score, definition and threshold), ``curve`` (F at every threshold), ``roc`` and
        ``histogram``.
    """
    import pandas as pd

    members = {"overall": range(int(known.labels.max()) + 1), **groups}
    inside = {name: np.isin(known.labels, list(classes)) for name, classes in members.items()}
    inside = {name: there for name, there in inside.items() if there.any()}
    separation, measures, curves, rocs, histograms = [], [], [], [], []
    for name in SCORES:
        ours, theirs = known.scores[name], unknown.scores[name]
        for group, there in inside.items():
            separation.append(
                {
                    "score": name,
                    "group": group,
                    "known": int(there.sum()),
                    "unknown": len(theirs),
                    "auroc": auroc(ours[there], theirs),
                    "fpr95": fpr_at(ours[there], theirs),
                }
            )
        curve = f_curve(known, unknown, name)
        curves.append(curve)
        best = curve["threshold"].to_numpy()[curve["oltr"].to_numpy().argmax()]
        chosen = [("best here", float(best), "oltr")]
        if name == "softmax":
            chosen += [("as published", threshold, d) for d in DEFINITIONS]
        for kind, at, definition in chosen:
            measures.append(
                {
                    "score": name,
                    "definition": definition,
                    "kind": kind,
                    "threshold": at,
                    "f": f_at(known, unknown, name, at, DEFINITIONS[definition]),
                    "known_accepted": float((ours >= at).mean()),
                    "unknown_accepted": float((theirs >= at).mean()),
                }
            )
        both = np.concatenate([ours, theirs])
        steps = np.unique(np.quantile(both, np.linspace(0, 1, 2 * STEPS - 1)))
        steps = np.append(steps, np.inf)
        rocs.append(
            pd.DataFrame(
                {
                    "score": name,
                    "threshold": steps,
                    "unknown_accepted": accepted(theirs, steps),
                    "known_accepted": accepted(ours, steps),
                }
            )
        )
        edges = np.linspace(*_range(name, both), BINS + 1)
        parts = {"unknown": theirs, **{g: ours[t] for g, t in inside.items() if g != "overall"}}
        for kind, values in parts.items():
            images, _ = np.histogram(values, edges)
            histograms.append(
                pd.DataFrame(
                    {"score": name, "images_of": kind, "low": edges[:-1], "high": edges[1:],
                     "images": images, "share": images / len(values)}
                )
            )  # fmt: skip
    return {
        "separation": pd.DataFrame(separation),
        "f_measure": pd.DataFrame(measures),
        "curve": pd.concat(curves, ignore_index=True),
        "roc": pd.concat(rocs, ignore_index=True),
        "histogram": pd.concat(histograms, ignore_index=True),
    }


def f_at(
    known: Scored, unknown: Scored, name: str, threshold: float, rejected_is_wrong: bool
) -> float:
    """Return the F-measure at one threshold of a score; see ``metrics.open_set_f``.

    Args:
        known: scores of known images, with labels.
        unknown: scores of unknown images.
        name: name of the score.
        threshold: images with lower scores are rejected.
        rejected_is_wrong: whether a rejected known image is a false positive.
    """
    answers = [
        np.where(side.scores[name] >= threshold, side.predicted[name], UNKNOWN)
        for side in (known, unknown)
    ]
    labels = np.concatenate([known.labels, np.full(len(answers[1]), UNKNOWN)])
    return open_set_f(
        torch.from_numpy(np.concatenate(answers)),
        torch.from_numpy(labels),
        rejected_is_wrong=rejected_is_wrong,
    )


def f_curve(known: Scored, unknown: Scored, name: str) -> pd.DataFrame:
    """Return F at evenly spaced thresholds of a score, with one column per definition."""
    import pandas as pd

    both = np.concatenate([known.scores[name], unknown.scores[name]])
    thresholds = np.linspace(*_range(name, both), STEPS)
    rows = {
        definition: [f_at(known, unknown, name, float(t), wrong) for t in thresholds]
        for definition, wrong in DEFINITIONS.items()
    }
    return pd.DataFrame({"score": name, "threshold": thresholds, **rows})


def _range(name: str, scores: np.ndarray) -> tuple[float, float]:
    if name == "softmax":
        return 0.0, 1.0
    low, high = float(scores.min()), float(scores.max())
    return low, high if high > low else low + 1.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import collect, sample, shot_of, spread_classes
from ltbench.diagnose.predictions import groups_of
from ltbench.diagnose.sentences import LEVEL, number
from ltbench.methods.inner import evaluating
from ltbench.models.heads import CosineHead
from ltbench.plotting import blank, colours, markers, shared_legend, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 20  # classes up to which points are named
COLLAPSE = {
    "nc1": "NC1: within- over between-class variance",
    "equinorm": "NC2: unequal norms of means",
    "equiangle": "NC2: deviation from equal angles",
    "duality": "NC3: class means against classifier",
}


class Norms(Diagnostic):
    """Classifier norms and feature geometry against the number of training images."""

    title = "Classifier norms, feature spread and neural collapse"
    shown = (
        "First, for each class against its training images: norm of the classifier weight, bias, "
        "distance of the mean feature from the centre, and spread of the features around the mean. "
        "Then, measures of neural collapse for all classes and by shot group; 0 is full collapse."
    )
    computed = (
        "The weight of the classifier is W of the affine map from features to logits, including "
        "all scales and shifts on top of it; a cosine classifier has no such map, so its stored "
        "weight is shown, whose norm does not affect the logits. Features are those of training "
        "images without augmentation, at most `each` per class, of up to `classes` classes evenly "
        "spaced by frequency. Neural collapse follows Papyan, Han and Donoho, PNAS 2020, "
        "arXiv:2008.08186, with the mean of class means as centre, so that frequent classes do not "
        "dominate it: NC1 = tr(S_W S_B^+) / C; equinorm = standard deviation over mean of the "
        "distances of class means from the centre; equiangle = mean of |cos + 1/(C-1)| over pairs "
        "of classes; duality = |W/|W| - M/|M||^2, W and M centred, in [0, 4]. For a shot group, "
        "the averages are over its own classes or pairs, with the same centre, S_B and number C "
        "of sampled classes. Departures: S_W divides by n - 1, an unbiased estimate for small "
        "classes, and classes with one image have no spread."
    )
    see = (
        "Plain training gives frequent classes larger weight norms, which re-balancing of the "
        "classifier removes. Rare classes often have means near the centre and small angles "
        "between each other (minority collapse). Near-zero values on training images say nothing "
        "about test images."
    )

    captions: ClassVar[dict[str, str]] = {
        "classes": "Each point is a class, at its number of training images (logarithmic).",
        "collapse": "Measures of neural collapse, for all classes and by shot group.",
    }
    headings: ClassVar[dict[str, str]] = {
        "classes": "Norms and spread by class",
        "collapse": "Neural collapse",
    }

    class Options(schema.Config):
        """Options of the norms."""

        each: int = Field(50, ge=2)
        """Largest number of images per class."""
        classes: int = Field(100, ge=2)
        """Largest number of classes whose features are sampled."""
        split: Literal["train", "test"] = "train"
        """Split of the images."""
        seed: int = Field(0, ge=0)
        """Random seed of the sample."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``classes`` (a row per class) and ``collapse`` (a row per shot group)."""
        import pandas as pd

        options, info = self.options, subject.data.info
        split = subject.data.train if options.split == "train" else subject.data.test
        chosen = sorted(set(spread_classes(info.class_counts, options.classes)))
        chosen = sorted(set(chosen) & set(np.unique(split.labels).tolist()))
        seen = collect(
            subject, split, sample(split.labels, chosen, each=options.each, seed=options.seed)
        )
        classifier = classifier_of(subject, seen.features, seen.logits)
        groups = groups_of(subject)
        shape = geometry(seen.features, seen.labels)
        table = pd.DataFrame(
            {
                "class": range(info.num_classes),
                "name": info.class_names,
                "count": info.class_counts,
                "group": shot_of(info.class_counts, groups),
            }
        ).set_index("class")
        table["weight_norm"] = np.nan if classifier.weight is None else classifier.norms()
        table["bias"] = np.nan if classifier.bias is None else classifier.bias
        for name, values in (
            ("images", shape.images),
            ("mean_norm", shape.mean_norms),
            ("spread", shape.spreads),
            ("nc1", shape.nc1),
        ):
            table[name] = pd.Series(values, index=shape.classes)
        rows = []
        for name, classes in {"all": list(range(info.num_classes)), **groups}.items():
            inside = np.isin(shape.classes, classes)
            if inside.any():
                rows.append(
                    {
                        "group": name,
                        "split": options.split,
                        "classes": int(inside.sum()),
                        "images": int(shape.images[inside].sum()),
                        **shape.collapse(inside, classifier.weight),
                        "classifier": classifier.described,
                    }
                )
        return {"classes": table.reset_index(), "collapse": pd.DataFrame(rows)}

    def images(self, subject: Subject) -> int:
        """Return the size of the sample at most."""
        split = subject.data.train if self.options.split == "train" else subject.data.test
        return min(len(split), self.options.each * self.options.classes)

    def describe(self, tables: Tables) -> list[str]:
        """Say whether classifier norms follow the training images, and which group collapsed."""
        table = tables["classes"]
        found = []
        known = table.dropna(subset=["weight_norm"])
        if len(known) > 2 and known["count"].nunique() > 1 and known["weight_norm"].nunique() > 1:
            from scipy.stats import spearmanr

            result = spearmanr(known["count"], known["weight_norm"])
            rank, chance = float(result.statistic), float(result.pvalue)
            if chance >= LEVEL:
                verb = "does not depend on"
            else:
                verb = "grows with" if rank > 0 else "falls with"
            noise = " beyond the noise" if chance >= LEVEL else ""
            found.append(
                f"the norm of the classifier weight {verb} the number of training images{noise} "
                f"(rank correlation {number(rank)} over {len(known)} classes, p = "
                f"{number(chance)})."
            )
        rows = tables["collapse"].dropna(subset=["nc1"])
        parts = [f"{row['group']} classes {number(row['nc1'])}" for row in rows.to_dict("records")]
        if parts:
            split = rows["split"].iloc[0]
            found.append(
                f"within- over between-class variance of {split} features (NC1; 0 is full "
                f"collapse): {', '.join(parts)}."
            )
        return found

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures ``classes`` and ``collapse``."""
        return {"classes": _draw_classes(results), "collapse": _draw_collapse(results)}


@dataclass(frozen=True)
class Classifier:
    """Classifier of a model as an affine map, if it is one.

    Args:
        weight: weight [C, D], or ``None``.
        bias: bias [C], or ``None``.
        described: short description of the weight.
    """

    weight: np.ndarray | None
    bias: np.ndarray | None
    described: str

    def norms(self) -> np.ndarray:
        """Return the norm of the weight of each class [C]."""
        if self.weight is None:
            raise ValueError("there is no weight")
        result: np.ndarray = np.linalg.norm(self.weight, axis=1)
        return result


@dataclass(frozen=True)
class Geometry:
    """Geometry of the features of classes.

    Args:
        classes: sorted labels of the classes [K].
        images: images of each class [K].
        means: mean features minus their mean, the centre [K, D].
        spreads: root mean squared distance of the images of a class from its mean [K]; NaN for a
            class with one image.
        nc1: trace of the class covariance times the pseudo-inverse of the covariance of the means,
            divided by the number of classes [K].
    """

    classes: np.ndarray
    images: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    nc1: np.ndarray

    @property
    def mean_norms(self) -> np.ndarray:
        """Distances of the class means from the centre [K]."""
        result: np.ndarray = np.linalg.norm(self.means, axis=1)
        return result

    def collapse(self, inside: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
        """Return measures of neural collapse of some classes; NaN if undefined.

        Reference: Papyan, Han and Donoho, Prevalence of Neural Collapse during the Terminal Phase
            of Deep Learning Training, PNAS 2020, arXiv:2008.08186.
        Departures: see ``Norms.computed``.

        Args:
            inside: mask of the classes to average over, bool [K].
            weight: classifier [C, D] with a row for each class of the data set, or ``None``.
        """
        norms = self.mean_norms
        count = len(self.classes)
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = self.means / norms[:, None]
            own = unit[inside]
            pairs = np.triu_indices(len(own), k=1)
            cosines = (own @ own.T)[pairs]
            spread = self.nc1[inside]
            found = {
                "nc1": float(np.nanmean(spread)) if np.isfinite(spread).any() else np.nan,
                "equinorm": float(norms[inside].std() / norms[inside].mean()),
                "cosine": float(cosines.mean()) if len(cosines) else np.nan,
                "equiangle": float(np.abs(cosines + 1 / (count - 1)).mean())
                if len(cosines)
                else np.nan,
                "duality": np.nan,
            }
            if weight is not None and weight.shape[1] == self.means.shape[1]:
                rows = weight[self.classes]
                rows = (rows - rows.mean(axis=0))[inside]
                means = self.means[inside]
                gap = rows / np.linalg.norm(rows) - means / np.linalg.norm(means)
                found["duality"] = float((gap**2).sum())
        return found


def geometry(features: np.ndarray, labels: np.ndarray) -> Geometry:
    """Return the geometry of the features of classes.

    Args:
        features: features [N, D].
        labels: class of each image [N].
    """
    classes, place, images = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, place, features)
    means = sums / images[:, None]
    away = features - means[place]
    centred = means - means.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    scale = max(float(values[0]), float(np.abs(features).max()))
    kept = values > max(centred.shape) * np.finfo(np.float64).eps * scale
    scaled = (away @ directions[kept].T) / values[kept]  # S_B^+ / C is V diag(1 / s^2) V^T
    free = np.where(images > 1, images - 1, np.nan)
    return Geometry(
        classes=classes,
        images=images,
        means=centred,
        spreads=np.sqrt(_by_class((away**2).sum(axis=1), place, len(classes)) / free),
        nc1=_by_class((scaled**2).sum(axis=1), place, len(classes)) / free,
    )


@torch.no_grad()
def classifier_of(subject: Subject, features: np.ndarray, logits: np.ndarray) -> Classifier:
    """Return the effective weight and bias of the classifier.

    Args:
        subject: the trained model.
        features: inputs of the classifier [N, D].
        logits: logits of the model for these [N, C].
    """
    head, size = subject.method.head, features.shape[1]
    classes = logits.shape[1]
    parameter = next((t for t in [*head.parameters(), *head.buffers()]), None)
    if parameter is not None:
        try:
            with evaluating(subject.method):
                probe = torch.cat([torch.zeros(1, size), torch.eye(size)]).to(parameter)
                out = head(probe).double().cpu().numpy()
        except (RuntimeError, ValueError, IndexError):
            out = np.empty(0)  # not on flat features: experts, residual branches
        if out.shape == (size + 1, classes) and np.isfinite(out).all():
            weight, bias = (out[1:] - out[0]).T, out[0]
            error = np.abs(features @ weight.T + bias - logits).max()
            if error <= 1e-3 * max(1.0, float(np.abs(logits).max())):
                return Classifier(weight, bias, "affine map from features to logits")
    for module in head.modules():
        stored = getattr(module, "weight", None)
        if isinstance(module, CosineHead) and tuple(module.weight.shape) == (size, classes):
            weight = module.weight.double().cpu().numpy().T
            return Classifier(weight, None, "stored weight of a cosine classifier")
        if isinstance(stored, torch.Tensor) and tuple(stored.shape) == (classes, size):
            bias = getattr(module, "bias", None)
            shift = bias.double().cpu().numpy() if isinstance(bias, torch.Tensor) else None
            return Classifier(
                stored.double().cpu().numpy(), shift, "stored weight, under a calibration"
            )
    return Classifier(None, None, f"{_name(head)} has no weight with one row per class")


def _name(head: nn.Module) -> str:
    return type(head).__name__


def _by_class(values: np.ndarray, place: np.ndarray, count: int) -> np.ndarray:
    """Return the sums of values by class [K]."""
    return np.bincount(place, weights=values, minlength=count)


def _draw_classes(results: Mapping[str, Tables]) -> Figure:
    """Draw norms, biases, distances and spreads of classes against their training images."""
    figure = blank(9.6, 6.6)
    panels = figure.subplots(2, 2, sharex=True)
    titles = {
        "weight_norm": "norm of the classifier weight",
        "bias": "bias, logits",
        "mean_norm": "distance of the class mean from the centre",
        "spread": "spread of features around the class mean",
    }
    colour, marker = colours(results), markers(results)
    for axes, (column, title) in zip(panels.flat, titles.items(), strict=True):
        for name, tables in results.items():
            table = tables["classes"]
            many = len(table) > 100
            axes.plot(
                table["count"], table[column], marker[name], color=colour[name], label=name,
                markersize=2.5 if many else 5.5, alpha=0.5 if many else 0.9, markeredgewidth=0,
            )  # fmt: skip
        if len(results) == 1 and len(table) <= NAMED:
            for row in table[["name", "count", column]].dropna().itertuples(index=False):
                axes.annotate(
                    str(row[0])[:14], (row[1], row[2]), xytext=(4, 3), fontsize=7,
                    textcoords="offset points",
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.margins(y=0.1)
        if column != "bias":
            axes.set_ylim(bottom=0)
        if all(tables["classes"][column].isna().all() for tables in results.values()):
            axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        tidy(axes)
    for axes in panels[1]:
        axes.set_xlabel("training images of the class")
    if len(results) > 1:
        shared_legend(figure)
    return figure


def _draw_collapse(results: Mapping[str, Tables]) -> Figure:
    """Draw one panel per measure, with one bar per group and subject."""
    figure = blank(9.6, 3.6)
    panels = figure.subplots(1, len(COLLAPSE))
    groups = list(next(iter(results.values()))["collapse"]["group"])
    colour = colours(results)
    width = 0.8 / len(results)
    for axes, (column, title) in zip(panels, COLLAPSE.items(), strict=True):
        for i, (name, tables) in enumerate(results.items()):
            table = tables["collapse"].set_index("group").reindex(groups)
            x = np.arange(len(groups)) + width * (i - (len(results) - 1) / 2)
            axes.bar(x, table[column], width * 0.94, color=colour[name], label=name)
            for at, value in zip(x, table[column], strict=True):
                if not np.isfinite(value):
                    axes.text(at, 0, "n/a", ha="center", va="bottom", fontsize=7, rotation=90)
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_title(title.replace(": ", "\n"), fontsize=9)
        axes.set_xlabel("classes")
        tidy(axes, grid="y")
    panels[0].set_ylabel("0 is full collapse")
    if len(results) > 1:
        shared_legend(figure)
    return figure

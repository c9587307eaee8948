from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import collect, sample, shot_of
from ltbench.diagnose.predictions import groups_of
from ltbench.diagnose.progress import timed
from ltbench.diagnose.sentences import interval, number, percent
from ltbench.errors import UserError
from ltbench.plotting import blank, paper
from ltbench.seeding import derive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_CLASSES = 20  # largest number of classes with one colour per class
PROBE = 150  # points of the embedding that is timed
SHOT_COLOURS = {"many": "#0072B2", "medium": "#E69F00", "few": "#D55E00"}
MARKS = ("o", "s", "^", "D")


class Tsne(Diagnostic):
    """t-SNE of the features of test images."""

    title = "t-SNE of the features"
    shown = (
        "Inputs of the classifier for a class-balanced sample of images, in two dimensions; each "
        "point is an image (paper: appendix Figure 13a-b). Colours range from the most frequent "
        "class (dark) to the rarest (bright), and class names are placed at the medians; with more "
        f"than {FEW_CLASSES} classes, colours are shot groups."
    )
    computed = (
        "Features are reduced to 50 dimensions by PCA, then by scikit-learn's t-SNE (van der "
        "Maaten and Hinton, JMLR 2008) with PCA initialisation. The sample is drawn from the test "
        "images, the same for all models. Trustworthiness (Venna and Kaski, 2001), from 0 to 1, "
        "measures to what extent neighbourhoods of 12 in the figure are neighbourhoods of the "
        "features; the 5-nearest-neighbour accuracy among these images is computed on the features "
        "before any reduction. The paper states no settings."
    )
    see = (
        "Whether rare classes form separate clusters or lie inside those of frequent classes. "
        "Sizes of clusters and distances between them have no meaning in t-SNE: compare models by "
        "the two numbers, not visually."
    )

    captions: ClassVar[dict[str, str]] = {
        "points": "Each point is a test image; colour is its true class or shot group. Axes have "
        "no unit.",
    }
    headings: ClassVar[dict[str, str]] = {"quality": "Quality of the embedding", "points": "Points"}

    class Options(schema.Config):
        """Options of t-SNE."""

        images: int = Field(1000, ge=20)
        """Total number of images, balanced over classes."""
        split: Literal["train", "test"] = "test"
        """Split of the images."""
        classes: tuple[int, ...] | None = None
        """Class labels; null: all classes."""
        perplexity: float = Field(30.0, gt=0)
        """Effective number of neighbours; reduced if there are too few images."""
        components: int = Field(50, ge=2)
        """Number of PCA components."""
        iterations: int = Field(1000, ge=250)
        """Iterations of the optimisation."""
        seed: int = Field(0, ge=0)
        """Random seed of sample and optimisation."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``points`` (a row per image) and ``quality``.

        Raises:
            UserError: there is no such class, or there are too few images.
        """
        import pandas as pd

        options, info = self.options, subject.data.info
        split = subject.data.train if options.split == "train" else subject.data.test
        classes = range(info.num_classes) if options.classes is None else options.classes
        wrong = [k for k in classes if not 0 <= k < info.num_classes]
        if wrong:
            raise UserError(
                f"tsne.classes: expected numbers in 0..{info.num_classes - 1}, found {wrong[0]}"
            )
        chosen = sample(split.labels, list(classes), total=options.images, seed=options.seed)
        seen = collect(subject, split, chosen)
        points, found = embed(
            seen.features,
            perplexity=options.perplexity,
            components=options.components,
            iterations=options.iterations,
            seed=derive(options.seed, "tsne") % 2**32,
            report=self.report,
        )
        shot = np.array(shot_of(info.class_counts, groups_of(subject)))
        table = pd.DataFrame(
            {
                "image": seen.index,
                "class": seen.labels,
                "name": np.array(info.class_names)[seen.labels],
                "count": np.array(info.class_counts)[seen.labels],
                "group": shot[seen.labels],
                "predicted": seen.logits.argmax(axis=1),
                "x": points[:, 0],
                "y": points[:, 1],
            }
        )
        quality = {
            "split": options.split,
            "images": len(seen.labels),
            "classes": len(np.unique(seen.labels)),
            **found,
            "neighbour_accuracy": neighbour_accuracy(seen.features, seen.labels),
        }
        return {"points": table, "quality": pd.DataFrame([quality])}

    def images(self, subject: Subject) -> int:
        """Return the size of the sample at most."""
        train = self.options.split == "train"
        return min(self.options.images, len(subject.data.train if train else subject.data.test))

    def estimate(self, subject: Subject, forward: float) -> float:
        """Time a short embedding of noise, which takes about n log n per iteration."""
        count = self.images(subject)
        probe = min(count, PROBE)
        if probe < 10:
            return 0.0
        noise = np.random.default_rng(0).normal(size=(probe, min(50, probe)))
        seconds = timed(lambda: embed(noise, components=probe, iterations=250))
        scale = count * np.log(count) / (probe * np.log(probe)) * self.options.iterations / 250
        return forward * count + seconds * float(scale)

    def describe(self, tables: Tables) -> list[str]:
        """Say how well neighbours in feature space share a class."""
        row = tables["quality"].iloc[0]
        share = row["neighbour_accuracy"]
        return [
            f"{percent(share, interval(share, row['images']))} of {row['images']:,} {row['split']} "
            "images have the class of their 5 nearest neighbours in feature space; "
            f"trustworthiness of the figure {number(row['trustworthiness'])}."
        ]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figure ``points``."""
        return {"points": _draw(results)}


def embed(
    features: np.ndarray,
    *,
    perplexity: float = 30.0,
    components: int = 50,
    iterations: int = 1000,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Return a two-dimensional t-SNE embedding and measures of its quality.

    Reference: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008.
    Departures: PCA first, as is usual; a single thread, for reproducibility.

    Args:
        features: features [N, D].
        perplexity: perplexity, reduced to (N - 1) / 3 if there are few images.
        components: number of PCA components.
        iterations: iterations of the optimisation.
        seed: random seed of the optimisation.
        report: called with the iterations done and their total.

    Returns:
        Points [N, 2], and the ``perplexity`` used, the final ``divergence`` and the
        ``trustworthiness``.

    Raises:
        UserError: there are fewer than 10 images.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness
    from threadpoolctl import threadpool_limits

    count = len(features)
    if count < 10:
        raise UserError(f"t-SNE needs at least 10 images, found {count}; take more classes")
    used = min(perplexity, (count - 1) / 3)
    with threadpool_limits(limits=1):
        kept = min(components, *features.shape)
        reduced = PCA(kept, svd_solver="full").fit_transform(features)
        model = TSNE(
            perplexity=used, init="pca", random_state=seed, max_iter=iterations, n_jobs=1, verbose=2
        )
        with contextlib.redirect_stdout(_Iterations(iterations, report)):
            points = model.fit_transform(reduced)
        report(iterations, iterations)
        neighbours = min(12, (count - 1) // 2)
        trust = trustworthiness(features, points, n_neighbors=neighbours)
    quality = {
        "perplexity": float(used),
        "divergence": float(model.kl_divergence_),
        "trustworthiness": float(trust),
    }
    return np.asarray(points, dtype=np.float64), quality


class _Iterations:
    """Standard output that turns scikit-learn's lines about iterations into progress.

    Other text is passed on: a progress bar writes there meanwhile.

    Args:
        total: number of iterations.
        report: called with the iterations done and their total.
    """

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self._total, self._report, self._before = total, report, sys.stdout
        self._inside = False
        report(0, total)

    def write(self, text: str) -> int:
        if text.startswith("[t-SNE]"):
            found = re.match(r"\[t-SNE\] Iteration (\d+)", text)
            if found:
                self._report(min(int(found[1]), self._total), self._total)
            self._inside = not text.endswith("\n")
        elif self._inside:
            self._inside = not text.endswith("\n")
        else:
            self._before.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._before, name)


def neighbour_accuracy(features: np.ndarray, labels: np.ndarray, neighbours: int = 5) -> float:
    """Return the leave-one-out accuracy of a k-nearest-neighbour classifier.

    Args:
        features: features [N, D].
        labels: class of each image [N].
        neighbours: number of neighbours k; ties go to the nearest.
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = min(neighbours, len(labels) - 1)
    found = NearestNeighbors(n_neighbors=nearest).fit(features).kneighbors(return_distance=False)
    votes = labels[found]
    support = (votes[:, :, None] == votes[:, None, :]).sum(axis=1)  # votes for its class
    winner = votes[np.arange(len(votes)), support.argmax(axis=1)]
    return float((winner == labels).mean())


def _draw(results: Mapping[str, Tables]) -> Figure:
    """Draw one panel per subject, at most three in a row."""
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = blank(max(5.6, 4.3 * columns) + 0.4, 4.5 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, tables) in zip(panels, results.items(), strict=False):
        axes.set_axis_on()
        points, quality = tables["points"], tables["quality"].iloc[0]
        if points["class"].nunique() <= FEW_CLASSES:
            _by_class(axes, points)
        else:
            _by_shot(axes, points)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(
            f"{name}: {quality['images']} {quality['split']} images\ntrustworthiness "
            f"{quality['trustworthiness']:.3f}, 5-nearest-neighbour accuracy "
            f"{quality['neighbour_accuracy']:.3f}",
            fontsize=9,
        )
        axes.set_xlabel("t-SNE 1, no unit", fontsize=8)
        axes.set_ylabel("t-SNE 2, no unit", fontsize=8)
    return figure


def _by_class(axes: Axes, points: Any) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    order = points.drop_duplicates("class").sort_values(["count", "class"], ascending=[False, True])
    dark = sum(to_rgb(paper())) < 1.5
    shades = colormaps["viridis"](np.linspace(0.3 if dark else 0, 1 if dark else 0.95, len(order)))
    halo = [withStroke(linewidth=2.5, foreground=paper())]
    middles = []
    for i, (shade, row) in enumerate(zip(shades, order.itertuples(), strict=True)):
        own = points[points["class"] == row[order.columns.get_loc("class") + 1]]
        axes.scatter(
            own["x"], own["y"], s=11, color=shade, marker=MARKS[i % len(MARKS)], linewidths=0,
            label=f"{own['name'].iloc[0]} ({own['count'].iloc[0]:,})",
        )  # fmt: skip
        middles.append((own["x"].median(), own["y"].median(), own["name"].iloc[0]))
    for x, y, name in middles:
        axes.text(x, y, name, fontsize=8, ha="center", va="center", path_effects=halo)
    axes.legend(
        title="class (training images)", fontsize=7, title_fontsize=7, frameon=False,
        loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3, markerscale=1.6,
        handletextpad=0.1, columnspacing=0.8,
    )  # fmt: skip


def _by_shot(axes: Axes, points: Any) -> None:
    for mark, (group, colour) in zip(MARKS, SHOT_COLOURS.items(), strict=False):
        own = points[points["group"] == group]
        if len(own):
            label = f"{group} ({own['class'].nunique()} classes)"
            axes.scatter(
                own["x"], own["y"], s=10, color=colour, marker=mark, linewidths=0, alpha=0.8,
                label=label,
            )  # fmt: skip
    axes.legend(
        fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3,
        markerscale=1.8,
    )  # fmt: skip

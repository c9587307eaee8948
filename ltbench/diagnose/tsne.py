from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ltbench import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import collect, sample, shot_of
from ltbench.diagnose.panels import blank
from ltbench.diagnose.predictions import groups_of
from ltbench.errors import UserError
from ltbench.seeding import derive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_CLASSES = 20  # up to here each class has a colour
SHOT_COLOURS = {"many": "#0072B2", "medium": "#E69F00", "few": "#D55E00"}
MARKS = ("o", "s", "^", "D")


class Tsne(Diagnostic):
    """Features of test images in two dimensions."""

    title = "t-SNE of the features"
    shown = (
        "What enters the classifier for a balanced sample of images, in two dimensions; a point is "
        "an image (paper: appendix Figure 13a-b). Colours go from the most frequent class (dark) "
        "to the rarest (bright) and names stand at the classes' medians; with more than "
        f"{FEW_CLASSES} classes colours are shot groups."
    )
    computed = (
        "Features are reduced to 50 dimensions by PCA, then t-SNE of scikit-learn (van der Maaten "
        "and Hinton, JMLR 2008) from a PCA start. The sample is drawn from the test images, the "
        "same for all models. Trustworthiness (Venna and Kaski, 2001) is the share, from 0 to 1, "
        "of neighbourhoods of 12 that the picture does not invent; the accuracy of 5 nearest "
        "neighbours among these images is that of the features themselves, before any reduction. "
        "The paper names no settings."
    )
    see = (
        "Whether rare classes form clusters of their own or lie inside those of frequent ones. "
        "Sizes of clusters and distances between them mean nothing in t-SNE: compare models by "
        "the two numbers, not by the look."
    )

    class Options(schema.Config):
        """Options of t-SNE."""

        images: int = Field(1000, ge=20)
        """Images in all, balanced over the classes."""
        split: Literal["train", "test"] = "test"
        """Where they come from."""
        classes: tuple[int, ...] | None = None
        """Classes by number; null takes all."""
        perplexity: float = Field(30.0, gt=0)
        """Roughly the neighbours of an image; lowered where there are too few images."""
        components: int = Field(50, ge=2)
        """Dimensions that PCA keeps."""
        iterations: int = Field(1000, ge=250)
        """Of the optimisation."""
        seed: int = Field(0, ge=0)
        """Of sample and optimisation."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``points``, a row per image, and ``quality``.

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
) -> tuple[np.ndarray, dict[str, float]]:
    """Return a two-dimensional t-SNE and how good it is.

    Reference: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008.
    Departures: PCA first, as is usual; one thread, so that it repeats.

    Args:
        features: [N, D].
        perplexity: lowered to (N - 1) / 3 where there are few images.
        components: dimensions that PCA keeps.
        iterations: of the optimisation.
        seed: of it.

    Returns:
        Points [N, 2], and ``perplexity`` used, ``divergence`` reached and ``trustworthiness``.

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
        model = TSNE(perplexity=used, init="pca", random_state=seed, max_iter=iterations, n_jobs=1)
        points = model.fit_transform(reduced)
        neighbours = min(12, (count - 1) // 2)
        trust = trustworthiness(features, points, n_neighbors=neighbours)
    quality = {
        "perplexity": float(used),
        "divergence": float(model.kl_divergence_),
        "trustworthiness": float(trust),
    }
    return np.asarray(points, dtype=np.float64), quality


def neighbour_accuracy(features: np.ndarray, labels: np.ndarray, neighbours: int = 5) -> float:
    """Return the share of images whose class is that of most of their nearest other images.

    Args:
        features: [N, D].
        labels: class of each image [N].
        neighbours: how many; ties go to the nearest.
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = min(neighbours, len(labels) - 1)
    found = NearestNeighbors(n_neighbors=nearest).fit(features).kneighbors(return_distance=False)
    votes = labels[found]
    support = (votes[:, :, None] == votes[:, None, :]).sum(axis=1)  # of each neighbour's class
    winner = votes[np.arange(len(votes)), support.argmax(axis=1)]
    return float((winner == labels).mean())


def _draw(results: Mapping[str, Tables]) -> Figure:
    """Draw a panel per subject, at most three in a row."""
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
    from matplotlib.patheffects import withStroke

    order = points.drop_duplicates("class").sort_values(["count", "class"], ascending=[False, True])
    shades = colormaps["viridis"](np.linspace(0, 0.95, len(order)))
    halo = [withStroke(linewidth=2.5, foreground="white")]
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

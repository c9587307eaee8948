from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import collect, sample, thirds
from ltbench.diagnose.sentences import number
from ltbench.errors import UserError
from ltbench.plotting import GREY, blank, colours, ink, markers, shared_legend, tidy
from ltbench.seeding import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TURNS = 8  # random rotations over which the chance level is averaged
MEASURES = {"svcca": "mean SVCCA correlation", "cka": "linear CKA"}


class Cca(Diagnostic):
    """Similarity of the representations of head and tail classes, and of different models."""

    title = "CCA between head and tail representations"
    shown = (
        "Similarity, from 0 to 1, of the features of head and tail images (of the most frequent "
        "and the rarest third of the classes), by SVCCA and by linear CKA, and the canonical "
        "correlations (paper: appendix Figure 13c). For two models: similarity of their features "
        "of the same images."
    )
    computed = (
        "SVCCA (Raghu et al., NeurIPS 2017, arXiv:1706.05806): both matrices are projected to the "
        "principal directions with 99 % of their variance; the value is the mean canonical "
        "correlation. Linear CKA: Kornblith et al., ICML 2019, arXiv:1905.00414. Both need "
        "matrices with paired rows, but head and tail images are not paired. Head and tail are "
        "therefore paired by feature channel: rows are channels of the layer before the "
        "classifier, columns are images, centred by the mean feature of their group. The value "
        "then measures to what extent images of both groups vary in the same directions of "
        "feature space, and does not depend on the order of images, unlike a random pairing of "
        "images or a pairing by rank. Two references of the same sizes are given: chance, the "
        "tail's features under a random rotation, and two samples of head images. Two models are "
        "compared on the same images, with images as rows. "
        "The paper does not specify its pairing."
    )
    see = (
        "The paper interprets a higher head-tail correlation as better tail features, which vary "
        "like those of the head. Compare a value with its two references, not with 1. SVCCA grows "
        "with the number of directions kept, so it may exceed the second "
        "reference if the tail varies in more directions; CKA does not have this bias."
    )

    captions: ClassVar[dict[str, str]] = {
        "head_tail": "Left: similarity of head and tail features, between its two references. "
        "Right: each canonical correlation behind SVCCA.",
        "models": "Similarity of the features of two models on the same images.",
    }
    headings: ClassVar[dict[str, str]] = {
        "similarity": "Similarity of head and tail",
        "correlations": "Canonical correlations",
        "representation": "Principal scores of the features",
    }

    class Options(schema.Config):
        """Options of CCA."""

        images: int = Field(300, ge=8)
        """Number of head images and of tail images, balanced over classes; fewer if the head has
        less than twice as many."""
        split: Literal["train", "test"] = "test"
        """Split of the images."""
        variance: float = Field(0.99, gt=0, le=1)
        """Fraction of the variance of each matrix that SVCCA keeps."""
        seed: int = Field(0, ge=0)
        """Random seed of samples and rotations."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``similarity``, ``correlations`` and ``representation``.

        ``representation`` contains the principal scores of the sample's features, which have the
        same similarities as the features, for comparisons of models.

        Raises:
            UserError: there are fewer than four images of head classes.
        """
        import pandas as pd

        options, counts = self.options, subject.data.info.class_counts
        split = subject.data.train if options.split == "train" else subject.data.test
        parts = thirds(counts)
        there = int(np.isin(split.labels, parts["head"]).sum())
        images = min(options.images, there // 2)  # the reference needs a second head sample
        if images < 2:
            raise UserError(
                f"{subject.name}: the head classes have {there} images in the {options.split} "
                "split, 4 are needed; choose another cca.split"
            )
        chosen = {
            name: sample(split.labels, parts[name], total=images, seed=options.seed)
            for name in ("head", "tail")
        }
        twice = sample(split.labels, parts["head"], total=2 * images, seed=options.seed)
        chosen["again"] = np.setdiff1d(twice, chosen["head"])
        seen = {name: collect(subject, split, index) for name, index in chosen.items()}
        head, tail, again = (one.features for one in seen.values())
        rng = np.random.default_rng(derive(options.seed, "cca"))
        found = channel_similarity(head, tail, options.variance)
        head_head = channel_similarity(head, again, options.variance)
        chance = [
            channel_similarity(head, tail @ rotation(head.shape[1], rng), options.variance)
            for _ in range(TURNS)
        ]
        similarity = [
            {
                "measure": name,
                "head_tail": found[name],
                "chance": float(np.mean([one[name] for one in chance])),
                "head_head": head_head[name],
                "head_images": len(head),
                "tail_images": len(tail),
                "again_images": len(again),
                "head_classes": len(parts["head"]),
                "tail_classes": len(parts["tail"]),
                "channels": head.shape[1],
                "head_directions": found["first"],
                "tail_directions": found["second"],
                "split": options.split,
                "variance": options.variance,
            }
            for name in MEASURES
        ]
        correlations = [
            {"rank": i + 1, "correlation": value} for i, value in enumerate(found["correlations"])
        ]
        scores = principal_scores(np.concatenate([head, tail]))
        table = pd.DataFrame(scores, columns=[f"c{i}" for i in range(scores.shape[1])])
        table.insert(0, "part", np.repeat(["head", "tail"], [len(head), len(tail)]))
        table.insert(0, "class", np.concatenate([seen[name].labels for name in ("head", "tail")]))
        table.insert(0, "image", np.concatenate([chosen[name] for name in ("head", "tail")]))
        return {
            "similarity": pd.DataFrame(similarity),
            "correlations": pd.DataFrame(correlations),
            "representation": table,
        }

    def images(self, subject: Subject) -> int:
        """Return the size of the three samples at most."""
        return 3 * self.options.images

    def describe(self, tables: Tables) -> list[str]:
        """Say where the similarity of head and tail lies between its two references."""
        parts = []
        for row in tables["similarity"].to_dict("records"):
            references = (row["chance"], row["head_head"])
            where = "between"
            if row["head_tail"] > max(references):
                where = "above"
            elif row["head_tail"] < min(references):
                where = "below"
            parts.append(
                f"{row['measure'].upper()} {number(row['head_tail'])}, {where} chance "
                f"({number(row['chance'])}) and two samples of the head "
                f"({number(row['head_head'])})"
            )
        return [f"similarity of head and tail features: {'; '.join(parts)}."]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figure ``head_tail``, and ``models`` if several models have the same images."""
        figures = {"head_tail": _draw_head_tail(results)}
        if len(results) > 1 and _same_images(results):
            share = float(next(iter(results.values()))["similarity"]["variance"].iloc[0])
            figures["models"] = _draw_models(compare(results, share))
        return figures


def canonical_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the canonical correlations of two sets of variables, in descending order.

    Reference: Hotelling, Relations Between Two Sets of Variates, Biometrika 1936; computed as in
        Björck and Golub, Numerical Methods for Computing Angles Between Linear Subspaces, 1973.
    Departures: none known; directions without variance are ignored.

    Args:
        x: observations in rows [N, P].
        y: the same observations in rows [N, Q].

    Returns:
        Values in [0, 1], as many as the smaller rank.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if len(x) != len(y):
        raise ValueError(f"expected as many rows, found {len(x)} and {len(y)}")
    found = np.linalg.svd(_principal(x)[0].T @ _principal(y)[0], compute_uv=False)
    result: np.ndarray = found.clip(0, 1)
    return result


def svcca(x: np.ndarray, y: np.ndarray, variance: float = 0.99) -> float:
    """Return the mean canonical correlation of the principal directions of two representations.

    Reference: Raghu et al., SVCCA: Singular Vector Canonical Correlation Analysis for Deep
        Learning Dynamics and Interpretability, NeurIPS 2017, arXiv:1706.05806.
    Departures: none known.

    Args:
        x: observations in rows [N, P].
        y: the same observations in rows [N, Q].
        variance: fraction of the variance of each that is kept.

    Returns:
        Value in [0, 1]; 0 if one of them is constant.
    """
    found = canonical_correlations(main_directions(x, variance), main_directions(y, variance))
    return float(found.mean()) if len(found) else 0.0


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centred kernel alignment (CKA) of two representations.

    Reference: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML
        2019, arXiv:1905.00414.
    Departures: none known.

    Args:
        x: observations in rows [N, P].
        y: the same observations in rows [N, Q].

    Returns:
        Value in [0, 1]; 0 if one of them is constant.
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    between = np.linalg.norm(x.T @ y) ** 2
    within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(between / within) if within > 0 else 0.0


def main_directions(x: np.ndarray, variance: float) -> np.ndarray:
    """Return the fewest principal scores with a given fraction of the variance [N, k]."""
    left, values = _principal(x)
    share = np.cumsum(values**2) / max(float((values**2).sum()), np.finfo(float).tiny)
    kept = min(int((share < variance - 1e-12).sum()) + 1, len(values))
    scores: np.ndarray = left[:, :kept] * values[:kept]
    return scores


def principal_scores(x: np.ndarray) -> np.ndarray:
    """Return all principal scores [N, rank]: the representation, centred and rotated."""
    left, values = _principal(x)
    scores: np.ndarray = left * values
    return scores


def channel_similarity(a: np.ndarray, b: np.ndarray, variance: float = 0.99) -> dict[str, Any]:
    """Return the similarity of two sets of images in feature space, paired by channel.

    Args:
        a: features of the first images [N, D].
        b: features of the second images [M, D].
        variance: see ``svcca``.

    Returns:
        ``svcca`` and ``cka``, the canonical ``correlations``, and the numbers of directions kept
        (``first``, ``second``).
    """
    first, second = ((one - one.mean(axis=0)).T for one in (a, b))
    x, y = main_directions(first, variance), main_directions(second, variance)
    found = canonical_correlations(x, y)
    return {
        "svcca": float(found.mean()) if len(found) else 0.0,
        "cka": linear_cka(first, second),
        "correlations": found,
        "first": x.shape[1],
        "second": y.shape[1],
    }


def rotation(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random orthogonal matrix, uniformly distributed [D, D]."""
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    result: np.ndarray = q * np.sign(r.diagonal())
    return result


def compare(results: Mapping[str, Tables], variance: float = 0.99) -> dict[str, Any]:
    """Return similarities of the representations of the same images by several models.

    Args:
        results: tables of each model.
        variance: see ``svcca``.

    Returns:
        ``names``, and ``values``: matrices [S, S] by measure, then by ``all``, ``head`` and
        ``tail`` images.
    """
    names = list(results)
    tables = {name: results[name]["representation"] for name in names}
    values: dict[str, dict[str, np.ndarray]] = {}
    for measure in MEASURES:
        values[measure] = {}
        for part in ("all", "head", "tail"):
            matrix = np.eye(len(names))
            for i, j in combinations(range(len(names)), 2):
                x, y = (_scores(tables[names[k]], part) for k in (i, j))
                value = svcca(x, y, variance) if measure == "svcca" else linear_cka(x, y)
                matrix[i, j] = matrix[j, i] = value
            values[measure][part] = matrix
    return {"names": names, "values": values}


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return left singular vectors and singular values of centred data above rounding errors."""
    centred = np.asarray(x, dtype=np.float64) - np.mean(x, axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scale = max(float(np.abs(x).max(initial=0)) * np.sqrt(x.size), 1e-300)
    kept = values > max(x.shape) * np.finfo(np.float64).eps * max(
        scale, float(values.max(initial=0))
    )
    return left[:, kept], values[kept]


def _scores(table: Any, part: str) -> np.ndarray:
    own = table if part == "all" else table[table["part"] == part]
    columns = [name for name in table.columns if name not in ("image", "class", "part")]
    return np.asarray(own[columns].to_numpy(dtype=np.float64))


def _same_images(results: Mapping[str, Tables]) -> bool:
    tables = [tables["representation"][["image", "class", "part"]] for tables in results.values()]
    return all(table.equals(tables[0]) for table in tables)


def _draw_head_tail(results: Mapping[str, Tables]) -> Figure:
    """Draw the similarities with their references, and the canonical correlations."""
    figure = blank(9.6, 0.5 + max(3.6, 0.5 * len(results) + 1.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    colour, marker = colours(results), markers(results)
    ticks, places = [], []
    for m, (measure, title) in enumerate(MEASURES.items()):
        for i, (name, tables) in enumerate(results.items()):
            row = tables["similarity"].set_index("measure").loc[measure]
            y = m * (len(results) + 1) + i
            low, high = sorted((row["chance"], row["head_head"]))
            first = m == i == 0
            left.plot([low, high], [y, y], color=GREY, linewidth=1)
            left.plot(
                row["chance"], y, "|", color=ink(), markersize=13, markeredgewidth=1.6,
                label="by chance (tail rotated)" if first else None,
            )  # fmt: skip
            left.plot(
                row["head_head"], y, "x", color=ink(), markersize=7,
                label="head and other head images" if first else None,
            )  # fmt: skip
            left.plot(
                row["head_tail"], y, marker[name], color=colour[name], markersize=8,
                label="head and tail" if first else None,
            )  # fmt: skip
            left.annotate(
                f"{row['head_tail']:.3f}", (row["head_tail"], y), xytext=(0, 8), fontsize=8,
                textcoords="offset points", ha="center",
            )  # fmt: skip
            ticks.append(f"{name}\n{title}" if len(results) == 1 else f"{name}, {measure.upper()}")
            places.append(y)
    left.set_yticks(places, ticks, fontsize=8)
    left.invert_yaxis()
    left.set_ylim(max(places) + 0.8, -0.9)
    left.set_xlim(-0.03, 1.03)
    left.set_xlabel("similarity of head and tail features")
    tidy(left, grid="x")
    for name, tables in results.items():
        table, row = tables["correlations"], tables["similarity"].iloc[0]
        label = f"{name} ({row['head_directions']} and {row['tail_directions']} directions)"
        right.plot(
            table["rank"], table["correlation"], color=colour[name], marker=marker[name],
            markersize=3, label=label,
        )  # fmt: skip
    right.set_ylim(-0.03, 1.03)
    right.set_xlabel("rank of the canonical correlation")
    right.set_ylabel("canonical correlation, head and tail")
    tidy(right)
    shared_legend(figure)
    return figure


def _draw_models(found: Mapping[str, Any]) -> Figure:
    """Draw a matrix of models for each measure and group of images."""
    names, values = found["names"], found["values"]
    parts = ("all", "head", "tail")
    side = max(2.6, 0.62 * len(names) + 1.5)
    figure = blank(3 * side + 1.2, 2 * side + 0.4)
    panels = figure.subplots(2, 3, sharex=True, sharey=True, squeeze=False)
    shade: Any = None
    for row, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for axes, part in zip(row, parts, strict=True):
            matrix = values[measure][part]
            shade = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
            for i, j in combinations_with_replacement(range(len(names)), 2):
                for a, b in {(i, j), (j, i)}:
                    ink = "black" if matrix[a, b] > 0.55 else "white"
                    axes.text(
                        b, a, f"{matrix[a, b]:.2f}", ha="center", va="center", color=ink, fontsize=8
                    )
            axes.set_title(f"{title}, {part} images", fontsize=9)
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(shade, ax=panels, shrink=0.6, label="similarity of two models' features")
    return figure

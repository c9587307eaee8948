from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import collect, sample, thirds
from ltbench.diagnose.figures.cca import MEASURES, draw_head_tail, draw_models
from ltbench.diagnose.sentences import number
from ltbench.diagnose.similarity import (
    channel_similarity,
    linear_cka,
    principal_scores,
    rotation,
    svcca,
)
from ltbench.errors import UserError
from ltbench.seeding import derive

TURNS = 8  # random rotations over which the chance level is averaged


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
        figures = {"head_tail": draw_head_tail(results)}
        if len(results) > 1 and _same_images(results):
            share = float(next(iter(results.values()))["similarity"]["variance"].iloc[0])
            figures["models"] = draw_models(compare(results, share))
        return figures


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


def _scores(table: Any, part: str) -> np.ndarray:
    own = table if part == "all" else table[table["part"] == part]
    columns = [name for name in table.columns if name not in ("image", "class", "part")]
    return np.asarray(own[columns].to_numpy(dtype=np.float64))


def _same_images(results: Mapping[str, Tables]) -> bool:
    tables = [tables["representation"][["image", "class", "part"]] for tables in results.values()]
    return all(table.equals(tables[0]) for table in tables)

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import parameters_of, read, sample, spread_classes
from ltbench.diagnose.figures import hessian as figures
from ltbench.diagnose.progress import timed
from ltbench.diagnose.sentences import number, percent
from ltbench.diagnose.spectrum import Product, batches, hessian_product, spectrum
from ltbench.errors import UserError
from ltbench.methods.inner import evaluating
from ltbench.seeding import derive

if TYPE_CHECKING:
    import pandas as pd


class Hessian(Diagnostic):
    """Curvature of the loss of single classes at the trained weights."""

    title = "Hessian spectrum of head and tail classes"
    shown = (
        "The spectral density of the Hessian of the loss of one class, for a frequent, a medium "
        "and a rare class; then its largest eigenvalue, its trace and its most negative eigenvalue "
        "(paper: Figure 4, appendix Figures 10 and 11)."
    )
    computed = (
        "The loss is the mean cross-entropy of the predicted logits on a sample of the training "
        "images of one class, without augmentation, in evaluation mode, regardless of the training "
        "loss. Hessian-vector products are computed with curvlinops. Lanczos iterations with full "
        "reorthogonalisation from random starts give the extreme eigenvalues and, by stochastic "
        "Lanczos quadrature, the density, smoothed with narrow Gaussians on a scale that is linear "
        "around zero and logarithmic beyond. The trace is Hutchinson's estimate with Rademacher "
        "vectors, with its standard error. Departures from the paper: its tool uses augmented "
        "images, power iteration for the top eigenvalue and 100 Lanczos steps, here `steps`. With "
        "too few steps the largest eigenvalue is a lower bound; `residual` bounds the distance of "
        "a value to the nearest true eigenvalue."
    )
    see = (
        "A flat minimum has a small largest eigenvalue and a small trace; eigenvalues well below "
        "zero indicate a saddle point, where rare classes often end up. The paper finds flatter "
        "spectra of rare classes with PLOT. A perfectly fitted class has almost no curvature."
    )

    captions: ClassVar[dict[str, str]] = {
        "density": "Share of the eigenvalues at each value, on a scale that is linear around zero "
        "and logarithmic beyond.",
        "sharpness": "Extreme eigenvalues and trace of the loss of each class; whiskers of the "
        "trace are ± one standard error of its estimate.",
    }
    headings: ClassVar[dict[str, str]] = {
        "eigenvalues": "Largest eigenvalues",
        "summary": "Curvature by class",
        "nodes": "Nodes of the density",
    }

    class Options(schema.Config):
        """Options of the Hessian spectrum."""

        classes: tuple[int, ...] | None = None
        """Class labels; null: the most frequent, a medium and the rarest class."""
        images: int = Field(32, ge=1)
        """Largest number of training images per class."""
        part: str = "whole"
        """Parameters: whole, head, backbone, last or a stage of the backbone."""
        steps: int = Field(25, ge=2)
        """Lanczos steps per start, each one Hessian-vector product; as many vectors of the size of
        the parameters are held in memory."""
        starts: int = Field(1, ge=1)
        """Random starts over which the density is averaged."""
        vectors: int = Field(10, ge=2)
        """Random vectors for the trace, each one Hessian-vector product."""
        top: int = Field(3, ge=1)
        """Number of eigenvalues in the table."""
        batch_size: int = Field(64, ge=1)
        """Images per pass."""
        seed: int = Field(0, ge=0)
        """Random seed of samples and random vectors."""

        @model_validator(mode="after")
        def _enough(self) -> Hessian.Options:
            if self.top > self.steps:
                raise ValueError(f"top must be at most steps ({self.steps}), found {self.top}")
            return self

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``eigenvalues``, ``summary`` and ``nodes`` (quadrature of the density).

        Raises:
            UserError: there is no such class or part, or the loss is not finite.
        """
        import pandas as pd

        options, info = self.options, subject.data.info
        classes = self._classes(subject)
        step = self.stepper(len(classes) * self._products)
        eigenvalues: list[dict[str, Any]] = []
        summary: list[dict[str, Any]] = []
        nodes: list[dict[str, Any]] = []
        for k in classes:
            chosen = sample(subject.data.train.labels, [k], options.images, seed=options.seed)
            images, labels = read(subject, subject.data.train, chosen)
            named = parameters_of(subject, options.part)
            who = {"class": k, "name": info.class_names[k], "count": info.class_counts[k]}
            with evaluating(subject.method):
                module = subject.method.export().eval()
                product, size = hessian_product(
                    module, list(named.values()), images, labels, batch_size=options.batch_size
                )
                loss = _loss(module, images, labels, options.batch_size)
                if not np.isfinite(loss):
                    raise UserError(
                        f"{subject.name}: the loss of class {k} is NaN or infinite; training has "
                        "diverged or the weights are damaged"
                    )

                def counted(vector: Tensor, product: Product = product) -> Tensor:
                    result = product(vector)
                    step()
                    return result

                found = spectrum(
                    counted,
                    size,
                    steps=options.steps,
                    starts=options.starts,
                    vectors=options.vectors,
                    seed=derive(options.seed, "diagnose", "hessian"),
                    device=subject.device,
                )
            top = found.ritz[0][: options.top]
            eigenvalues += [
                {**who, "rank": i + 1, "eigenvalue": value, "residual": found.residuals[0][i]}
                for i, value in enumerate(top)
            ]
            summary.append(
                {
                    **who,
                    "images": len(chosen),
                    "loss": loss,
                    "parameters": size,
                    "part": options.part,
                    "largest": found.largest,
                    "smallest": found.smallest,
                    "trace": found.trace,
                    "trace_error": found.trace_error,
                }
            )
            nodes += [
                {**who, "start": start, "node": node, "weight": weight}
                for start, (at, weights) in enumerate(zip(found.ritz, found.weights, strict=True))
                for node, weight in zip(at, weights, strict=True)
            ]
        return {
            "eigenvalues": pd.DataFrame(eigenvalues),
            "summary": pd.DataFrame(summary),
            "nodes": pd.DataFrame(nodes),
        }

    @property
    def _products(self) -> int:
        """Number of Hessian-vector products for each class."""
        return self.options.starts * self.options.steps + self.options.vectors

    def _classes(self, subject: Subject) -> tuple[int, ...]:
        """Return the classes to measure."""
        info = subject.data.info
        chosen = self.options.classes or spread_classes(info.class_counts, 3)
        wrong = [k for k in chosen if not 0 <= k < info.num_classes]
        if wrong:
            raise UserError(
                f"hessian.classes: expected numbers in 0..{info.num_classes - 1}, found {wrong[0]}"
            )
        return tuple(dict.fromkeys(chosen))

    def estimate(self, subject: Subject, forward: float) -> float:
        """Time one Hessian-vector product of each class."""
        options, seconds = self.options, 0.0
        parameters = list(parameters_of(subject, options.part).values())
        with evaluating(subject.method):
            module = subject.method.export().eval()
            for k in self._classes(subject):
                chosen = sample(subject.data.train.labels, [k], options.images, seed=options.seed)
                images, labels = read(subject, subject.data.train, chosen)
                product, size = hessian_product(
                    module, parameters, images, labels, batch_size=options.batch_size
                )
                vector = torch.ones(size, device=subject.device)
                seconds += timed(partial(lambda go, v: float(go(v).sum()), product, vector))
        return seconds * self._products

    def describe(self, tables: Tables) -> list[str]:
        """Compare the curvature of the rarest and the most frequent class."""
        table = tables["summary"].sort_values("count", ascending=False, kind="stable")
        first = tables["eigenvalues"].query("rank == 1").set_index("class")["residual"]
        often, rare = table.iloc[0], table.iloc[-1]
        if len(table) < 2:
            return [f"the loss of {_curvature(often, first)}."]
        error = float(np.hypot(often["trace_error"], rare["trace_error"]))
        gap = rare["trace"] - often["trace"]
        if abs(gap) <= 1.96 * error:
            verdict = "the traces do not differ beyond the noise"
        else:
            verdict = f"the rare class is {'sharper' if gap > 0 else 'flatter'} by the trace"
        dips = [
            f"{row['name']} {number(row['smallest'])} ({percent(share)} of the largest)"
            for row in (often, rare)
            if np.isfinite(share := -row["smallest"] / max(row["largest"], 1e-12))
        ]
        return [
            f"the loss of {_curvature(often, first)}, that of {_curvature(rare, first)}; "
            f"{verdict}.",
            f"most negative eigenvalue: {', '.join(dips)}.",
        ]

    def compare(self, results: Mapping[str, Tables]) -> list[str]:
        """List the traces of the rarest class."""
        rows = {n: t["summary"].sort_values("count").iloc[0] for n, t in results.items()}
        parts = [
            f"{n} {number(row['trace'])} ± {number(row['trace_error'])}"
            for n, row in sorted(rows.items(), key=lambda one: float(one[1]["trace"]))
        ]
        return [
            "trace of the Hessian of the rarest class, flattest first (± standard error): "
            f"{', '.join(parts)}."
        ]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures ``density`` and ``sharpness``."""
        return {
            "density": figures.draw_density(results),
            "sharpness": figures.draw_sharpness(results),
        }


def _curvature(row: pd.Series[Any], residuals: pd.Series[Any]) -> str:
    """Return the largest eigenvalue and the trace of a class as text."""
    residual = float(residuals[row["class"]])
    bound = f" ± {number(residual)}" if residual > 0.005 * abs(row["largest"]) else ""
    return (
        f"class {row['name']} ({row['count']:,} training images) has the largest eigenvalue "
        f"{number(row['largest'])}{bound} and the trace "
        f"{number(row['trace'])} ± {number(row['trace_error'])}"
    )


@torch.no_grad()
def _loss(module: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Return the mean cross-entropy of a module on images."""
    total = 0.0
    for x, y in batches(images, labels, batch_size):
        total += float(nn.functional.cross_entropy(module(x), y, reduction="sum"))
    return total / len(labels)

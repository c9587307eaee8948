"""Spectra of symmetric operators, such as the Hessian of a loss, from products with vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """Estimated spectrum of a symmetric operator.

    Args:
        ritz: Ritz values of each start, in descending order [steps or fewer].
        weights: quadrature weights of the Ritz values, with sum 1.
        residuals: upper bounds of the distances to the nearest true eigenvalue.
        trace: sum of all eigenvalues.
        trace_error: standard error of the trace.
    """

    ritz: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    residuals: tuple[np.ndarray, ...]
    trace: float
    trace_error: float

    @property
    def largest(self) -> float:
        """Largest eigenvalue."""
        return float(max(ritz[0] for ritz in self.ritz))

    @property
    def smallest(self) -> float:
        """Smallest (most negative) eigenvalue."""
        return float(min(ritz[-1] for ritz in self.ritz))


def hessian_product(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    images: Tensor,
    labels: Tensor,
    *,
    loss: nn.Module | None = None,
    batch_size: int = 64,
) -> tuple[Product, int]:
    """Return the Hessian-vector product of a mean loss as a function.

    Reference: Dangel et al., Position: Curvature Matrices Should Be Democratized via Linear
        Operators, 2025, arXiv:2501.19183 (curvlinops).
    Departures: none known.

    Args:
        module: deterministic module from images [B, ...] to outputs.
        parameters: parameters of the Hessian; all others are constants.
        images: images [N, ...].
        labels: labels [N, ...].
        loss: mean loss of outputs and labels; cross-entropy if not given.
        batch_size: images per pass.

    Returns:
        Function from vectors [P] to products [P], and the number of parameters P.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dependencies, at import
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(
            module,
            nn.CrossEntropyLoss() if loss is None else loss,
            list(parameters),
            batches(images, labels, batch_size),
            check_deterministic=False,
        )

    def product(vector: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*batching rule")  # slow, but correct
            warnings.filterwarnings("ignore", message=".*torch.jit.script")  # torch uses its own
            result: Tensor = operator @ vector
        return result.detach()

    return product, int(operator.shape[0])


def spectrum(
    product: Product,
    size: int,
    *,
    steps: int,
    starts: int = 1,
    vectors: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Spectrum:
    """Return extreme eigenvalues, spectral density and trace of a symmetric operator.

    Reference: Golub and Meurant, Matrices, Moments and Quadrature, 2010 (Lanczos quadrature);
        Ghorbani et al., An Investigation into Neural Net Optimization via Hessian Eigenvalue
        Density, ICML 2019, arXiv:1901.10159; Hutchinson, A Stochastic Estimator of the Trace of
        the Influence Matrix for Laplacian Smoothing Splines, 1989.
    Departures: none known.

    Args:
        product: function that applies the operator to a vector [P].
        size: dimension P.
        steps: Lanczos steps per start; fewer if the Krylov space is exhausted.
        starts: number of random starts.
        vectors: random vectors for the trace, at least 2; from P on, the trace is exact.
        seed: random seed.
        device: device of the operator.
        dtype: dtype of the operator.
    """
    generator = torch.Generator().manual_seed(seed)
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    found = []
    for _ in range(starts):
        start = torch.randn(size, generator=generator, dtype=torch.float64).to(**where)
        found.append(lanczos(product, start, steps))
    ritz, weights, residuals = zip(*found, strict=True)
    if vectors >= size:
        unit = torch.eye(size, **where)
        trace, error = sum(float(product(e) @ e) for e in unit), 0.0
    else:
        samples = []
        for _ in range(vectors):
            signs = torch.randint(2, (size,), generator=generator).to(**where) * 2 - 1
            samples.append(float(product(signs).double() @ signs.double()))
        trace, error = float(np.mean(samples)), float(np.std(samples, ddof=1)) / vectors**0.5
    return Spectrum(ritz, weights, residuals, trace, error)


def lanczos(
    product: Product, start: Tensor, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run Lanczos iterations with full reorthogonalisation.

    Args:
        product: function that applies a symmetric operator to a vector [P].
        start: initial vector [P], not zero.
        steps: largest number of steps; fewer if the Krylov space is exhausted.

    Returns:
        Ritz values in descending order [m]; quadrature weights with sum 1 [m]; bounds of the
        distances to the nearest eigenvalue [m].
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for _ in range(min(steps, len(start))):
        vector = product(basis[-1])
        diagonal.append(float(vector @ basis[-1]))
        scale = max(scale, float(vector.norm()))
        for _ in range(2):  # once is not enough in finite precision
            for known in basis:
                vector = vector - (known @ vector) * known
        beside.append(float(vector.norm()))
        if beside[-1] <= 100 * torch.finfo(start.dtype).eps * scale:
            beside[-1] = 0.0
            break
        basis.append(vector / beside[-1])
    inner = np.asarray(beside[: len(diagonal) - 1])
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(inner, 1) + np.diag(inner, -1))
    order = np.argsort(-values, kind="stable")
    bounds = beside[-1] * np.abs(vectors[-1])
    return values[order], vectors[0][order] ** 2, bounds[order]


def batches(images: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels in batches of at most ``size``."""
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))

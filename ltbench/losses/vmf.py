"""Von Mises-Fisher densities on the unit sphere: Bessel functions, class estimates, contrast.

Everything is computed in float64, even under autocast: the logarithms are as large as the
concentration, up to 1e5, and only their differences matter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

MOST_CONCENTRATED = 1e5  # concentration of a class with one image; as in ProCo's code
# Divisor and coefficients of Debye's polynomials u_k(s) / s^k in powers of s^2.
DEBYE = (
    (24, (3, -5)),
    (1152, (81, -462, 385)),
    (414720, (30375, -369603, 765765, -425425)),
    (39813120, (4465125, -94121676, 349922430, -446185740, 185910725)),
    (
        6688604160,
        (1519035525, -49286948607, 284499769554, -614135872350, 566098157625, -188699385875),
    ),
    (
        4815794995200,
        (
            *(2757049477875, -127577298354750, 1050760774457901, -3369032068261860),
            *(5104696716244125, -3685299006138750, 1023694168371875),
        ),
    ),
)


def log_ive(x: Tensor, nu: float) -> Tensor:
    """Return log I_nu(x) - x, I the modified Bessel function of the first kind.

    Reference: Debye's uniform asymptotic expansion, NIST Digital Library of Mathematical
        Functions, 10.41.3, with six terms.
    Departures: none known. The error is at most 4e-10 for nu >= 15 and 3e-5 for nu >= 3.

    Args:
        x: of any shape, >= 0; the value at 0 is minus infinity.
        nu: order, > 0.

    Returns:
        float64, of the shape of ``x``.

    Raises:
        ValueError: ``nu`` is not positive.
    """
    x, h = _hypotenuse(x, nu)
    # All terms are differences or products without cancellation, for small and large x alike.
    rise = nu * nu / (h + x) - nu * ((nu + h) / x).log()
    return rise - 0.5 * (2 * math.pi * h).log() + _series(h, nu).log()


def bessel_ratio(x: Tensor, nu: float) -> Tensor:
    """Return I_{nu+1}(x) / I_nu(x), the mean resultant length of a von Mises-Fisher density.

    Reference: as ``log_ive``.
    Departures: none known. The relative error is that of ``log_ive``, for any x.

    Args:
        x: of any shape, >= 0.
        nu: order, > 0.

    Returns:
        float64 in [0, 1], of the shape of ``x``.

    Raises:
        ValueError: ``nu`` is not positive.
    """
    x, h = _hypotenuse(x, nu)
    _, above = _hypotenuse(x, nu + 1)
    step = (2 * nu + 1) / (h + above)  # above - h
    slope = (step - nu * ((1 + step) / (nu + h)).log1p()).exp() * (h / above).sqrt()
    ratio = x / (nu + 1 + above) * slope * (_series(above, nu + 1) / _series(h, nu))
    return ratio.clamp(max=1.0)


def vmf_log_normaliser(x: Tensor, nu: float) -> Tensor:
    """Return log I_nu(x) - nu log x, up to a constant the log normaliser of a vMF density.

    It is finite at 0, and its derivative is ``bessel_ratio``.

    Reference: Du et al., Probabilistic Contrastive Learning for Long-Tailed Visual Recognition,
        TPAMI 2024, arXiv:2403.06726.
    Departures: computed as ``log_ive``; the authors' recurrence is wrong for x above 12 nu.

    Args:
        x: concentrations of any shape, >= 0.
        nu: order p / 2 - 1 for p dimensions, > 0.

    Returns:
        float64, of the shape of ``x``; can be differentiated twice.

    Raises:
        ValueError: ``nu`` is not positive.
    """
    return cast("Callable[..., Tensor]", _LogNormaliser.apply)(x.double(), nu)


class _LogNormaliser(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, nu: float) -> Tensor:
        x, h = _hypotenuse(x, nu)
        return h - nu * (nu + h).log() - 0.5 * (2 * math.pi * h).log() + _series(h, nu).log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.nu = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * bessel_ratio(ctx.saved_tensors[0], ctx.nu), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        slope: Tensor = tangents[0] * bessel_ratio(ctx.saved_tensors[0], ctx.nu)
        return slope


def vmf_concentration(norms: Tensor, dim: int, most: float = MOST_CONCENTRATED) -> Tensor:
    """Return the concentration of a von Mises-Fisher density, kappa = p R / (1 - R^2).

    Reference: Du et al., Probabilistic Contrastive Learning for Long-Tailed Visual Recognition,
        TPAMI 2024, arXiv:2403.06726; the estimate is Sra's, Computational Statistics 2012.
    Departures: none known; ``most`` is in the authors' code.

    Args:
        norms: norms R of the means of unit vectors [C]; one of 1 or, by rounding, more gives
            ``most``.
        dim: number of dimensions p.
        most: largest value, > 0.

    Returns:
        float64 in [0, most], [C].
    """
    r = norms.double()
    kappa = dim * r / (1 - r * r)
    return torch.where((r < 1) & (kappa < most), kappa, most)


def updated_means(
    means: Tensor, amounts: Tensor, features: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the running mean of each class's features, and how many they are, with further ones.

    Reference: Du et al., Probabilistic Contrastive Learning for Long-Tailed Visual Recognition,
        TPAMI 2024, arXiv:2403.06726.
    Departures: none known.

    Args:
        means: so far [C, p]; those of a class without features are replaced by its first ones.
        amounts: features so far [C].
        features: further ones [N, p]; gradients do not flow through them.
        labels: of these [N].

    Returns:
        New means [C, p] and amounts [C], in the types of the old ones.
    """
    features = features.detach().to(means)
    more = torch.zeros_like(amounts).index_add(0, labels, amounts.new_ones(len(labels)))
    return means_with_sums(
        means, amounts, torch.zeros_like(means).index_add(0, labels, features), more
    )


def means_with_sums(
    means: Tensor, amounts: Tensor, sums: Tensor, more: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``updated_means`` from the sum of each class's further features and their number.

    Args:
        means: so far [C, p].
        amounts: features so far [C].
        sums: of further ones [C, p].
        more: number of these [C].
    """
    totals = amounts + more
    # The weight of the new mean first: the products stay as small as the means themselves.
    share = (more / totals.clamp(min=1))[:, None]
    fresh = sums / more.clamp(min=1)[:, None]
    return torch.where(more[:, None] > 0, means * (1 - share) + fresh * share, means), totals


def proco_logits(
    features: Tensor, means: Tensor, temperature: float = 0.1, most: float = MOST_CONCENTRATED
) -> Tensor:
    """Return the log of the expected exp(v . w / t) of each feature v, w drawn from each class.

    The classes are von Mises-Fisher densities with these means. Contrast with infinitely many
    samples is a cross-entropy on these logits plus the log prior.

    Reference: Du et al., Probabilistic Contrastive Learning for Long-Tailed Visual Recognition,
        TPAMI 2024, arXiv:2403.06726.
    Departures: none known; Bessel functions are exact, see ``vmf_log_normaliser``.

    Args:
        features: unit vectors v [..., N, p].
        means: means of unit vectors of each class [..., C, p]; gradients do not flow through them.
        temperature: t > 0.
        most: largest concentration.

    Returns:
        Logits [..., N, C], float64.

    Raises:
        ValueError: ``temperature`` is not positive, or p is below 3.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be > 0, found {temperature}")
    dim = means.shape[-1]
    nu = dim / 2 - 1
    with torch.autocast(features.device.type, enabled=False):
        means, v = means.detach().double(), features.double() / temperature
        norms = means.norm(dim=-1)
        kappa = vmf_concentration(norms, dim, most)  # [C]
        factors = torch.where(kappa < most, dim / (1 - norms * norms), most / norms)
        centres = means * factors[..., None]  # kappa mu, without a division by a norm near 0
        alone = kappa[..., None, :]  # [1, C]
        squares = alone * alone + 2 * (v @ centres.mT) + (v * v).sum(dim=-1, keepdim=True)
        tilted = squares.clamp(min=1e-24).sqrt()  # |kappa mu + v / t| [N, C]
        both = vmf_log_normaliser(torch.cat([tilted, alone], dim=-2), nu)
        return both[..., :-1, :] - both[..., -1:, :]


def _hypotenuse(x: Tensor, nu: float) -> tuple[Tensor, Tensor]:
    """Return x and sqrt(nu^2 + x^2), both in float64."""
    if not nu > 0:
        raise ValueError(f"the order of a Bessel function must be > 0, found {nu}")
    x = x.double()
    return x, (x * x + nu * nu).sqrt()


def _series(h: Tensor, nu: float) -> Tensor:
    """Return the sum 1 + u_1 / nu + ... + u_6 / nu^6, u_k Debye's polynomials in nu / h."""
    table = _debye(h.device)  # [6, 7]
    orders = torch.arange(table.shape[1], device=h.device)
    u = ((nu / h) ** 2)[..., None] ** orders @ table.T  # u_k h^k / nu^k
    return 1 + (u * (1 / h)[..., None] ** orders[1:]).sum(dim=-1)


@functools.cache
def _debye(device: torch.device) -> Tensor:
    """Return the coefficients of all polynomials on a device, once for all calls."""
    width = len(DEBYE) + 1
    rows = [[c / divisor for c in row] + [0.0] * (width - len(row)) for divisor, row in DEBYE]
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.float64, device=device)

"""Formulas of M2m, Difficulty-Net and CC-SAM, independent of any training loop.

Half precision is raised to single; double precision stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltbench.losses.class_counts import Counts, checked_counts
from ltbench.losses.precision import full
from ltbench.losses.rows import cross_entropy_rows

Logits = Callable[[Tensor], Tensor]


def seed_acceptance(
    class_counts: Counts, targets: Tensor, seeds: Tensor, beta: float = 0.999
) -> Tensor:
    """Return M2m's probability of accepting a seed image of one class for a rarer class.

    Reference: Kim et al., M2m: Imbalanced Classification via Major-to-minor Translation,
        CVPR 2020, arXiv:2004.00431, Eqn 4.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        targets: target classes [T].
        seeds: classes of the seed images [N].
        beta: in [0, 1); towards 1, only much larger classes are accepted.

    Returns:
        1 - beta^max(n_seed - n_target, 0), float64 [T, N].

    Raises:
        ValueError: ``beta`` is out of range.
        UserError: a count is not positive.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"`beta` must be in [0, 1), found {beta}")
    counts = checked_counts(class_counts)
    surplus = (counts[seeds][None, :] - counts[targets][:, None]).clamp(min=0)
    return 1 - counts.new_tensor(beta) ** surplus


def translate(
    start: Tensor,
    targets: Tensor,
    seeds: Tensor,
    helper: Logits,
    model: Logits,
    *,
    lam: float = 0.5,
    steps: int = 10,
    step_size: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Translate images to target classes under a trained classifier, away from their own class.

    Reference: Kim et al., M2m: Imbalanced Classification via Major-to-minor Translation,
        CVPR 2020, arXiv:2004.00431, Eqn 1 and Algorithm 1.
    Departures: none known from the authors' code.

    Args:
        start: pixels in [0, 1] [B, ...].
        targets: target classes [B].
        seeds: classes of the images [B].
        helper: trained classifier, whose loss for ``targets`` is minimised; returns logits [B, C],
            each row from its own image only.
        model: model whose logits of ``seeds`` are reduced; returns logits [B, C], likewise.
        lam: weight of the second term, >= 0.
        steps: number of steps along the normalised gradient.
        step_size: L2 norm of a step.

    Returns:
        Pixels of the same shape, and the helper's probability of ``targets`` [B].
    """
    x = start.detach()
    for _ in range(steps):
        with torch.enable_grad():
            x = x.requires_grad_()
            kept = full(model(x)).gather(1, seeds[:, None]).sum()
            energy = cross_entropy_rows(helper(x), targets).sum() + lam * kept
            (gradient,) = torch.autograd.grad(energy, x)
        x = (x.detach() - step_size * gradient / _lengths(gradient)).clamp(0, 1)
    with torch.no_grad():
        confidence = full(helper(x)).softmax(dim=1).gather(1, targets[:, None])[:, 0]
    return x, confidence


def bounded_noise(uniform: Tensor, length: float) -> Tensor:
    """Return noise in [-0.5, 0.5], with the L2 norm of each image clipped to ``length``.

    Args:
        uniform: uniform random numbers in [0, 1) [B, ...].
        length: maximum norm, >= 0.
    """
    noise = uniform - 0.5
    return noise * (length / _lengths(noise)).clamp(max=1)


def difficulty_weights(difficulty: Tensor) -> Tensor:
    """Return class weights [C] with mean 1, proportional to difficulties [C] > 0.

    Reference: Sinha and Ohashi, Difficulty-Net: Learning to Predict Difficulty for Long-Tailed
        Recognition, WACV 2023, arXiv:2209.02960.
    Departures: none known.
    """
    difficulty = full(difficulty)
    return len(difficulty) * difficulty / difficulty.sum()


def difficulty_target(accuracy: Tensor) -> Tensor:
    """Return the target of the driver loss: 1 - a_k / sum(a), or 1 if all are 0.

    Reference: as ``difficulty_weights``.
    Departures: none known.

    Args:
        accuracy: of each class, in [0, 1] [C].
    """
    accuracy = full(accuracy)
    return 1 - accuracy / (accuracy.sum() + 1e-12)


def driver_loss(difficulty: Tensor, accuracy: Tensor) -> Tensor:
    """Return the mean squared error of difficulties [C] against ``difficulty_target``."""
    return ((full(difficulty) - difficulty_target(accuracy)) ** 2).mean()


def class_perturbed_logits(
    logits: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    anchors: tuple[Tensor, Tensor, Tensor],
    radii: Tensor,
    scalars: int,
    bias: bool = True,
    share: slice = slice(None),
    total: Callable[[Tensor], Tensor] = lambda squares: squares,
) -> Tensor:
    """Return the logits of a linear classifier under a separate perturbation for each class.

    Class k's perturbation of the weight, and that of the bias, is along the gradient g of the mean
    loss of its anchors and has norm ``radii[k] * sqrt(scalars / |g|)``. The gradient of row j is
    the outer product of its residual and its feature, so inner products of these suffice: class
    gradients are never materialised.

    Reference: Zhou et al., Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed
        Recognition, CVPR 2023, section 3.2.
    Departures: none known from the authors' code, except that a vanishing gradient gives no
        perturbation.

    Args:
        logits: [B, C].
        features: input features of the classifier [B, D].
        labels: class of the perturbation of each row [B].
        anchors: labels [N], features [N, D] and residuals [N, C] (gradients of the losses with
            respect to the logits) of the rows that define the class gradients; constants.
        radii: of each class, before division by the root of the gradient's norm [C].
        scalars: total number of entries of weight and bias.
        bias: whether the classifier has a bias to perturb.
        share: anchors whose part of the squared norms is computed here, if ranks share the work.
        total: sums the parts over ranks [2, C].

    Returns:
        Logits [B, C]; gradients flow through ``logits`` and ``features``.
    """
    logits, features = full(logits), full(features)
    owners, inputs, residuals = anchors
    inputs, residuals = inputs.to(features), residuals.to(features)
    with torch.autocast(logits.device.type, enabled=False):
        factor = radii.to(features) * scalars**0.5
        number = factor.new_zeros(len(factor)).index_add(0, owners, factor.new_ones(len(owners)))
        number = number.clamp(min=1)
        same = owners[share, None] == owners[None, :]
        agreement = (residuals[share] @ residuals.T) * same  # inner products of bias gradients
        sizes = [(agreement * (inputs[share] @ inputs.T)).sum(dim=1), agreement.sum(dim=1)]
        parts = [factor.new_zeros(len(factor)).index_add(0, owners[share], s) for s in sizes]
        squares = total(torch.stack(parts))  # [2, C]
        own = (labels[:, None] == owners[None, :]) / number[owners]  # [B, N]

        def shift(inner: Tensor, squares: Tensor) -> Tensor:
            norms = squares.clamp(min=0).sqrt() / number
            scale = factor / norms.clamp(min=1e-12) ** 1.5
            moved: Tensor = scale[labels][:, None] * ((own * inner) @ residuals)
            return moved

        out = logits + shift(features @ inputs.T, squares[0])
        return out + shift(torch.ones_like(own), squares[1]) if bias else out


def class_radii(class_counts: Counts, size: Tensor, scalars: int, noise: float) -> Tensor:
    """Return CC-SAM's radius of each class, without the factor of its gradient.

    Reference: Zhou et al., Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed
        Recognition, CVPR 2023, section 3.2, with the constants of the authors' code.
    Departures: a class with one image, for which the authors' code divides by zero, has the
        radius of one with two.

    Args:
        class_counts: training images of each class [C].
        size: L2 norm of the classifier's parameters, a scalar; treated as constant.
        scalars: number of these parameters P.
        noise: scale of the radii, >= 0.

    Returns:
        noise sqrt(size) / (sqrt(2) (n_k - 1)^(1/4) P^(1/4)), [C].

    Raises:
        UserError: a count is not positive.
    """
    return radii_of(radius_divisors(class_counts, scalars).to(size.device), size, noise)


def radius_divisors(class_counts: Counts, scalars: int) -> Tensor:
    """Return the divisor of each class's radius, sqrt(2) (n_k - 1)^(1/4) P^(1/4) [C].

    See ``class_radii``.
    """
    rest = (checked_counts(class_counts) - 1).clamp(min=1)
    divisors: Tensor = 2**0.5 * (rest * scalars) ** 0.25
    return divisors


def radii_of(divisors: Tensor, size: Tensor, noise: float) -> Tensor:
    """Return the radius of each class [C] from ``radius_divisors``, see ``class_radii``."""
    return noise * size.detach().double().sqrt() / divisors


def _lengths(x: Tensor) -> Tensor:
    """Return the positive L2 norm of each row, in a shape that broadcasts over the rows."""
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    shaped: Tensor = norms.view(-1, *(1,) * (x.dim() - 1))
    return shaped

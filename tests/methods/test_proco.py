"""ProCo: Bessel functions against many digits, running estimates, the loss and its passes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toys
from scipy.integrate import quad
from scipy.special import gammaln, ive
from torch.nn import functional as F

from ltbench import losses
from ltbench.config import validation
from ltbench.losses.vmf import means_with_sums
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.updates.base import weighted_sum


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected, tolerance: float) -> None:
    torch.testing.assert_close(found, double(expected), rtol=tolerance, atol=tolerance)


def proco(**options):
    values = {**toys.OPTIONS["proco"], **options}
    config = validation.build_options("METHODS", "proco", values)
    return METHODS.get("proco")(config, toys.backbone(), toys.INFO)


# Bessel functions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["proco_log_bessel", "proco_log_bessel_large", "proco_log_bessel_p1024"]
)
def test_log_bessel_vectors(vector, name):
    v = vector(name)
    x, nu = double(v["inputs"]["x"]), v["params"]["nu"]
    close(losses.log_ive(x, nu), v["expected"]["log_ive_nu"], v["tolerance"])
    close(losses.log_ive(x, nu + 1), v["expected"]["log_ive_nu1"], v["tolerance"])
    ratio = double(v["expected"]["log_ive_nu1"]) - double(v["expected"]["log_ive_nu"])
    close(losses.bessel_ratio(x, nu), ratio.exp().tolist(), v["tolerance"])


@pytest.mark.parametrize(("nu", "error"), [(15, 5e-10), (16.5, 4e-10), (30, 1e-11), (63, 1e-11)])
def test_log_bessel_is_the_function_of_scipy(nu, error):
    x = torch.logspace(math.log10(0.5), 5, 200, dtype=torch.float64)
    expected, above = torch.from_numpy(ive(nu, x.numpy())), torch.from_numpy(ive(nu + 1, x.numpy()))
    held = (expected > 1e-290) & (above > 1e-290)  # the rest are no normal numbers there
    x, expected, above = x[held], expected[held], above[held]
    assert len(x) > 100
    torch.testing.assert_close(losses.log_ive(x, nu), expected.log(), rtol=0, atol=error)
    ratio = losses.bessel_ratio(x, nu)
    torch.testing.assert_close(ratio, above / expected, rtol=2 * error, atol=0)


@pytest.mark.parametrize("nu", [1, 3, 15, 63, 511])
def test_small_and_huge_arguments_keep_their_limits(nu):
    """I_nu(x) is (x/2)^nu / gamma(nu+1) near 0, and its ratio 1 - (nu + 1/2) / x for large x."""
    tolerance = {1: 0.05, 3: 5e-5}.get(nu, 1e-9)
    small = double([0.0, 1e-300, 1e-12, 1e-3])
    limit = -nu * math.log(2) - gammaln(nu + 1)
    near = losses.vmf_log_normaliser(small, nu)
    close(near, [limit] * 4, tolerance)
    ratio = losses.bessel_ratio(small, nu)
    torch.testing.assert_close(ratio[1:], small[1:] / (2 * nu + 2), rtol=tolerance, atol=0)
    assert ratio[0] == 0
    assert losses.log_ive(small[:1], nu) == -torch.inf
    huge = double([1e7, 1e9, 1e12, 1e15, 1e100])
    missing = 1 - losses.bessel_ratio(huge, nu)
    assert (missing >= 0).all()
    torch.testing.assert_close(missing[:2], (nu + 0.5) / huge[:2], rtol=1e-3, atol=1e-15)
    value = losses.vmf_log_normaliser(huge, nu)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(
        losses.log_ive(huge, nu), -0.5 * (2 * math.pi * huge).log(), rtol=0, atol=1.0
    )


@pytest.mark.parametrize("nu", [15, 63, 511])
def test_the_slope_of_the_log_normaliser_is_the_ratio(nu):
    x = double([1e-6, 0.5, 10.0, 300.0, 5e3, 1e5]).requires_grad_()
    value = losses.vmf_log_normaliser(x, nu)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    torch.testing.assert_close(slope, losses.bessel_ratio(x, nu), rtol=0, atol=0)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    r = slope.detach()
    exact = 1 - r * r - (2 * nu + 1) / x.detach() * r  # the recurrence of Bessel functions
    torch.testing.assert_close(curve, exact, rtol=1e-6, atol=1e-7)
    points = double([0.7, 20.0, 150.0]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: losses.vmf_log_normaliser(z, nu), points, check_forward_ad=True
    )


def test_bessel_functions_refuse_what_they_are_not_made_for():
    for function in (losses.log_ive, losses.bessel_ratio, losses.vmf_log_normaliser):
        with pytest.raises(ValueError, match="order"):
            function(double([1.0]), 0)


# Estimates -------------------------------------------------------------------------------------


def test_concentration_vector(vector):
    v = vector("proco_kappa_cap")
    found = losses.vmf_concentration(
        double(v["inputs"]["norms"]), v["params"]["p"], v["params"]["kappa_max"]
    )
    close(found, v["expected"], v["tolerance"] / 100)
    ends = losses.vmf_concentration(torch.tensor([0.0, 1.0, 1.0 + 1e-7, 1 - 6e-8]), 128)
    assert ends.tolist() == [0.0, 1e5, 1e5, 1e5]


def test_running_means_are_those_of_all_features():
    torch.manual_seed(0)
    features = F.normalize(torch.randn(40, 6, dtype=torch.float64), dim=1)
    labels = torch.randint(0, 3, (40,))
    start = torch.full((4, 6), 0.3, dtype=torch.float64)
    means, amounts = start, torch.zeros(4, dtype=torch.float64)
    for part in torch.arange(40).split(7):
        means, amounts = losses.updated_means(means, amounts, features[part], labels[part])
    for k in range(3):
        torch.testing.assert_close(means[k], features[labels == k].mean(0))
        assert amounts[k] == (labels == k).sum()
    assert torch.equal(means[3], start[3])  # without features it stays where it began
    assert amounts[3] == 0


def test_logits_are_the_expected_contrast():
    """The mean of exp(v . w / t) over the density of each class, by quadrature."""
    p, t = 34, 0.5
    m = (p - 1) / 2 - 1  # order of the integral over the directions around the mean
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, p, dtype=torch.float64, generator=generator)
    v, *directions = F.normalize(drawn, dim=1)
    means = torch.stack([0.8 * directions[0], 0.1 * directions[1]])
    found = losses.proco_logits(v[None], means, t)[0]
    for k, mean in enumerate(means):
        r = float(mean.norm())
        kappa, cos = p * r / (1 - r * r), float(v @ mean) / r
        sin = math.sqrt(1 - cos * cos)

        def density(u, kappa=kappa):
            return (1 - u * u) ** ((p - 3) / 2) * math.exp(kappa * (u - 1))

        def contrast(u, density=density, cos=cos, sin=sin):
            a = max(sin * math.sqrt(1 - u * u) / t, 1e-9)
            around = gammaln(m + 1) + m * math.log(2 / a) + math.log(ive(m, a)) + a
            return density(u) * math.exp(cos * u / t + around)

        ends = {"epsabs": 0, "epsrel": 1e-10, "limit": 200}
        expected = math.log(quad(contrast, -0.9999, 0.9999, **ends)[0])
        expected -= math.log(quad(density, -0.9999, 0.9999, **ends)[0])
        assert float(found[k]) == pytest.approx(expected, abs=1e-7)


def test_logits_stay_exact_for_classes_of_one_image_and_in_single_precision():
    """With a concentration of 1e5 both terms are near 1e5, their difference is v . mu / t."""
    torch.manual_seed(0)
    v = F.normalize(torch.randn(5, 128), dim=1)
    means = F.normalize(torch.randn(7, 128), dim=1)  # norm 1 up to rounding
    means[0] = 0.0
    found = losses.proco_logits(v, means, 0.1)
    assert found.dtype == torch.float64
    near = v.double() @ F.normalize(means.double(), dim=1).T / 0.1
    torch.testing.assert_close(found[:, 1:], near[:, 1:], rtol=0, atol=2e-2)
    again = losses.proco_logits(v.double(), F.normalize(means.double(), dim=1), 0.1)
    torch.testing.assert_close(found[:, 1:], again[:, 1:], rtol=0, atol=1e-4)
    flat = found[:, 0]  # a class without direction is the same for all features
    torch.testing.assert_close(flat, flat[:1].expand(5), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(losses.proco_logits(v, means, 0.1), found, rtol=0, atol=0)
    with pytest.raises(ValueError, match="temperature"):
        losses.proco_logits(v, means, 0.0)


def test_the_gradient_is_the_ratio_along_the_tilted_mean():
    torch.manual_seed(0)
    p, t = 32, 0.1
    v = F.normalize(torch.randn(4, p, dtype=torch.float64), dim=1).requires_grad_()
    means = 0.9 * F.normalize(torch.randn(3, p, dtype=torch.float64), dim=1)
    means[1] /= 0.9
    found = losses.proco_logits(v, means, t)
    weight = torch.randn(4, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * found).sum(), v)
    kappa = losses.vmf_concentration(means.norm(dim=1), p)
    sums = (kappa[:, None] * F.normalize(means, dim=1))[None] + v.detach()[:, None] / t
    tilted = sums.norm(dim=2)
    slope = losses.bessel_ratio(tilted, p / 2 - 1) / (t * tilted)
    expected = ((weight * slope)[..., None] * sums).sum(1)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_a_feature_opposite_to_a_flat_class_has_a_finite_gradient():
    v = F.normalize(torch.ones(1, 32, dtype=torch.float64), dim=1).requires_grad_()
    t = 0.1
    r = (-32 * t + math.sqrt((32 * t) ** 2 + 4)) / 2  # kappa mu = -v / t
    found = losses.proco_logits(v, -r * v.detach(), t)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(v.grad).all()


# Method ----------------------------------------------------------------------------------------


def loop_loss(method, batch, means, amounts):
    """Loss and new estimates, one view and one class after the other."""
    x = torch.cat(batch.views)
    features = method.backbone(x)
    n = len(batch.labels)
    prior = double(toys.COUNTS) / sum(toys.COUNTS)
    total = F.cross_entropy(method.head(features)[:n] + prior.log(), batch.labels)
    v = F.normalize(method.projection(features), dim=1)
    p, t = v.shape[1], method.config.temperature
    means, amounts = means.clone(), amounts.clone()
    for part in (v[n : 2 * n], v[2 * n :]):
        for k in range(len(amounts)):
            own = part[batch.labels == k].detach()
            if len(own):
                means[k] = (amounts[k] * means[k] + own.sum(0)) / (amounts[k] + len(own))
                amounts[k] += len(own)
        norms = means.norm(dim=1)
        kappa = (p * norms / (1 - norms**2)).clamp(max=1e5)
        sums = (kappa[:, None] * means / norms[:, None])[None] + part[:, None] / t
        c = losses.vmf_log_normaliser(sums.norm(dim=2), p / 2 - 1)
        c = c - losses.vmf_log_normaliser(kappa, p / 2 - 1)
        total = total + method.config.alpha / 2 * F.cross_entropy(c + prior.log(), batch.labels)
    return total, means, amounts


def test_loss_and_estimates_are_the_formula_over_two_epochs():
    method = proco(alpha=0.7, dim=16, hidden=9).double().train()
    assert method.projection[0].out_features == 9
    old, old_n = method.next_means.clone(), method.next_amounts.clone()
    new = None
    for epoch in range(2):
        at = toys.at(0, epoch)
        method.on_epoch(at)
        if new is not None:
            old, old_n = new
        torch.testing.assert_close(method.means, old)
        fresh = method.next_means.clone()
        torch.testing.assert_close(fresh.norm(dim=1), torch.full((4,), 0.9).double())
        new = fresh, torch.zeros(4).double()
        for step in range(2):
            plain = toys.batch(seed=7 * epoch + step)
            batch = toys.dressed(replace(plain, views=(plain.views[0].double(),)), method)
            prepared = method.prepare(batch, toys.at(step, epoch))
            out = method.loss(prepared, toys.at(step, epoch))
            total, divisor = weighted_sum(out)
            expected, old, old_n = loop_loss(method, batch, old, old_n)
            torch.testing.assert_close(total / divisor, expected)
            gradients = [
                torch.autograd.grad(loss, [*method.backbone.parameters()], retain_graph=True)
                for loss in (total / divisor, expected)
            ]
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b)
            assert torch.equal(out.labels, batch.labels.repeat(3))
            new = loop_loss(method, batch, *new)[1:]
            method.after_step([prepared], toys.at(step, epoch))
            torch.testing.assert_close(method.means, old)
            torch.testing.assert_close(method.next_means, new[0])
            assert torch.equal(method.amounts, old_n)
            assert torch.equal(method.next_amounts, new[1])


def test_later_passes_of_a_step_see_the_estimates_of_the_first():
    method = proco().train()
    batch = method.prepare(toys.dressed(toys.batch(), method), toys.at())
    first = method.loss(batch, toys.at()).rows.detach()
    kept = batch.extra["sums"].clone()
    assert torch.equal(method.loss(batch, toys.at()).rows, first)
    with torch.no_grad():
        for p in method.projection.parameters():
            p.add_(0.1 * torch.randn_like(p))
    moved = method.loss(batch, toys.at()).rows
    assert not torch.equal(moved[24:], first[24:])
    assert torch.equal(batch.extra["sums"], kept)
    before = method.means.clone()
    method.after_step([batch], toys.at())
    expected = before
    amounts = torch.zeros(4)
    more = batch.labels.bincount(minlength=4).float()
    for sums in kept:
        expected, amounts = means_with_sums(expected, amounts, sums, more)
    assert torch.equal(method.means, expected)


def test_micro_batches_add_up_to_the_estimates_of_the_batch():
    method = proco().double().eval()  # each image by itself
    x, y = toys.images(24)
    results = []
    for parts in (1, 3):
        other = proco().double().eval()
        other.load_state_dict(method.state_dict())
        micro = [
            other.prepare(toys.dressed(Batch((a.double(),), b, b), other), toys.at())
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
        ]
        for batch in micro:
            other.loss(batch, toys.at())
        other.after_step(micro, toys.at())
        results.append((other.means, other.amounts))
    torch.testing.assert_close(results[0], results[1])


def test_random_starts_depend_on_the_epoch_only():
    found = []
    for epoch in (1, 1, 2):
        method = proco()
        torch.manual_seed(len(found))
        method.on_epoch(toys.at(0, epoch))
        found.append(method.next_means.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_classifier_is_linear_or_a_cosine():
    assert isinstance(proco().head, torch.nn.Linear)
    head = proco(scale=16.0).head
    assert head.scale == 16.0

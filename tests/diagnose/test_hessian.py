from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ltbench.diagnose.base import Subject
from ltbench.diagnose.features import parameters_of, read, sample
from ltbench.diagnose.figures.hessian import density, squash
from ltbench.diagnose.hessian import Hessian
from ltbench.diagnose.spectrum import hessian_product, lanczos, spectrum
from ltbench.errors import UserError

SMALL = {"images": 4, "steps": 3, "vectors": 2}


def least_squares(width: int = 12, seed: int = 0):
    """A linear model under squared error: the Hessian is X^T X / n whatever the weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, width, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -2, width, dtype=torch.float64)
    y = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(width, 1, bias=False).double()

    class HalfSquares(nn.Module):
        reduction = "mean"

        def forward(self, out, target):
            return ((out - target) ** 2 / 2).mean()

    product, size = hessian_product(
        model, list(model.parameters()), x, y, loss=HalfSquares(), batch_size=7
    )
    return product, size, torch.linalg.eigvalsh(x.T @ x / 30).flip(0).numpy()


def test_least_squares_has_the_spectrum_of_its_covariance():
    product, size, truth = least_squares()
    found = spectrum(product, size, steps=50, vectors=12, dtype=torch.float64)
    assert size == 12
    assert len(found.ritz[0]) == 12, "the space is exhausted after as many steps as dimensions"
    np.testing.assert_allclose(found.ritz[0], truth, rtol=1e-8, atol=1e-12)
    assert found.trace == pytest.approx(truth.sum(), rel=1e-12)
    assert found.largest == pytest.approx(truth[0])
    assert found.smallest == pytest.approx(truth[-1])
    assert found.weights[0].sum() == pytest.approx(1)


def test_few_steps_find_the_largest_eigenvalue_and_bound_their_error():
    product, size, truth = least_squares(width=25)
    values, _, bounds = lanczos(product, torch.ones(size, dtype=torch.float64), 8)
    assert values[0] == pytest.approx(truth[0], rel=1e-4)
    nearest = np.abs(values[:, None] - truth).min(axis=1)
    assert (nearest <= bounds + 1e-10).all()
    assert bounds[0] < 1e-2 * truth[0]


def test_hutchinson_is_right_within_its_error_and_exact_for_a_diagonal():
    product, size, truth = least_squares(width=25)
    found = spectrum(product, size, steps=2, vectors=20, seed=3, dtype=torch.float64)
    assert found.trace_error > 0
    assert abs(found.trace - truth.sum()) < 4 * found.trace_error
    values = torch.arange(-3.0, 17.0)
    exact = spectrum(lambda v: values * v, 20, steps=2, vectors=2)
    assert exact.trace == pytest.approx(float(values.sum()))
    assert exact.trace_error == 0


def test_quadrature_gives_moments_of_the_spectrum():
    """Weights and nodes integrate powers up to 2 m - 1 of start^T A^p start exactly."""
    values = torch.linspace(-1, 4, 40, dtype=torch.float64)
    start = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nodes, weights, _ = lanczos(lambda v: values * v, start, 5)
    unit = (start / start.norm()).numpy()
    for power in range(10):
        truth = (unit**2 * values.numpy() ** power).sum()
        assert (weights * nodes**power).sum() == pytest.approx(truth, rel=1e-9)


def test_a_multiple_of_the_identity_needs_one_step():
    values, weights, bounds = lanczos(lambda v: 3 * v, torch.randn(50), 10)
    np.testing.assert_allclose(values, [3], rtol=1e-6)
    np.testing.assert_allclose(weights, [1])
    assert bounds[0] == 0


def test_density_has_area_one_and_its_mass_where_the_eigenvalues_are():
    grid = np.linspace(-6, 6, 4000)
    line = density(grid, np.array([0.0, 5.0]), np.array([0.9, 0.1]), linear=0.01)
    step = grid[1] - grid[0]
    assert line.sum() * step == pytest.approx(1, abs=1e-3)
    right = grid > squash(np.array(1.0), 0.01)
    assert line[right].sum() * step == pytest.approx(0.1, abs=1e-3)


def test_spectrum_of_a_network_is_that_of_its_dense_hessian(subject: Subject):
    images, labels = read(subject, subject.data.train, sample(subject.data.train.labels, [9], 6))
    model = subject.method.export().eval()
    chosen = parameters_of(subject, "head")
    product, size = hessian_product(model, list(chosen.values()), images, labels, batch_size=4)
    found = spectrum(product, size, steps=14, vectors=8)

    def loss(values):
        out = torch.func.functional_call(model, dict(zip(chosen, values, strict=True)), (images,))
        return nn.functional.cross_entropy(out, labels)

    blocks = torch.autograd.functional.hessian(
        lambda *values: loss(values), tuple(p.detach() for p in chosen.values())
    )
    sizes = [p.numel() for p in chosen.values()]
    dense = torch.cat(
        [
            torch.cat([b.reshape(m, n) for b, n in zip(row, sizes, strict=True)], dim=1)
            for row, m in zip(blocks, sizes, strict=True)
        ]
    )
    truth = torch.linalg.eigvalsh(dense.double()).flip(0).numpy()
    np.testing.assert_allclose(found.ritz[0][:2], truth[:2], rtol=1e-3)
    assert abs(found.trace - truth.sum()) < 4 * found.trace_error


def test_tables_of_a_model(subject: Subject):
    before = {k: v.clone() for k, v in subject.method.state_dict().items()}
    rng = torch.get_rng_state()
    tables = Hessian(Hessian.Options(part="last", **SMALL)).measure(subject)
    counts = subject.data.info.class_counts
    assert list(tables["summary"]["class"]) == [0, 5, 9]
    assert list(tables["summary"]["count"]) == [counts[0], counts[5], counts[9]]
    assert len(tables["eigenvalues"]) == 9
    assert len(tables["nodes"]) == 9
    assert np.isfinite(tables["summary"][["loss", "largest", "smallest", "trace"]]).all(axis=None)
    assert (tables["summary"]["largest"] > 0).all()
    used = sum(p.numel() for p in subject.method.backbone.parameters_of("last"))
    assert (tables["summary"]["parameters"] == used).all()
    for key, value in subject.method.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in subject.method.parameters())
    assert torch.equal(rng, torch.get_rng_state())
    figures = Hessian(Hessian.Options()).draw({"a": tables, "b": tables})
    assert set(figures) == {"density", "sharpness"}
    assert len(figures["density"].axes) == 3
    assert len(figures["density"].axes[0].lines) == 3


def test_repeats_bitwise_and_takes_a_part(subject: Subject):
    options = Hessian.Options(classes=(9,), part="head", **SMALL)
    first, second = (Hessian(options).measure(subject) for _ in range(2))
    assert first["nodes"].equals(second["nodes"])
    assert int(first["summary"]["parameters"].iloc[0]) == 16 * 10 + 10


def test_one_line_for_a_wrong_class_or_part(subject: Subject):
    with pytest.raises(UserError, match=r"hessian\.classes: expected numbers in 0\.\.9, found 10"):
        Hessian(Hessian.Options(classes=(10,))).measure(subject)
    with pytest.raises(UserError, match="has no part `layer9`"):
        Hessian(Hessian.Options(part="layer9")).measure(subject)
    broken = copy.deepcopy(subject.method)
    broken.head.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss of class 9 is NaN or infinite"):
        Hessian(Hessian.Options(classes=(9,), **SMALL)).measure(replace(subject, method=broken))
    with pytest.raises(ValueError, match="top must be at most steps"):
        Hessian.Options(top=9, steps=5)

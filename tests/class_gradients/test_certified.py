"""Certified directions against the exact solution, and their gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltbench.class_gradients.certified import certify
from ltbench.class_gradients.engine import Engine, Pass
from ltbench.class_gradients.gram import with_exact_sum, with_products
from ltbench.errors import UserError
from ltbench.models.cifar_resnet import CifarResNet
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.epo import EPO
from ltbench.moo.mgda import MGDA


@pytest.fixture(scope="module")
def state():
    """A small network after some steps on noise with a colour per class."""
    torch.manual_seed(0)
    classes, n = 6, 48
    model = CifarResNet(8, num_classes=classes)
    y = torch.arange(n) % classes
    x = torch.randn(n, 3, 16, 16) + torch.randn(classes, 3)[y, :, None, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.double()

    def forward():
        return F.cross_entropy(model(x.double()), y, reduction="none"), None

    weight = torch.full((n,), 1 / n, dtype=torch.float64)
    engine = Engine(model, model.layer3.parameters())
    with engine.recording():
        loss = forward()
    one = Pass(forward, y, weight, weight, loss=loss)
    assert engine.supports_fast(one)
    products = engine.fast([one], classes, [], additive=True)[1].numpy()
    known = np.r_[:classes, classes + 1]
    gram = with_exact_sum(products[np.ix_(known, known)])
    return engine, one, gram, engine.exact([one], classes).numpy()


SOLVERS = {
    "cagrad": (CAGrad(CAGrad.Config(c=0.5, rescale="sum")), None),
    "cagrad with a preference": (
        CAGrad(CAGrad.Config(c=0.4)),
        np.array([1.0, 2.0, 3.0, 0.5, 1.0, 1.0]),
    ),
    "mgda": (MGDA(MGDA.Config()), None),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_rounds_lead_to_the_exact_direction_and_the_gap_tells_how_far(name, state):
    engine, one, gram, exact = state
    solver, preference = SOLVERS[name]
    solution = solver.solve(exact, preference=preference)
    v = torch.as_tensor(solution.coefficients)
    expected = flat(engine.gradient([one], lambda p: p.mixture(v)))
    found = certify(engine, [one], gram, solver, preference=preference, tolerance=0, rounds=5)
    error = (flat(found.direction) - expected).norm() / expected.norm()
    assert error < 1e-3
    assert len(found.gaps) == 6
    assert found.gaps[-1] < 1e-2 * found.gaps[0] or found.gaps[0] < 1e-9
    early = certify(engine, [one], gram, solver, preference=preference, tolerance=1e9, rounds=5)
    assert len(early.gaps) == 1
    assert early.gaps[0] == pytest.approx(found.gaps[0])


def test_the_gap_is_that_of_the_exact_problem(state):
    from ltbench.moo.cagrad import certified_gap

    engine, one, gram, exact = state
    solver = CAGrad(CAGrad.Config(c=0.5))
    found = certify(engine, [one], gram, solver, tolerance=1e9, rounds=1)
    slope = 0.5 * float(exact.mean()) ** 0.5
    gap = certified_gap(exact, exact.mean(axis=1), slope, found.weights)
    assert found.gaps == pytest.approx([gap], rel=1e-6)


def test_other_solvers_have_no_certificate(state):
    engine, one, gram, _ = state
    l2 = MGDA(MGDA.Config(normalization="l2"))
    for solver in (EPO(EPO.Config()), CAGrad(CAGrad.Config(c=0)), l2):
        with pytest.raises(UserError, match="cagrad with c > 0 or mgda"):
            certify(engine, [one], gram, solver)


def test_agreeing_keeps_known_products_and_stays_semidefinite():
    rng = np.random.default_rng(0)
    true, near = (g @ g.T for g in rng.normal(size=(2, 6, 9)))
    points = list(rng.normal(size=(2, 6)))
    found = with_products(near, points, [true @ s for s in points])
    for s in points:
        np.testing.assert_allclose(found @ s, true @ s)
    assert np.linalg.eigvalsh(found).min() > -1e-9
    everything = list(np.eye(6))
    np.testing.assert_allclose(with_products(near, everything, list(true)), true, atol=1e-9)


def test_exact_sum_is_left_out_where_it_has_nothing_to_do_with_the_rows():
    products = np.diag([1.0, 1.0, 1.0])
    np.testing.assert_array_equal(with_exact_sum(products), np.eye(2))
    np.testing.assert_array_equal(with_exact_sum(np.zeros((3, 3))), np.zeros((2, 2)))


def flat(direction):
    return torch.cat([t.flatten() for t in direction])

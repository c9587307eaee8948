"""Optimality of MGDA, CAGrad and EPO: by certificate, and against a general convex solver."""

from __future__ import annotations

import numpy as np
import pytest

from ltbench import moo
from ltbench.moo import _simplex
from ltbench.moo.epo import EPO, non_uniformity
from tests.moo.moo_inputs import REGULAR, SCALES, STATIONARY

CASES = {**REGULAR, **STATIONARY}


def cagrad_value(grads, b, c, w):
    radius = c * np.linalg.norm(grads.mean(axis=0))
    return float(w @ grads @ (b @ grads) + radius * np.linalg.norm(w @ grads))


def preferences(k):
    head_to_tail = np.log(100.0 ** (np.arange(k) / max(k - 1, 1)) + 0.01)
    return [np.full(k, 1 / k), head_to_tail / head_to_tail.sum()]


@pytest.mark.parametrize("scale", SCALES)
def test_the_gap_is_small_at_any_scale(scale):
    for name, grads in CASES.items():
        gram = (grads @ grads.T) * scale
        assert moo.mgda(gram).gap < 1e-12, name
        for b in preferences(len(grads)):
            for c in (0.05, 0.5, 0.95):
                assert moo.cagrad(gram, c=c, preference=b).gap < 1e-10, (name, c)


def test_random_degenerate_problems():
    rng = np.random.default_rng(0)
    for _ in range(300):
        k, p = int(rng.integers(2, 25)), int(rng.integers(1, 6))
        grads = rng.integers(-1, 2, (k, p)) * 10.0 ** rng.integers(-4, 1, (k, 1))
        gram = grads @ grads.T
        assert moo.mgda(gram).gap < 1e-12
        for b in (None, rng.random(k) ** 3):
            for c in (0.05, 0.95):
                assert moo.cagrad(gram, c=c, preference=b).gap < 1e-8


@pytest.mark.parametrize("name", REGULAR)
def test_the_active_set_alone_finds_the_pivoting_solution(name, monkeypatch):
    grads = REGULAR[name]
    gram = grads @ grads.T
    quick = moo.cagrad(gram), moo.mgda(gram)

    def give_up(problem):
        start = np.zeros(len(problem.a))
        start[0] = 1 / problem.a[0]
        return start, start, False

    monkeypatch.setattr(_simplex, "_pivot", give_up)
    slow = moo.cagrad(gram), moo.mgda(gram)
    for one, other in zip(quick, slow, strict=True):
        assert other.gap < 1e-10
        difference = (one.coefficients - other.coefficients) @ grads
        assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(grads, axis=1).mean()


@pytest.mark.parametrize("name", CASES)
def test_mgda_against_cvxpy(name):
    cp = pytest.importorskip("cvxpy")
    grads = CASES[name] / np.linalg.norm(CASES[name], axis=1).mean()
    w = cp.Variable(len(grads))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(grads.T @ w)), [w >= 0, cp.sum(w) == 1])
    problem.solve(cp.CLARABEL)
    ours = moo.mgda(grads @ grads.T)
    value = float(np.sum((ours.weights @ grads) ** 2))
    assert value <= problem.value + 1e-8
    # the least-norm point is unique
    np.testing.assert_allclose(ours.coefficients @ grads, w.value @ grads, atol=2e-4)


def sizes():
    """Three radii for three inputs, and one for the others: the rest is slow."""
    for number, name in enumerate(name for name in CASES if name != "opposite"):  # has no radius
        for i, c in enumerate((0.1, 0.5, 0.9)):
            often = name in ("three", "low_rank_and_noise", "zero_row") or i == number % 3
            yield pytest.param(name, c, marks=() if often else pytest.mark.slow)


@pytest.mark.parametrize(("name", "c"), list(sizes()))
def test_cagrad_against_cvxpy(name, c):
    cp = pytest.importorskip("cvxpy")
    grads = CASES[name] / np.linalg.norm(CASES[name], axis=1).mean()
    radius = c * np.linalg.norm(grads.mean(axis=0))
    for b in preferences(len(grads)):
        w = cp.Variable(len(grads))
        objective = (grads @ (b @ grads)) @ w + radius * cp.norm(grads.T @ w, 2)
        cp.Problem(cp.Minimize(objective), [w >= 0, cp.sum(w) == 1]).solve(cp.CLARABEL)
        theirs = np.clip(w.value, 0, None)
        expected = cagrad_value(grads, b, c, theirs / theirs.sum())
        ours = moo.cagrad(grads @ grads.T, c=c, preference=b)
        got = cagrad_value(grads, b, c, ours.weights)
        assert got <= expected + 1e-8
        assert expected <= got + 1e-5  # no point is below the certified minimum


@pytest.mark.parametrize("name", ["two", "ten", "low_rank_and_noise", "long_tailed_lengths"])
def test_cagrad_solves_its_primal_problem(name):
    """The direction maximises the worst improvement in the ball around the average gradient."""
    cp = pytest.importorskip("cvxpy")
    grads = REGULAR[name] / np.linalg.norm(REGULAR[name], axis=1).mean()
    average = grads.mean(axis=0)
    direction = moo.cagrad(grads @ grads.T, c=0.5).coefficients @ grads
    assert np.linalg.norm(direction - average) <= 0.5 * np.linalg.norm(average) * (1 + 1e-9)
    d = cp.Variable(grads.shape[1])
    ball = cp.norm(d - average) <= 0.5 * np.linalg.norm(average)
    problem = cp.Problem(cp.Maximize(cp.min(grads @ d)), [ball])
    problem.solve(cp.CLARABEL)
    assert (grads @ direction).min() == pytest.approx(problem.value, abs=1e-6)


@pytest.mark.parametrize("name", ["three", "ten", "agreeing", "low_rank_and_noise"])
@pytest.mark.parametrize("even", [False, True])
def test_epo_against_cvxpy(name, even):
    cp = pytest.importorskip("cvxpy")
    grads = REGULAR[name]
    gram = grads @ grads.T / np.mean(np.sum(grads**2, axis=1))
    k = len(grads)
    r = np.full(k, 1 / k)
    losses = np.ones(k) if even else np.random.default_rng(0).uniform(0.2, 2, k)
    ours = EPO(EPO.Config()).solve(gram, losses=losses)
    _, a = non_uniformity(losses, r)
    s = gram @ a
    alpha = cp.Variable(k)
    limits = [alpha >= 0, cp.sum(alpha) == 1]
    if even:
        gain = gram.sum(axis=0)
        limits += [gram @ alpha >= 0]
    else:
        gain = s
        rhs = np.minimum(s, 0) if (s > 0).any() else np.zeros(k)
        rhs[np.argmax(r * losses)] = 0
        kept = (s <= 0) | (np.arange(k) == np.argmax(r * losses))
        limits += [gram[kept] @ alpha >= rhs[kept]]
    problem = cp.Problem(cp.Maximize(gain @ alpha), limits)
    problem.solve(cp.CLARABEL)
    assert gain @ ours.weights == pytest.approx(problem.value, abs=1e-6)
    assert ours.gap < 1e-9


@pytest.mark.parametrize(
    ("rows", "decades"),
    [
        pytest.param([[-1, 0, -1], [-1, 1, -1], [1, 0, 1], [0, -1, 1]], [-1, 0, -1, -4], id="stay"),
        pytest.param(
            [
                [0, -1, 1, -1],
                [-1, 1, -1, 1],
                [-1, 0, 1, -1],
                [0, 1, -1, -1],
                [0, 1, 1, 1],
                [1, 0, 0, -1],
                [0, 0, 1, 0],
                [-1, 0, 1, -1],
                [0, -1, 1, 1],
            ],
            [0, -4, -1, 0, -4, -3, -1, -1, -3],
            id="leave",
        ),
    ],
)
def test_opposite_rays_hold_up_the_active_set(rows, decades, monkeypatch):
    """Where g_w = 0 the objective has no gradient: stay with a proof, or find the way down."""
    calls = []
    inner = _simplex._leave_kink
    monkeypatch.setattr(_simplex, "_leave_kink", lambda *a: calls.append(1) or inner(*a))
    grads = np.array(rows) * 10.0 ** np.array(decades)[:, None]
    assert moo.cagrad(grads @ grads.T, c=0.95).gap < 1e-10
    assert calls

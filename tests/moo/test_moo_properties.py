"""What must hold for every solver, whatever the gradients."""

from __future__ import annotations

import numpy as np
import pytest

from ltbench import moo
from ltbench.errors import UserError
from ltbench.moo import SOLVERS
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.mgda import MGDA
from ltbench.moo.pcgrad import project, random_orders
from tests.moo.moo_inputs import ONE, REGULAR, SCALES, STATIONARY, ZERO

OPTIONAL = "torchjd"  # needs a package that may be absent; see test_moo_torchjd.py
SOLVER_CASES = {
    **{n: SOLVERS.get(n)(SOLVERS.options(n)()) for n in SOLVERS.names() if n != OPTIONAL},
    "mgda_l2": MGDA(MGDA.Config(normalization="l2")),
    "mgda_loss+": MGDA(MGDA.Config(normalization="loss+")),
    "cagrad_official": CAGrad(CAGrad.Config(rescale="official")),
}
SCALE_FREE = [name for name in SOLVER_CASES if name != "slsqp"]
EVERY = {**REGULAR, **STATIONARY, **ZERO, **ONE}


def losses_of(grads):
    return np.linspace(0.5, 2.0, len(grads))


def direction(solver, grads, **more):
    gram = grads @ grads.T
    return solver.solve(gram, losses=losses_of(grads), **more).coefficients @ grads


@pytest.mark.parametrize("name", SOLVER_CASES)
def test_finite_weights_of_the_right_shape(name):
    for case, grads in EVERY.items():
        solution = SOLVER_CASES[name].solve(grads @ grads.T, losses=losses_of(grads))
        for values in (solution.coefficients, solution.weights):
            assert values.shape == (len(grads),), case
            assert values.dtype == np.float64, case
            assert np.isfinite(values).all(), case
        if name != "pcgrad":
            assert solution.weights.min() >= -1e-12, case
            assert solution.weights.sum() == pytest.approx(1), case


@pytest.mark.parametrize("name", SOLVER_CASES)
def test_zero_gradients_give_a_zero_direction(name):
    for case, grads in ZERO.items():
        assert not direction(SOLVER_CASES[name], grads).any(), case


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_direction_scales_with_the_gradients(name):
    for case in ("ten", "long_tailed_lengths", "zero_row"):
        grads = EVERY[case]
        expected = direction(SOLVER_CASES[name], grads)
        for scale in SCALES:
            got = direction(SOLVER_CASES[name], grads * scale) / scale
            atol = 1e-9 * np.abs(grads).max()
            np.testing.assert_allclose(got, expected, atol=atol, err_msg=f"{case}, {scale}")


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_ends_of_the_float_range(name):
    grads = REGULAR["ten"]
    solver, losses = SOLVER_CASES[name], losses_of(grads)
    expected = solver.solve(grads @ grads.T, losses=losses).coefficients
    for scale in (1e-300, 1e300):
        got = solver.solve(grads @ grads.T * scale, losses=losses).coefficients
        np.testing.assert_allclose(got, expected, atol=1e-9, err_msg=str(scale))


@pytest.mark.parametrize("name", ["mean", "mgda", "mgda_l2", "cagrad"])
def test_the_order_of_the_tasks_does_not_matter(name):
    for case, grads in REGULAR.items():
        if case == "one_parameter":  # l2 makes all gradients equal and the weights arbitrary
            continue
        order = np.random.default_rng(0).permutation(len(grads))
        expected = direction(SOLVER_CASES[name], grads)
        got = direction(SOLVER_CASES[name], grads[order])
        atol = 1e-6 * np.linalg.norm(grads, axis=1).mean()
        np.testing.assert_allclose(got, expected, atol=atol, err_msg=case)


def test_equal_gradients_share_their_weight():
    grads = np.repeat(REGULAR["three"], 2, axis=0)
    for solver in (moo.mgda, moo.cagrad):
        weights = solver(grads @ grads.T).weights
        np.testing.assert_allclose(weights[::2], weights[1::2], atol=1e-3)


@pytest.mark.parametrize("name", ["mgda", "mgda_l2", "mgda_loss+"])
def test_mgda_conflicts_with_no_task(name):
    for case, grads in REGULAR.items():
        gain = grads @ direction(SOLVER_CASES[name], grads)
        lengths = np.linalg.norm(grads, axis=1)
        assert (gain >= -1e-9 * lengths * lengths.mean()).all(), case


def test_mgda_stops_at_a_stationary_point():
    for case, grads in STATIONARY.items():
        lengths = np.linalg.norm(grads, axis=1)
        size = np.linalg.norm(direction(SOLVER_CASES["mgda"], grads))
        assert size < 1e-7 * lengths.mean(), case


def test_cagrad_falls_back_on_the_average():
    for case in ("opposite_and_more", "zero_row_agreeing"):
        grads = STATIONARY[case]
        expected = grads.mean(axis=0)
        got = moo.cagrad(grads @ grads.T, c=0.3).coefficients @ grads
        np.testing.assert_allclose(got, expected, atol=1e-12 * np.abs(grads).max())
    opposite = STATIONARY["opposite"]
    assert not (moo.cagrad(opposite @ opposite.T).coefficients @ opposite).any()


def test_cagrad_without_radius_is_the_average():
    grads = REGULAR["ten"]
    np.testing.assert_allclose(moo.cagrad(grads @ grads.T, c=0).coefficients, 0.1)


def test_rescale_multiplies_the_direction():
    gram = REGULAR["ten"] @ REGULAR["ten"].T
    plain = moo.cagrad(gram, c=0.5).coefficients
    np.testing.assert_allclose(moo.cagrad(gram, c=0.5, rescale="sum").coefficients, 10 * plain)
    np.testing.assert_allclose(moo.cagrad(gram, c=0.5, rescale="official").coefficients, 8 * plain)


def test_preference_moves_the_weights_and_not_the_average():
    grads = REGULAR["three"]
    gram, b = grads @ grads.T, [5.0, 1.0, 0.0]
    solution = moo.cagrad(gram, c=0.5, preference=b)
    assert not np.allclose(solution.weights, moo.cagrad(gram, c=0.5).weights, atol=1e-3)
    rest = solution.coefficients @ grads - grads.mean(axis=0)
    assert np.linalg.norm(rest) == pytest.approx(0.5 * np.linalg.norm(grads.mean(axis=0)))


def test_mgda_normalisations_solve_for_normalised_gradients():
    grads, losses = REGULAR["three"], np.array([0.5, 1.0, 4.0])
    lengths = np.linalg.norm(grads, axis=1)
    for name, divisor in (("l2", lengths), ("loss", losses), ("loss+", losses * lengths)):
        found = moo.mgda(grads @ grads.T, normalization=name, losses=losses)
        unit = grads / divisor[:, None]
        expected = moo.mgda(unit @ unit.T).weights
        np.testing.assert_allclose(found.weights, expected, atol=1e-9)
        np.testing.assert_allclose(
            found.coefficients, (expected / divisor) / (expected / divisor).sum(), atol=1e-9
        )


def test_two_task_closed_form():
    for seed in range(20):
        grads = np.random.default_rng(seed).standard_normal((2, 3))
        g = grads @ grads.T
        first = np.clip((g[1, 1] - g[0, 1]) / (g[0, 0] + g[1, 1] - 2 * g[0, 1]), 0, 1)
        np.testing.assert_allclose(moo.mgda(g).weights, [first, 1 - first], atol=1e-10)


def test_a_matrix_that_is_not_positive_is_survived():
    noise = np.random.default_rng(0).standard_normal((20, 20))
    for gram in (noise + noise.T, [[1.0, 2.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 3.0]]):
        for name in SCALE_FREE:
            solution = SOLVER_CASES[name].solve(gram, losses=np.ones(len(gram)))
            assert np.isfinite(solution.coefficients).all()


def test_only_the_symmetric_part_counts():
    gram = REGULAR["three"] @ REGULAR["three"].T
    skew = np.array([[0, 1, -1], [-1, 0, 2], [1, -2, 0.0]])
    np.testing.assert_allclose(moo.cagrad(gram + skew).weights, moo.cagrad(gram).weights)


def test_pcgrad_orders():
    orders = random_orders(7, seed=1)
    assert (np.sort(orders, axis=1) == np.arange(7)).all()
    assert len(np.unique(orders, axis=0)) == 7  # each task has its own
    assert (orders == random_orders(7, seed=1)).all()
    assert (orders != random_orders(7, seed=2)).any()


def test_pcgrad_against_plain_loops():
    grads = REGULAR["ten"]
    orders = random_orders(10, seed=0)
    expected = grads.copy()
    for i, order in enumerate(orders):
        for j in order:
            overlap = expected[i] @ grads[j]
            if j != i and overlap < 0:
                expected[i] -= overlap / (grads[j] @ grads[j]) * grads[j]
    np.testing.assert_allclose(project(grads @ grads.T, orders) @ grads, expected, atol=1e-10)
    mean = moo.pcgrad(grads @ grads.T, seed=0).coefficients @ grads
    np.testing.assert_allclose(mean, expected.mean(axis=0), atol=1e-10)


def test_epo_edge_cases():
    gram = REGULAR["three"] @ REGULAR["three"].T
    preference = [0.2, 0.3, 0.5]
    assert np.isfinite(moo.epo(gram, [0.0, 1.0, 2.0]).weights).all()  # a loss of exactly 0
    all_zero = moo.epo(gram, [0.0, 0.0, 0.0], preference)
    np.testing.assert_allclose(all_zero.weights, preference)
    no_gradient = moo.epo(np.zeros((3, 3)), [1.0, 2.0, 3.0], preference)
    np.testing.assert_allclose(no_gradient.weights, preference)
    np.testing.assert_allclose(moo.epo([[4.0]], [1.0]).weights, [1.0])


def test_similarity_counts():
    grads = np.array([[10.0, 0], [-1, 1], [-1, -1], [0, 0]])
    found = moo.similarity(grads @ grads.T)
    assert found.conflicts == 2
    assert found.pairs.tolist() == [[0, 1], [0, 2]]
    assert found.dominated == 2  # both short ones, each under the one long gradient
    assert not found.cosine[3].any()
    assert np.isfinite(moo.similarity(np.zeros((3, 3))).cosine_with_mean).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moo.cagrad(np.ones((2, 3))), "square matrix"),
        (lambda: moo.mgda([[1.0, np.nan], [np.nan, 1.0]]), "must be finite"),
        (lambda: moo.cagrad(np.eye(2), preference=[1, 1, 1]), "one entry per objective"),
        (lambda: moo.cagrad(np.eye(2), preference=[1, -1]), "non-negative"),
        (lambda: moo.cagrad(np.eye(2), preference=[0, 0]), "at least one positive"),
        (lambda: moo.epo(np.eye(2), [1, -1]), "non-negative losses"),
        (lambda: moo.mgda(np.eye(2), normalization="loss"), "pass `losses`"),
        (lambda: moo.cagrad(np.eye(2), c=1.5), "`c`"),
        (lambda: moo.mgda(np.eye(2), normalization="l3"), "`normalization`"),
    ],
)
def test_mistakes_are_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SOLVERS.names())
def test_every_registered_solver_exists_and_is_documented(name):
    solver = SOLVERS.get(name)
    assert SOLVERS.summary(name).endswith(".")
    for section in ("Reference:", "Departures:"):
        assert section in solver.__doc__

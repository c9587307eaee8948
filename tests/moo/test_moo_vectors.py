from __future__ import annotations

import numpy as np
import pytest

from ltbench import moo
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.epo import EPO, non_uniformity
from ltbench.moo.mgda import MGDA
from ltbench.moo.pcgrad import project
from ltbench.moo.slsqp import SLSQP


def grads_of(v):
    return np.array(v["inputs"]["grads"])


@pytest.mark.parametrize(
    "name",
    [
        "mgda_two_tasks",
        "mgda_three_tasks",
        "mgda_dominated",
        "mgda_with_zero_gradient",
        "mgda_single_task",
    ],
)
def test_mgda(vector, name):
    v = vector(name)
    grads = grads_of(v)
    solution = MGDA(MGDA.Config()).solve(grads @ grads.T)
    np.testing.assert_allclose(solution.weights, v["expected"]["w"], atol=v["tolerance"])
    direction = v["expected"].get("direction")
    if direction is not None:
        got = solution.coefficients @ grads
        np.testing.assert_allclose(got, direction, atol=v["tolerance"])


@pytest.mark.parametrize(
    ("name", "c"), [("cagrad_standard_c0.5", 0.5), ("cagrad_standard_c0.2", 0.2)]
)
def test_cagrad_standard_divides_by_one_plus_c_squared(vector, name, c):
    v = vector(name)
    grads = grads_of(v)
    solution = moo.cagrad(grads @ grads.T, c=c, rescale="official")
    np.testing.assert_allclose(solution.weights, v["expected"]["w"], atol=v["tolerance"])
    direction = solution.coefficients @ grads / len(grads)
    np.testing.assert_allclose(direction, v["expected"]["direction"], atol=v["tolerance"])


def test_cagrad_paper_update(vector):
    v = vector("cagrad_paper_update")
    grads = grads_of(v)
    solution = moo.cagrad(grads @ grads.T, c=0.5)
    np.testing.assert_allclose(solution.weights, v["expected"]["w"], atol=v["tolerance"])
    direction = solution.coefficients @ grads
    np.testing.assert_allclose(direction, v["expected"]["direction"], atol=v["tolerance"])


@pytest.mark.parametrize("solver", [CAGrad, SLSQP])
def test_cagrad_plot_official(vector, solver):
    v = vector("cagrad_plot_official")
    grads = grads_of(v)
    config = solver.Config(c=0.5, rescale="official")
    solution = solver(config).solve(grads @ grads.T, preference=v["inputs"]["preference"])
    np.testing.assert_allclose(solution.weights, v["expected"]["w"], atol=v["tolerance"])
    direction = solution.coefficients @ grads
    np.testing.assert_allclose(direction, v["expected"]["direction"], atol=v["tolerance"])


def test_cagrad_small_gradients(vector):
    v = vector("cagrad_small_gradients")
    grads, preference = grads_of(v), v["inputs"]["preference"]
    solution = moo.cagrad(grads @ grads.T, c=0.5, preference=preference)
    np.testing.assert_allclose(solution.weights, v["expected"]["w"], atol=v["tolerance"])
    # the released call does not leave its start point here, and its certificate says so
    released = SLSQP(SLSQP.Config(c=0.5)).solve(grads @ grads.T, preference=preference)
    np.testing.assert_allclose(released.weights, preference, atol=1e-6)
    assert released.gap > 0.01


def test_cagrad_single_class(vector):
    v = vector("cagrad_single_class")
    grads = grads_of(v)
    for rescale, name in (("none", "direction_paper"), ("official", "direction_rescaled")):
        solution = moo.cagrad(grads @ grads.T, c=0.5, rescale=rescale)
        np.testing.assert_allclose(solution.weights, v["expected"]["w"])
        direction = solution.coefficients @ grads
        np.testing.assert_allclose(direction, v["expected"][name], atol=v["tolerance"])


def test_cagrad_all_zero(vector):
    v = vector("cagrad_all_zero")
    grads = grads_of(v)
    solution = moo.cagrad(grads @ grads.T, c=0.5)
    np.testing.assert_array_equal(solution.coefficients @ grads, v["expected"]["direction"])


def test_pcgrad_fixed_order(vector):
    v = vector("pcgrad_fixed_order")
    grads = grads_of(v)
    projected = project(grads @ grads.T, v["inputs"]["order"]) @ grads
    np.testing.assert_allclose(projected, v["expected"]["projected"], atol=v["tolerance"])
    direction = projected.mean(axis=0)
    np.testing.assert_allclose(direction, v["expected"]["direction"], atol=v["tolerance"])


def test_pcgrad_no_conflict(vector):
    v = vector("pcgrad_no_conflict")
    grads = grads_of(v)
    direction = moo.pcgrad(grads @ grads.T, seed=3).coefficients @ grads
    np.testing.assert_allclose(direction, v["expected"], atol=v["tolerance"])


@pytest.mark.parametrize("name", ["epo_balance", "epo_preference", "epo_descent"])
def test_epo(vector, name):
    v = vector(name)
    gram, losses, preference = (np.array(v["inputs"][k]) for k in ("gram", "losses", "preference"))
    mu, adjust = non_uniformity(losses, preference)
    assert mu == pytest.approx(v["expected"]["mu"], abs=v["tolerance"])
    assert (mu > v["params"]["eps"]) == (v["expected"]["kind"] == "bal")
    np.testing.assert_allclose(adjust, v["expected"]["a"], atol=v["tolerance"])
    np.testing.assert_allclose(gram @ adjust, v["expected"]["Ca"], atol=v["tolerance"])
    config = EPO.Config(eps=v["params"]["eps"], rescale="sum")
    solution = EPO(config).solve(gram, losses=losses, preference=preference)
    np.testing.assert_allclose(solution.weights, v["expected"]["alpha"], atol=v["tolerance"])
    np.testing.assert_allclose(solution.coefficients, 3 * solution.weights)
    assert solution.gap < 1e-9


def test_gradient_similarity(vector):
    v = vector("gradient_similarity")
    grads = grads_of(v)
    found = moo.similarity(grads @ grads.T)
    np.testing.assert_allclose(found.cosine, v["expected"]["cosine"], atol=v["tolerance"])
    assert found.pairs.tolist() == v["expected"]["conflicts"]
    assert found.conflicts == 1
    expected = v["expected"]["cos_with_mean"]
    np.testing.assert_allclose(found.cosine_with_mean, expected, atol=v["tolerance"])
    assert found.dominated == 1  # class 1 is against the mean; class 0 alone is longer

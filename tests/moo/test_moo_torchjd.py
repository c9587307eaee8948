from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch

from ltbench import moo
from ltbench.errors import UserError
from ltbench.moo.pcgrad import project
from ltbench.moo.torchjd import TorchJD
from tests.moo.moo_inputs import REGULAR, ZERO


@pytest.fixture
def aggregation():
    pytest.importorskip("torchjd")
    import torchjd.aggregation

    return torchjd.aggregation


def gram_of(name):
    grads = REGULAR[name]
    gram = grads @ grads.T
    return gram / gram.diagonal().mean(), grads / np.sqrt(gram.diagonal().mean())


@pytest.mark.parametrize("name", ["two", "three", "ten", "agreeing"])
def test_mgda_agrees(aggregation, name):
    gram, grads = gram_of(name)
    theirs = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=5000)(torch.from_numpy(gram)).numpy()
    np.testing.assert_allclose(moo.mgda(gram).coefficients @ grads, theirs @ grads, atol=2e-3)


@pytest.mark.parametrize("c", [0.2, 0.5])
@pytest.mark.parametrize("name", ["two", "three", "ten", "agreeing", "low_rank_and_noise"])
def test_cagrad_agrees(aggregation, name, c):
    pytest.importorskip("cvxpy")
    gram, grads = gram_of(name)
    theirs = aggregation.CAGradWeighting(c=c, norm_eps=1e-12)(torch.from_numpy(gram)).numpy()
    ours = moo.cagrad(gram, c=c).coefficients
    np.testing.assert_allclose(ours @ grads, theirs @ grads, atol=1e-4)


@pytest.mark.parametrize("name", ["two", "three", "ten", "long_tailed_lengths"])
def test_pcgrad_agrees_on_the_same_orders(aggregation, name):
    gram, grads = gram_of(name)
    torch.manual_seed(5)
    orders = np.stack([torch.randperm(len(grads)).numpy() for _ in grads])
    torch.manual_seed(5)
    theirs = aggregation.PCGradWeighting()(torch.from_numpy(gram)).numpy()
    ours = project(gram, orders).sum(axis=0)
    np.testing.assert_allclose(ours @ grads, theirs @ grads, atol=1e-9)


@pytest.mark.parametrize("name", ["alignedmtl", "aligned_mtl", "AlignedMTL", "AlignedMTLWeighting"])
def test_a_weighting_by_name(aggregation, name):
    gram, _ = gram_of("three")
    expected = aggregation.AlignedMTLWeighting()(torch.from_numpy(gram)).numpy()
    found = TorchJD(TorchJD.Config(weighting=name, rescale="sum")).solve(gram * 7)
    np.testing.assert_allclose(found.weights, expected, atol=1e-9)
    np.testing.assert_allclose(found.coefficients, 3 * found.weights)
    assert np.isnan(found.gap)


def test_upgrad_conflicts_with_no_task(aggregation):
    pytest.importorskip("quadprog")
    gram, _ = gram_of("ten")
    found = TorchJD(TorchJD.Config()).solve(gram)
    assert (gram @ found.coefficients).min() > -1e-3


def test_options_reach_the_weighting(aggregation):
    pytest.importorskip("cvxpy")
    gram, _ = gram_of("ten")
    cagrad = TorchJD(TorchJD.Config(weighting="ca_grad", options={"c": 0.5, "norm_eps": 1e-12}))
    np.testing.assert_allclose(
        cagrad.solve(gram).coefficients, moo.cagrad(gram, c=0.5).coefficients, atol=1e-3
    )


def test_the_preference_reaches_the_weighting(aggregation):
    gram, _ = gram_of("ten")
    solver = TorchJD(TorchJD.Config(weighting="aligned_mtl"))
    plain = solver.solve(gram).weights
    assert not np.allclose(plain, solver.solve(gram, preference=np.arange(1.0, 11.0)).weights)
    np.testing.assert_array_equal(solver.solve(gram).weights, plain)


def test_the_seed_reaches_the_weighting_and_nothing_else(aggregation):
    gram, _ = gram_of("ten")
    solver = TorchJD(TorchJD.Config(weighting="pcgrad"))
    before = torch.random.get_rng_state()
    first = solver.solve(gram, seed=1).weights
    np.testing.assert_array_equal(first, solver.solve(gram, seed=1).weights)
    assert not np.array_equal(first, solver.solve(gram, seed=2).weights)
    assert torch.equal(before, torch.random.get_rng_state())


def test_zero_gradients(aggregation):
    grads = ZERO["zero_many"]
    found = TorchJD(TorchJD.Config(weighting="mgda")).solve(grads @ grads.T)
    assert np.isfinite(found.coefficients).all()


def test_mistakes(aggregation):
    with pytest.raises(UserError, match=r"did you mean `upgrad`.*known: .*mgda"):
        TorchJD(TorchJD.Config(weighting="upgrd"))
    with pytest.raises(UserError, match=r"FairGradWeighting` (takes \(alpha|needs more packages)"):
        TorchJD(TorchJD.Config(weighting="fairgrad"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r"pip install 'ltbench\[torchjd\]'"):
        TorchJD(TorchJD.Config())


def test_the_package_example_runs_and_needs_no_torch():
    assert doctest.testmod(moo).failed == 0
    assert doctest.testmod(moo).attempted >= 5
    code = "import sys, ltbench.moo; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

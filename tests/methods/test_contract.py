"""Every method under every update: one contract for all."""

from __future__ import annotations

import copy

import pytest
import torch
import toys
from toy_stages import KINDS, make_update, ready

from ltbench.config import validation
from ltbench.methods.base import Batch
from ltbench.updates import UPDATES
from ltbench.updates.base import weighted_sum

# With every method; the other updates with some.
ALWAYS = ("plain", "sam", "plot-cagrad")
SOME = ("ce", "paco", "balpoe")  # with every update; the rest of the matrix is slow


def pairs():
    for name in toys.STAGE1 + toys.STAGE2:
        for key in KINDS:
            often = key in ALWAYS or name in SOME
            marks = () if often else pytest.mark.slow
            yield pytest.param(name, key, marks=marks, id=f"{name}-{key}")


@pytest.mark.parametrize(("name", "key"), list(pairs()))
def test_steps_are_finite_reduce_the_loss_and_move_only_what_is_trained(name, key):
    method, run = ready(name)
    update = make_update(key, method)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    batch = toys.batch()
    second = toys.at(epoch=1)  # in BBN's first epoch one branch has no weight yet
    first = method.prepare(toys.dressed(batch, method), second)
    with torch.no_grad():
        start = method.loss(first, second)
    for step in range(12):
        log = toys.step(update, run, [batch], toys.at(step, epoch=1))
        assert torch.isfinite(log["loss"])
    for n, p in method.named_parameters():
        assert torch.isfinite(p).all()
        if n.partition(".")[0] == toys.ALONE.get(name):
            continue
        moved = not torch.equal(p, before[n])
        assert moved == p.requires_grad, f"{n} trained: {p.requires_grad}, moved: {moved}"
    with torch.no_grad():
        end = method.loss(first, second)
    if KINDS[key][1].get("solver", {}) not in ("epo", {"name": "mgda"}):
        assert weighted_sum(end)[0] < weighted_sum(start)[0]  # those two may trade the mean away


@pytest.mark.parametrize("name", toys.STAGE1 + toys.STAGE2)
def test_the_first_labels_alone_are_enough(name):
    """The released PLOT drops the partners' labels in its second pass."""
    method, _ = ready(name)
    batch = method.prepare(toys.dressed(toys.batch(), method), toys.at(epoch=1))
    with torch.no_grad():
        out = method.loss(batch.unmixed(), toys.at(epoch=1))
    assert out.rows.isfinite().all()


@pytest.mark.parametrize("name", toys.STAGE1 + toys.STAGE2 + toys.POSTHOC)
def test_export_predicts_the_same_and_state_round_trips(name):
    method = toys.method(name).eval()
    x = toys.batch().views[0]
    with torch.no_grad():
        expected = method.predict(x)
        assert torch.equal(method.export().eval()(x), expected)
        other = toys.method(name, seed=5).eval()
        assert not torch.equal(other.predict(x), expected)
        other.load_state_dict(copy.deepcopy(method.state_dict()))
        assert torch.equal(other.predict(x), expected)


@pytest.mark.parametrize(
    "key", ["plain", "sam", "focal-sam", "imb-sam", "plot-cagrad", "plot-official"]
)
@pytest.mark.parametrize("name", ["ce", "mixup", "ldam_drw"])
def test_second_pass_leaves_statistics_and_weights_as_they_should_be(name, key):
    method, run = ready(name)
    update = make_update(key, method)
    batch = method.prepare(toys.batch(), toys.at())
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0  # the step itself does nothing: what is left is the update's own mess
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    update.step(run, [batch], toys.at())
    for n, p in method.named_parameters():
        assert torch.equal(p, before[n]), n
    tracked = [int(b) for n, b in method.named_buffers() if n.endswith("num_batches_tracked")]
    assert tracked == ([1, 1, 2] if key == "plot-official" else [1, 1, 1])


@pytest.mark.parametrize("name", toys.STAGE1)
def test_shares_of_the_batch_as_weights_give_the_plain_step(name):
    """PLOT with the mean of class gradients, times their number, is ordinary training."""
    results = []
    for key in ("plain", "mean"):
        method, run = ready(name)
        batch = method.prepare(toys.dressed(toys.batch(), method), toys.at())
        if key == "plain":
            update = make_update("plain", method)
        else:
            mean = {"name": "cagrad", "c": 0.0, "rescale": "sum"}
            options = {"solver": mean, "rho": 0.0, "collapse_weight": 0.0}
            if not any(p.requires_grad for p in method.backbone.parameters()):
                options["part"] = "head"
            update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", options))
        update.step(run, [batch], toys.at())
        results.append([p.detach().clone() for p in method.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "fast", "certified"])
@pytest.mark.parametrize("part", ["last", "layer1", "head", "whole"])
def test_starting_from_the_features_changes_nothing(part, mode):
    """The climb leaves what comes before the part alone, so its second pass is the first."""
    results = []
    for kept in (False, True):
        method, run = ready("ce")
        options = {"part": part, "from_features": kept, "class_gradients": mode, "rho": 0.01}
        update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", options))
        for step in range(3):
            update.step(run, [toys.batch()], toys.at(step))
        results.append([p.detach().clone() for p in [*method.parameters(), *method.buffers()]])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_layers_that_draw_random_numbers_draw_the_same_in_each_pass():
    """Several micro-batches run forward more than once; dropout must not change in between."""
    results = []
    for mode in ("exact", "fast"):
        method, run = ready("ce", norm=False)
        method.backbone.net.layer2 = torch.nn.Sequential(
            torch.nn.Dropout(0.5), method.backbone.net.layer2
        )
        options = {"part": "head", "class_gradients": mode, "rho": 0.0}
        update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", options))
        x, y = toys.images(24)
        micro = [Batch((a,), b, b) for a, b in zip(x.chunk(2), y.chunk(2), strict=True)]
        torch.manual_seed(3)
        update.step(run, micro, toys.at())
        results.append(method.head.weight.detach().clone())
    torch.testing.assert_close(*results)


def test_one_class_in_the_batch_is_a_scaled_plain_step():
    _, run = ready("ce")
    run.optimizer.param_groups[0]["lr"] = 0.0
    x, _ = toys.images(8)
    batch = Batch((x,), torch.zeros(8, dtype=torch.long), torch.arange(8))
    options = {"rho": 0.0, "collapse_weight": 0.0, "solver": {"name": "cagrad", "c": 0.5}}
    update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", options))
    update.step(run, [batch], toys.at())
    got = [p.grad.clone() for p in run.part("last")]
    run.zero_grad()
    run.backward([batch], toys.at())
    for a, p in zip(got, run.part("last"), strict=True):
        torch.testing.assert_close(a, 1.5 * p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("key", KINDS)
@pytest.mark.parametrize("name", ["ce", "ldam_drw", "balanced_softmax"])
def test_accumulation_equals_one_batch(name, key):
    """Two micro-batches give the step of the whole batch, class-weighted losses included."""
    if key == "plot-pcgrad":
        pytest.skip("projections in a random order magnify rounding")
    results = []
    for parts in (1, 2):
        method, run = ready(name, norm=False)
        update = make_update(key, method)
        x, y = toys.images(24)
        index = torch.arange(24)
        micro = [
            Batch((a,), b, c)
            for a, b, c in zip(x.chunk(parts), y.chunk(parts), index.chunk(parts), strict=True)
        ]
        update.step(run, micro, toys.at())
        results.append([p.detach().clone() for p in method.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)

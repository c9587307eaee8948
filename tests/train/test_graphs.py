"""Captured steps are the eager ones bit for bit, and what would not be is not captured."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import toys
from emulated_graphs import EmulatedGraphs
from torch import nn
from torch.nn import functional as F
from toy_stages import make_update, ready

from ltbench import get_recipe, run
from ltbench.class_gradients import Engine
from ltbench.methods.base import Method, Rows
from ltbench.seeding import derive
from ltbench.train import graphs as module
from ltbench.train import stage
from ltbench.train.graphs import CapturedPhases, uncaptured
from ltbench.updates import plot
from ltbench.updates.base import Update

SIZES = (24, 24, 24, 24, 14)  # images of the steps of an epoch; the last batch is short
COUPLED = "PLOT takes exact class gradients (rows of the loss depend on each other's samples"
OWN_ROWS = "the host reads the result of _local_scalar_dense"  # on a CPU: of which class rows are
EAGER = {  # why a method's steps are not captured, by kind of update
    "rsg": {"": "the host reads the result of nonzero"},
    "gpaco": {"": "the loss changes `_keys` of the method"},
    "paco": {"plot": COUPLED},
    "bcl": {"plot": COUPLED},
    "bbn": {"plot": OWN_ROWS},
    "glmc": {"plot": OWN_ROWS},
    "nclpp": {"plot": OWN_ROWS},
    "disalign": {"plot": "PLOT takes exact class gradients (no rule for head (CalibratedHead))"},
}
METHODS = [*toys.STAGE1, *toys.STAGE2]
OFTEN = {
    "plain": ("ce", "mixup", "ldam_drw", "proco", "paco", "cmo", "m2m", "gpaco"),
    "sam": ("mixup", "proco", "rsg"),
    "imb-sam": ("glmc",),
    "focal-sam": ("mixup",),
    "plot-cagrad": ("mixup", "ldam_drw", "bcl", "h2t"),
    "plot-pcgrad": ("ce",),
    "plot-sampled": ("ce",),
}
CASES = [
    pytest.param(name, key, marks=() if name in OFTEN[key] else pytest.mark.slow)
    for key in OFTEN
    for name in METHODS
]


@pytest.fixture(autouse=True)
def _as_on_an_accelerator(monkeypatch):
    """Shapes do not depend on the classes of a batch, and one-hot labels are not checked."""
    monkeypatch.setattr(plot, "_on_accelerator", lambda counts: True)
    monkeypatch.setattr(F, "one_hot", lambda y, size: (y[..., None] == torch.arange(size)).long())


def trained(method, context, update, graphs=None, epochs=2, sizes=SIZES):
    """Train, and return what every step logged."""
    phases = None if graphs is None else CapturedPhases(method, graphs)
    context.phases = phases or context.phases
    logs = []
    for epoch in range(epochs):
        for step, size in enumerate(sizes):
            at = toys.at(step, epoch)
            if step == 0:
                method.on_epoch(at)
            torch.manual_seed(derive(0, "step", epoch, step))
            batch = toys.dressed(toys.batch(size, len(sizes) * epoch + step), method)
            micro = [method.prepare(batch, at)]
            with nullcontext(micro) if phases is None else phases.step(micro, at) as taken:
                log = update.step(context, taken, at)
            method.after_step(taken, at)
            logs.append(
                [float(log["loss"]), float(log.get("gap", 0)), list(log.get("weights", ()))]
                + [t.tolist() for r in log["rows"] for t in (r.rows, r.logits) if t is not None]
            )
    return logs


def both(make, key, **options):
    """Train eagerly and in graphs, check that nothing differs, and return the graphs."""
    found = []
    for graphs in (None, EmulatedGraphs()):
        method, context = make()
        logs = trained(method, context, make_update(key, method), graphs, **options)
        moments = [s["momentum_buffer"] for s in context.optimizer.state.values()]
        found.append((logs, [*method.state_dict().values(), *moments]))
    (eager_logs, eager), (logs, tensors) = found
    assert logs == eager_logs
    assert len(tensors) == len(eager)
    assert all(torch.equal(a, b) for a, b in zip(tensors, eager, strict=True))
    return graphs


def reason(name, key):
    """Why steps stay eager, or an empty text."""
    reasons = EAGER.get(name, {})
    return reasons.get("", reasons.get(key.partition("-")[0], ""))


@pytest.mark.parametrize(("name", "key"), CASES)
def test_captured_steps_are_the_eager_ones(name, key, caplog):
    graphs = both(lambda: ready(name), key)
    said = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    expected = reason(name, key)
    if expected:
        assert not graphs.captured
        assert len(said) == 1  # once for both epochs
        assert said[0].startswith(f"run.compile=graphs: steps are run without graphs: {expected}")
        return
    assert not said
    phases = 2 if key.startswith("plot") else 1
    captures = len(graphs.captured) // phases
    assert captures in (1, 2)  # in each epoch, where the method depends on it
    assert graphs.eager_phases == captures * phases
    assert graphs.times_over == captures - 1
    full = 2 * (len(SIZES) - 1)
    assert graphs.replays == phases * (full - 2 * captures)


@pytest.mark.parametrize("key", ["plain", "plot-cagrad"])
def test_a_loss_that_depends_on_the_epoch_is_captured_anew(key):
    for name, captures in (("ce", 1), ("ldam_drw", 2)):
        graphs = both(lambda name=name: ready(name), key)
        assert len(graphs.captured) == captures * (2 if key == "plot-cagrad" else 1)


@pytest.mark.parametrize("key", ["plain", "sam", "plot-cagrad", "plot-pcgrad"])
def test_dropout_draws_the_numbers_of_the_step(key):
    def make():
        method, context = ready("ce")
        method.backbone.net.layer1.append(nn.Dropout(0.3))
        return method, context

    assert both(make, key).captured


def test_layers_taken_together_and_a_climb_that_is_kept(monkeypatch):
    """What class gradients do on a GPU only."""
    made = Engine.__init__

    def grouped(engine, *args, **options):
        made(engine, *args, **options)
        engine.grouped = True

    monkeypatch.setattr(Engine, "__init__", grouped)
    options = {"part": "whole", "climb_kept": 0.5, "rho": 0.1}
    monkeypatch.setitem(make_update.__globals__["KINDS"], "plot-kept", ("plot", options))
    assert both(lambda: ready("ce"), "plot-kept").captured


def test_other_steps_follow_those_of_plot_and_of_another_radius(monkeypatch):
    kinds = make_update.__globals__["KINDS"]
    monkeypatch.setitem(kinds, "plot-then", ("plot", {"epochs": 1}))
    graphs = both(lambda: ready("ce"), "plot-then", epochs=3)
    assert len(graphs.captured) == 3  # two graphs of PLOT, and one of the plain steps after it
    monkeypatch.setitem(kinds, "sam-then", ("sam", {"rho": 0.05, "rho_from": {1: 0.2}}))
    assert len(both(lambda: ready("ce"), "sam-then", epochs=3).captured) == 2


@pytest.mark.parametrize("key", ["plot-exact", "plot-certified", "plot-official"])
def test_plot_with_other_class_gradients_is_eager(key, caplog):
    graphs = both(lambda: ready("ce"), key)
    assert not graphs.captured
    (said,) = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    assert "PLOT reads numbers on the way to" in said


def _by_step(method, batch, at):
    rows = own_loss(method, batch, at)
    return replace(rows, rows=rows.rows * (1 + 0.1 * at.step))


def _by_draw(method, batch, at):
    rows = own_loss(method, batch, at)
    return replace(rows, rows=rows.rows * torch.rand((), generator=at.generator("x")))


def _by_value(method, batch, at):
    rows = own_loss(method, batch, at)
    return replace(rows, rows=rows.rows / float(rows.rows.detach().max()))


def _by_count(method, batch, at):
    method.calls = getattr(method, "calls", 0) + 1
    return own_loss(method, batch, at)


def _of_a_mask(method, batch, at):
    rows = own_loss(method, batch, at)
    kept = batch.labels < 3
    return Rows(rows.rows[kept], batch.labels[kept], images=len(batch.labels))


def own_loss(method: Method, batch, at) -> Rows:
    return type(method).loss(method, batch, at)


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (_by_step, "the loss reads the number of the step"),
        (_by_draw, "the loss reads the number of the step"),
        (_by_value, "the host reads the result of _local_scalar_dense"),
        (_by_count, "the loss changes `calls` of the method"),
        (_of_a_mask, "the host reads the result of index"),
    ],
)
def test_what_a_graph_would_get_wrong_runs_eagerly(loss, why, caplog):
    def make():
        method, context = ready("ce")
        method.__dict__["loss"] = lambda batch, at: loss(method, batch, at)
        return method, context

    assert not both(make, "plain").captured
    (said,) = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    assert said.endswith(why)


def test_constants_may_be_made_at_their_first_use(caplog):
    def make():
        method, context = ready("ce")

        def loss(batch, at):
            if not hasattr(method, "known"):
                method.known = float(batch.views[0].new_ones(()))
            return own_loss(method, batch, at)

        method.__dict__["loss"] = loss
        return method, context

    graphs = both(make, "plain")
    assert graphs.captured
    assert graphs.eager_phases == 2
    assert not caplog.records


@pytest.mark.parametrize("late", [False, True])
def test_a_tensor_that_is_replaced_ends_the_graphs(late, caplog):
    """A buffer that steps replace, from the first one or after the capture on."""

    def make():
        method, context = ready("ce")
        method.register_buffer("scale", torch.ones(()))
        method.__dict__["loss"] = lambda batch, at: _scaled(method, batch, at)
        method.__dict__["after_step"] = lambda batches, at: _replaced(method, at, late)
        return method, context

    graphs = both(make, "plain", sizes=(24,) * 6)
    assert bool(graphs.captured) == late
    (said,) = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    assert said.endswith("`scale` of the method is replaced from step to step")


def _scaled(method, batch, at):
    rows = own_loss(method, batch, at)
    return replace(rows, rows=rows.rows * method.scale)


def _replaced(method, at, late):
    if at.step >= (3 if late else 0):
        method.scale = method.scale + 0.1


def test_an_update_without_phases_is_eager(caplog):
    class Own(Update):
        def step(self, context, batches, at):
            context.zero_grad()
            loss, rows = context.backward(batches, at)
            context.optimizer.step()
            return {"loss": loss, "rows": rows}

    method, context = ready("ce")
    graphs = EmulatedGraphs()
    trained(method, context, Own(make_update("plain", method).config), graphs)
    assert (graphs.captured, graphs.eager_phases) == ([], 0)
    assert "the update has no phases" in caplog.text


def test_several_ranks_and_micro_batches_are_eager(caplog):
    assert uncaptured(1, 1) == ""
    assert "2 ranks" in uncaptured(2, 2)
    method, _ = ready("ce")
    phases = CapturedPhases(method, EmulatedGraphs(), uncaptured(1, 3))
    micro = [toys.batch(8), toys.batch(8)]
    with phases.step(micro, toys.at()) as taken:
        assert taken is micro
    assert "a step takes 3 micro-batches" in caplog.text


def test_a_run_with_graphs_ends_with_the_weights_of_one_without(tmp_path, monkeypatch, caplog):
    """Two stages, PLOT with mixup and a plain one, through the trainer."""
    monkeypatch.setattr("ltbench.train.curves._picture", lambda *_: b"")
    monkeypatch.setattr("ltbench.train.run.check_compiler", lambda *_: None)
    made: list[EmulatedGraphs] = []
    monkeypatch.setattr(
        stage, "CudaGraphs", lambda device: made.append(EmulatedGraphs()) or made[-1]
    )
    caplog.set_level(logging.WARNING)
    found = []
    for how in ("none", "graphs"):
        words = [f"run.compile={how}", "run.max_steps=3", f"out={tmp_path / how}"]
        words += ["backbone=resnet20_cifar", "stages.0.update.epochs=1"]
        run(get_recipe("quickstart", *words, "run.device=cpu", "run.threads=1"))
        found.append((tmp_path / how / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert [bool(one.captured) for one in made] == [True] * len(made)
    assert len(made) == 2

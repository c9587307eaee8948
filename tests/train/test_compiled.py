"""Compiled stages compute what the eager ones do, and only where they are to be compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from toy_stages import make_update, ready

from ltbench import get_recipe, run
from ltbench.config import validation
from ltbench.config.recipe import Choice
from ltbench.errors import UserError
from ltbench.train import compiled
from ltbench.train.compiled import CompiledStages, check_compiler, compiled_stages

BREAKS = ("rsg",)  # sizes that the data decide
OFTEN = ("ce", "mixup", "lade", "bcl")
LOSSES = [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
    for name in toys.STAGE1 + toys.STAGE2
    if name not in BREAKS
]


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch.compiler.reset()


def update(name, **options):
    return Choice(name, validation.build_options("UPDATES", name, options))


@pytest.mark.parametrize(
    ("choice", "stages"),
    [
        (update("plain"), ["stem", "layer1", "layer2"]),
        (update("sam"), ["stem", "layer1", "layer2"]),
        (update("focal_sam"), ["stem", "layer1", "layer2"]),
        (update("imb_sam"), ["stem", "layer1", "layer2"]),
        (update("plot"), ["stem", "layer1"]),
        (update("plot", part="layer1"), ["stem"]),
        (update("plot", part=["head", "layer1"]), ["stem"]),
        (update("plot", part="head"), ["stem", "layer1", "layer2"]),
        (update("plot", part="whole"), []),
        (update("plot", part=["backbone", "head"]), []),
        (Choice("another", validation.build_options("UPDATES", "plain", {})), []),
    ],
)
def test_plot_keeps_its_part_as_it_is(choice, stages):
    assert compiled_stages(toys.method("ce"), choice) == stages


def steps(method, stage_run, key, passes):
    """Weights after two steps, the passes compiled or not, and the second loss."""
    changed = make_update(key, method)
    loss = stage_run.loss

    def within(batch, at):
        with passes.active():
            return loss(batch, at)

    if passes is not None:
        stage_run.loss = within
    for step in range(2):
        log = toys.step(changed, stage_run, [toys.batch()], toys.at(step, epoch=1))
    return [p.detach().clone() for p in method.parameters()], log["loss"]


@pytest.mark.parametrize(
    "key", ["plain", "sam", "focal-sam", "plot-cagrad", "plot-certified", "plot-official"]
)
def test_a_captured_graph_gives_the_same_steps(key):
    """The whole machinery without code generation: two walks, climbs, frozen statistics."""
    results = []
    for wanted in (False, True):
        method, stage_run = ready("mixup")
        choice = update(*(["plot"] if key.startswith("plot") else ["plain"]))
        stages = compiled_stages(method, choice)
        passes = CompiledStages(method, stages, backend="aot_eager") if wanted else None
        assert passes is None or len(passes.calls) == len(stages)
        results.append(steps(method, stage_run, key, passes))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*toys.STAGE1, *toys.STAGE2])
def test_every_method_trains_with_compiled_stages(name):
    results = []
    for wanted in (False, True):
        method, stage_run = ready(name)
        stages = compiled_stages(method, update("plain"))
        passes = CompiledStages(method, stages, backend="aot_eager") if wanted else None
        results.append(steps(method, stage_run, "plain", passes))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_it_is_the_compiled_pass_that_runs_and_hooks_switch_it_off():
    method = toys.method("ce")
    seen = []

    def backend(graph, _inputs):
        return lambda *args: (seen.append(1), graph(*args))[1]

    passes = CompiledStages(method, ["layer1", "layer2"], backend=backend)
    x, names = toys.batch().views[0], list(method.state_dict())
    method.predict(x)
    assert not seen
    with passes.active():
        method.predict(x)
        assert len(seen) == 2
        assert list(method.state_dict()) == names
    method.predict(x)
    assert len(seen) == 2
    found = []
    inside = method.backbone.net.layer1[0]
    handle = inside.register_forward_hook(lambda *args: found.append(args))
    with passes.active():
        method.predict(x)
    assert (len(seen), len(found)) == (3, 1)  # layer2 only
    handle.remove()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_one_graph(name):
    method, _ = ready(name)
    at = toys.at(epoch=1)
    method.on_epoch(at)
    batch = method.prepare(toys.dressed(toys.batch(), method), replace(at, micro=0))
    rows = []
    for call in (
        method.loss,
        torch.compile(method.loss, backend="eager", fullgraph=True, dynamic=False),
    ):
        torch.manual_seed(0)
        rows.append(call(batch, at).rows)
    assert torch.equal(*rows)


def test_without_a_compiler_the_reason_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a compiler \(no-such-compiler\)"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr(compiled, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="needs Triton"):
        check_compiler(torch.device("cuda"))
    with pytest.raises(UserError, match="needs a GPU; the device is cpu"):
        check_compiler(torch.device("cpu"), "graphs")
    check_compiler(torch.device("cuda"), "graphs")  # no code is generated


def test_the_digest_names_it_unless_it_is_off():
    plain = get_recipe("ce_cifar10")
    assert get_recipe("ce_cifar10", "run.compile=none").digest == plain.digest
    for how in ("graphs", "inductor"):
        assert get_recipe("ce_cifar10", f"run.compile={how}").digest != plain.digest


@pytest.mark.slow
def test_inductor_trains_as_eager_does(tmp_path, monkeypatch):
    monkeypatch.setattr("ltbench.train.curves._picture", lambda *_: b"")
    found = []
    for how in ("none", "inductor"):
        words = [f"run.compile={how}", "run.max_steps=2", f"out={tmp_path / how}"]
        made = get_recipe("quickstart", *words, "run.device=cpu", "run.threads=1")
        run(made)
        lines = (tmp_path / how / "curves.csv").read_text().splitlines()
        place = lines[0].split(",").index("loss")
        found.append([float(line.split(",")[place]) for line in lines[1:]])
    assert len(found[0]) == 2  # PLOT with the last stage as it is, then a classifier
    assert found[0] == pytest.approx(found[1], rel=1e-3)  # rounding grows with every step

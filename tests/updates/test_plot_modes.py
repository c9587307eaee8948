"""Fast and certified class gradients inside the PLOT step, against exact ones."""

from __future__ import annotations

import pytest
import torch
import toys
from torch.nn import Conv2d
from toy_stages import ready

from ltbench import UserError, get_recipe
from ltbench.class_gradients import Engine
from ltbench.config import validation
from ltbench.methods.base import Batch
from ltbench.updates import UPDATES, plot

OPTIONS = {
    "paper": {},
    "collapse": {"collapse_weight": 0.5},
    "whole": {"part": "whole"},
    "official": {"mode": "official"},
    "sampled": {"max_classes": 2},
    "class_mean": {"class_gradient": "class_mean", "max_classes": 3},
    "mgda": {"solver": "mgda"},
}


def direction(options, batch=None, steps=3):
    """The gradients that the last of some steps leaves, and its log."""
    method, run = ready("ce")
    update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", options))
    for step in range(steps):
        log = update.step(run, [toys.batch() if batch is None else batch], toys.at(step))
    return torch.cat([p.grad.flatten() for p in method.parameters()]), log


@pytest.mark.parametrize("name", OPTIONS)
def test_modes_agree(name):
    exact, log = direction({**OPTIONS[name], "class_gradients": "exact"}, steps=1)
    for mode, least in (("fast", 0.98), ("certified", 0.9999)):
        options = {**OPTIONS[name], "class_gradients": mode, "rounds": 4, "tolerance": 1e-6}
        found, other = direction(options, steps=1)
        cosine = torch.cosine_similarity(found, exact, dim=0)
        assert cosine > least, mode
        assert other["classes"].tolist() == log["classes"].tolist()
        assert other["weights"].sum() == pytest.approx(1.0)
        assert float(other["loss"]) == pytest.approx(float(log["loss"]))


def test_certified_says_how_good_its_last_direction_is():
    gaps = [
        direction({"class_gradients": "certified", "rounds": n, "tolerance": 0.0})[1]["gap"]
        for n in (1, 3)
    ]
    assert 0 <= gaps[1] < gaps[0]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("limit", [None, 3])
def test_absent_classes_in_the_shapes_change_nothing(limit, known, monkeypatch):
    """What a GPU does, to need no number before the solver; also where layers are not known."""
    if not known:
        monkeypatch.setattr(Engine, "supports_fast", lambda engine, one: False)
    x, y = toys.images(24)
    keep = y != 2
    batch = Batch((x[keep],), y[keep], torch.arange(int(keep.sum())))
    options = {"max_classes": limit, "class_gradients": "fast"}
    expected, log = direction(options, batch)
    monkeypatch.setattr(plot, "_on_accelerator", lambda counts: True)
    found, other = direction(options, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert other["classes"].tolist() == log["classes"].tolist()
    assert 2 not in other["classes"]


def test_no_graph_outlives_a_step():
    """What is recorded for class gradients would otherwise hold the features of a whole pass."""
    import gc

    from torch.multiprocessing.reductions import StorageWeakRef

    method, run = ready("ce")
    update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", {}))
    kept = []
    convolution = next(m for m in method.backbone.net.layer2.modules() if isinstance(m, Conv2d))
    handle = convolution.register_forward_hook(
        lambda module, inputs, output: kept.append(StorageWeakRef(output.untyped_storage()))
    )
    update.step(run, [toys.batch()], toys.at())
    handle.remove()
    gc.collect()
    assert len(kept) == 2
    assert all(features.expired() for features in kept)


def test_a_solver_without_certificate_is_refused_with_the_recipe():
    words = ["stages.0.update.class_gradients=certified", "stages.0.update.solver=pcgrad"]
    with pytest.raises(UserError, match="cagrad with c > 0 or mgda"):
        get_recipe("quickstart", *words)

"""One complete step of PLOT, against the released code and against the paper's equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.methods.base import Batch, Progress
from ltbench.methods.mixup import Mixup
from ltbench.models.backbone import Backbone
from ltbench.updates.base import StepRun
from ltbench.updates.plot import Plot
from ltbench.updates.sam import SAM

AT = Progress(seed=0, stage=0, epoch=0, epochs=1, step=0)


def toy(inputs, counts):
    """front: tanh(A x); layer3: tanh(B f + b); linear classifier, all in double precision."""
    front, layer3 = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    backbone = Backbone.from_stages(
        {"front": nn.Sequential(front, nn.Tanh()), "layer3": nn.Sequential(layer3, nn.Tanh())},
        num_features=2,
    )
    info = DatasetInfo("toy", tuple(counts), tuple("abc"))
    method = Mixup(validation.build_options("METHODS", "mixup", {}), backbone, info).double()
    with torch.no_grad():
        for parameter, name in (
            (front.weight, "front"),
            (layer3.weight, "l3_w"),
            (layer3.bias, "l3_b"),
            (method.head.weight, "cls_w"),
            (method.head.bias, "cls_b"),
        ):
            parameter.copy_(torch.tensor(inputs[name], dtype=torch.float64))
    tensors = {
        "front": front.weight,
        "l3_w": layer3.weight,
        "l3_b": layer3.bias,
        "cls_w": method.head.weight,
        "cls_b": method.head.bias,
    }
    return method, tensors


def one_step(vector, counts, mixup, **options):
    inputs = vector["inputs"]
    method, tensors = toy(inputs, counts)
    x = torch.tensor(inputs["x"], dtype=torch.float64)
    y = torch.tensor(inputs["labels"])
    batch = Batch((x,), y, torch.arange(len(y)))
    if mixup:
        perm, lam = torch.tensor(inputs["perm"]), inputs["lam"]
        mixed = lam * x + (1 - lam) * x[perm]
        batch = Batch((mixed,), y, torch.arange(len(y)), partner=y[perm], lam=lam)
    optimizer = torch.optim.SGD(method.parameters(), lr=vector["params"]["lr"])
    update = Plot(validation.build_options("UPDATES", "plot", options))
    log = update.step(StepRun(method, optimizer), [batch], AT)
    return tensors, log


@pytest.mark.parametrize(
    "name",
    [
        "plot_official_step_mixup0_radius0",
        "plot_official_step_mixup0_radius1",
        "plot_official_step_mixup1_radius0.5",
        "plot_official_step_interior",
    ],
)
def test_official_step_equals_the_released_code(name, vector):
    v = vector(name)
    p = v["params"]
    tensors, _ = one_step(
        v,
        v["inputs"]["counts"],
        p["mixup"],
        mode="official",
        part="layer3",
        rho=p["rho"],
        climb_kept=p["perturb_radius"],
        collapse_weight=p["bal_ratio"],
        preference_div=p["div"],
    )
    for key, value in v["expected"]["params"].items():
        torch.testing.assert_close(
            tensors[key].detach(),
            torch.tensor(value, dtype=torch.float64),
            atol=1e-6,
            rtol=1e-6,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("scale", ["batch_fraction", "class_mean"])
def test_paper_step(scale, vector):
    v = vector(f"plot_paper_step_{scale}")
    p = v["params"]
    tensors, _ = one_step(
        v,
        (10,) * p["K"],
        False,
        mode="paper",
        part="whole",
        rho=p["rho"],
        class_gradient=scale,
        collapse_weight=1.0,
        solver={"name": "cagrad", "c": p["c"], "rescale": "none"},
    )
    for key, value in v["expected"]["params"].items():
        torch.testing.assert_close(
            tensors[key].detach(), torch.tensor(value, dtype=torch.float64), atol=1e-6, rtol=1e-6
        )


class Quadratic(nn.Module):
    """A method whose loss is w'Aw / 2, whatever the batch."""

    def __init__(self, a, w):
        super().__init__()
        self.a, self.w = a, nn.Parameter(w.clone())

    def loss(self, batch, at):
        from ltbench.methods.base import Rows

        value = 0.5 * self.w @ self.a @ self.w
        return Rows(value[None], batch.labels[:1], images=1)


def sam_run(v, steps):
    a = torch.tensor(v["inputs"]["A"], dtype=torch.float64)
    method = Quadratic(a, torch.tensor(v["inputs"]["w0"], dtype=torch.float64))
    p = v["params"]
    optimizer = torch.optim.SGD(
        method.parameters(),
        lr=p.get("lr", 0.1),
        momentum=p.get("momentum", 0.0),
        weight_decay=p.get("weight_decay", 0.0),
    )
    update = SAM(validation.build_options("UPDATES", "sam", {"rho": p["rho"]}))
    run = StepRun(method, optimizer)
    run.part = lambda names: run.parameters
    seen = []
    for _ in range(steps):
        update.step(run, [Batch((), torch.zeros(1, dtype=torch.long), torch.zeros(1))], AT)
        seen.append(method.w.detach().clone())
    return seen


def test_sam_two_steps(vector):
    v = vector("sam_two_steps")
    for ours, expected in zip(sam_run(v, 2), v["expected"], strict=True):
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_sam_zero_gradient(vector):
    v = vector("sam_zero_gradient")
    start = torch.tensor(v["inputs"]["w0"], dtype=torch.float64)
    torch.testing.assert_close(sam_run(v, 1)[0], start)

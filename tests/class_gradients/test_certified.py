"""Certified directions against the exact solution, and their gaps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ltbench.backbones.cifar_resnet import CifarResNet
from ltbench.class_gradients import Engine, Pass
from ltbench.class_gradients.certified import certify
from ltbench.errors import UserError
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.epo import EPO
from ltbench.moo.mgda import MGDA


@pytest.fixture(scope="module")
def state():
    """A small network after some steps on noise with a colour per class."""
    torch.manual_seed(0)
    classes, n = 4, 48
    model = CifarResNet(8, num_classes=classes)
    y = torch.arange(n) % classes
    x = torch.randn(n, 3, 16, 16) + F.one_hot(y, classes)[:, :3, None, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.double()

    def forward() -> torch.Tensor:
        return F.cross_entropy(model(x.double()), y, reduction="none")

    return model, forward, y, classes


SOLVERS = {
    "cagrad": (CAGrad(CAGrad.Config(c=0.5, rescale="sum")), None),
    "cagrad with a preference": (CAGrad(CAGrad.Config(c=0.4)), [1.0, 2.0, 3.0, 0.5]),
    "mgda": (MGDA(MGDA.Config()), None),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_rounds_lead_to_the_exact_direction(name, state):
    model, forward, place, classes = state
    solver, preference = SOLVERS[name]
    part = list(model.layer3.parameters())
    weight = torch.full_like(place, 1.0, dtype=torch.float64) / len(place)
    exact = Engine(model, part, "exact").measure([Pass(forward, place, weight)], classes)
    solution = solver.solve(exact.gram.numpy(), preference=preference)
    expected = flat(exact.combine(torch.as_tensor(solution.coefficients)))
    engine = Engine(model, part)
    with engine.recording():
        rows = forward()
    passes = [Pass(forward, place, weight, rows)]
    found = certify(
        engine,
        passes,
        engine.measure(passes, classes),
        solver,
        preference=preference,
        tolerance=0,
        rounds=6,
    )
    cosine = torch.cosine_similarity(flat(found.direction), expected, dim=0)
    assert cosine >= 0.999
    assert found.gaps[-1] < found.gaps[0] / 3 or found.gaps[0] < 1e-9


def test_other_solvers_have_no_certificate(state):
    model, forward, place, classes = state
    engine = Engine(model, model.layer3.parameters(), "exact")
    passes = [Pass(forward, place, torch.full_like(place, 0.1, dtype=torch.float64))]
    with pytest.raises(UserError, match="cagrad with c > 0 or mgda"):
        certify(engine, passes, engine.measure(passes, classes), EPO(EPO.Config()))


def flat(direction):
    return torch.cat([t.flatten() for t in direction])

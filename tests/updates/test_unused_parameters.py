"""A parameter without gradient keeps none, as in PyTorch: no step, no decay, no momentum."""

from __future__ import annotations

import functools

import pytest
import torch
import toys
from torch import nn

from ltbench.config import validation
from ltbench.config.optim import Optim
from ltbench.distributed import ranks
from ltbench.losses import cross_entropy_rows
from ltbench.methods.base import Batch, Method, Rows
from ltbench.models.backbone import Backbone
from ltbench.train.optim import build_optimizer
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun

KINDS = {
    "plain": ("plain", {}),
    "sam": ("sam", {"rho": 0.05}),
    "sam-part": ("sam", {"rho": 0.05, "part": "last"}),
    "focal-sam": ("focal_sam", {"rho": 0.05}),
    "imb-sam": ("imb_sam", {"rho": 0.05}),
    "plot-fast": ("plot", {"class_gradients": "fast"}),
    "plot-exact": ("plot", {"class_gradients": "exact"}),
    "plot-certified": ("plot", {"class_gradients": "certified", "rounds": 2}),
    "plot-whole": ("plot", {"class_gradients": "fast", "part": "whole"}),
    "plot-sampled": ("plot", {"class_gradients": "certified", "max_classes": 2}),
    "plot-mean": ("plot", {"class_gradients": "certified", "class_gradient": "class_mean"}),
    "plot-official": ("plot", {"mode": "official"}),
    "plot-after": ("plot", {"epochs": 1, "after": "sam"}),
}
CASES = [(key, shared, micro) for key in KINDS for shared in (False, True) for micro in (1, 2)]
OPTIM = Optim(lr=0.05, momentum=0.9, weight_decay=0.1)
IMAGES, FEW, STEPS = 24, 6, 5  # FEW are the images of the first micro-batch of the first rank
FIRST = {"always": 0, "few": 1, "late": 3, "never": STEPS}  # step of the first use


class Several(nn.Module):
    """Layers of which only some are used: ``masks`` says which, and for which images."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: layer() for name in FIRST})
        self.masks: dict[str, torch.Tensor] = {}

    def forward(self, x):
        out = self.layers["always"](x)
        for name, mask in self.masks.items():
            out = out + self.layers[name](x) * mask.view(-1, *[1] * (out.dim() - 1))
        return out


class Toy(Method):
    """Unused layers in the last stage of the backbone, beside it, and in the term of no row."""

    def setup(self, previous) -> None:
        self.side = Several(lambda: nn.Linear(5, 4))
        self.term = Several(lambda: nn.Linear(5, 3))
        self.shared = True

    def loss(self, batch, at) -> Rows:
        masks, time = {}, at.step + 3 * at.epoch
        if time >= FIRST["late"]:
            masks["late"] = torch.ones_like(batch.labels)
        few = batch.index < FEW
        if time >= FIRST["few"] and few.any():
            masks["few"] = few.long()
        for several in (self.backbone.net.end, self.side, self.term):
            several.masks = masks
        features = self.backbone(batch.views[0])
        rows = cross_entropy_rows(self.head(features) + self.side(features), batch.labels)
        shared = self.term(features).pow(2).mean() if self.shared else None
        return Rows(rows, batch.labels, images=len(rows), shared=shared)


def toy(shared: bool) -> Toy:
    torch.manual_seed(0)
    backbone = Backbone.from_stages(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh()),
            "end": Several(lambda: nn.Conv2d(6, 5, 3, 2, 1)),
        },
        num_features=5,
        pool=nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    method = Toy(Method.Config(), backbone, toys.INFO).double()
    method.shared = shared
    return method


def first_use(name: str, shared: bool) -> int:
    """The step in which a parameter is first used."""
    if name.startswith("term") and not shared:
        return STEPS
    kind = next((part for part in name.split(".") if part in FIRST), "always")
    return FIRST[kind]


def micro_batches(micro: int) -> list[Batch]:
    """This rank's share of the images."""
    x, y = toys.images(IMAGES)
    own = torch.tensor_split(torch.arange(IMAGES), ranks.world())[ranks.rank()]
    return [Batch((x[i].double(),), y[i], i) for i in torch.tensor_split(own, micro)]


def train(key: str, shared: bool, micro: int) -> list[dict[str, list[torch.Tensor | None]]]:
    """After each step and for each parameter its value, the gradient it moved by, its momentum."""
    method = toy(shared)
    named = list(method.named_parameters())
    optimizer = build_optimizer(named, OPTIM)
    update = UPDATES.get(KINDS[key][0])(validation.build_options("UPDATES", *KINDS[key]))
    run, seen = StepRun(method, optimizer), []
    for step in range(STEPS):
        epoch = int(key == "plot-after" and step > 2)  # after its window
        update.step(run, micro_batches(micro), toys.at(step - 3 * epoch, epoch))
        row = {}
        for name, p in named:
            state = optimizer.state.get(p, {})
            row[name] = [p.detach(), p.grad, state.get("momentum_buffer")]
        seen.append({n: [None if t is None else t.clone() for t in ts] for n, ts in row.items()})
    if update.config.model_dump().get("class_gradients") in ("fast", "certified"):
        assert update._engine.problem == ""  # so that they were not replaced by exact ones
    return seen


@functools.cache
def in_one_process(key: str, shared: bool, micro: int):
    return train(key, shared, micro)


def check(seen, shared: bool) -> None:
    start = dict(toy(shared).named_parameters())
    for name, initial in start.items():
        alone = nn.Parameter(initial.detach().clone())
        fresh = torch.optim.SGD([alone], OPTIM.lr, OPTIM.momentum, weight_decay=OPTIM.weight_decay)
        for step, row in enumerate(seen):
            value, gradient, momentum = row[name]
            if step < first_use(name, shared):
                assert torch.equal(value, initial), (name, step)
                assert gradient is None, (name, step)
                assert momentum is None, (name, step)
                continue
            assert gradient.any(), (name, step)
            alone.grad = gradient
            fresh.step()
            torch.testing.assert_close(value, alone.detach(), rtol=1e-12, atol=1e-14)
            buffer = fresh.state[alone]["momentum_buffer"]
            torch.testing.assert_close(momentum, buffer, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("key", "shared", "micro"), CASES)
def test_unused_parameters_stay_and_begin_afresh(key, shared, micro):
    """With two micro-batches some parameters are used in the first of them alone."""
    check(in_one_process(key, shared, micro), shared)


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_plain_steps_are_those_of_a_plain_loop(shared, micro):
    method = toy(shared)
    optimizer = torch.optim.SGD(
        method.parameters(), OPTIM.lr, OPTIM.momentum, weight_decay=OPTIM.weight_decay
    )
    for step, row in enumerate(in_one_process("plain", shared, micro)):
        optimizer.zero_grad()
        out = method.loss(micro_batches(1)[0], toys.at(step))
        (out.rows.mean() + (out.shared if shared else 0)).backward()
        optimizer.step()
        for name, p in method.named_parameters():
            torch.testing.assert_close(row[name][0], p.detach(), rtol=1e-10, atol=1e-12)
            assert (row[name][1] is None) == (p.grad is None)


def test_every_update_is_covered():
    assert {name for name, _ in KINDS.values()} >= set(UPDATES.names())


@pytest.mark.parametrize("key", [key for key in KINDS if key != "plain"])
def test_a_part_that_is_not_used_at_all_stays(key):
    """What the update looks at has no gradient: there is nothing to climb along, or to weigh."""

    class Skips(Toy):
        def loss(self, batch, at) -> Rows:
            features = self.backbone.run(batch.views[0], 0, 1).mean(dim=(2, 3))
            rows = cross_entropy_rows(self.early(features), batch.labels)
            return Rows(rows, batch.labels, images=len(rows))

    method = toy(False)
    method.__class__ = Skips
    method.early = nn.Linear(6, 4).double()
    run = StepRun(method, build_optimizer(method.named_parameters(), OPTIM))
    update = UPDATES.get(KINDS[key][0])(validation.build_options("UPDATES", *KINDS[key]))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    for step in range(2):
        update.step(run, micro_batches(1), toys.at(step))
    for name, p in method.named_parameters():
        used = name.startswith(("early", "backbone.net.stem"))
        assert (p in run.optimizer.state) == used, name
        assert torch.equal(p, before[name]) != used, name


def on_two_ranks():
    """By default either a shared term or one micro-batch; the rest is slow."""
    for key, shared, micro in CASES:
        marks = pytest.mark.slow if shared == (micro == 1) else ()
        yield pytest.param(key, shared, micro, marks=marks)


@pytest.mark.parametrize(("key", "shared", "micro"), list(on_two_ranks()))
def test_what_one_rank_uses_moves_on_all(key, shared, micro, two_processes):
    """Some parameters have a gradient on the first rank alone."""
    first, second = two_processes.call(train, key, shared, micro)
    check(first, shared)
    one = in_one_process(key, shared, 1)
    for mine, other, expected in zip(first, second, one, strict=True):
        for name, (value, gradient, _) in mine.items():
            assert torch.equal(value, other[name][0]), name
            torch.testing.assert_close(value, expected[name][0], rtol=1e-7, atol=1e-9)
            assert (gradient is None) == (expected[name][1] is None), name

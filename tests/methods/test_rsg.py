from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import toys
from torch.nn import functional as F

from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.losses.rsg import (
    PairClassifier,
    center_rows,
    head_classes,
    head_tail_pairs,
    same_class_loss,
    variation_rows,
)
from ltbench.methods import METHODS
from ltbench.methods.rsg import entering_channels
from ltbench.models.backbone import Backbone, create_backbone
from ltbench.updates import UPDATES


def build(**options):
    options = validation.build_options("METHODS", "rsg", {"centers": 3, **options})
    torch.manual_seed(1)
    return METHODS.get("rsg")(options, toys.backbone(), toys.INFO, None)


def from_vector(v):
    """A method whose maps have two channels, with the vector's parameters."""
    p, i = v["params"], v["inputs"]
    info = DatasetInfo("toy", (9, 5, 3), ("a", "b", "c"))
    net = Backbone.from_stages(
        {"stem": torch.nn.Conv2d(3, 2, 1), "end": torch.nn.Conv2d(2, 4, 1)},
        num_features=4,
        pool=torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
    )
    options = {"centers": 2, "generate_from": p["epoch_thresh"] + 1}
    options = validation.build_options("METHODS", "rsg", options)
    method = METHODS.get("rsg")(options, net, info, None)
    method.pairs = PairClassifier(2, width=2)
    method.double()
    given = {
        "transfer.weight": "linear",
        "transfer.bias": "bias",
        "transfer.centers": "centers",
        "transfer.transform.weight": "vec_w",
        "transfer.transform.bias": "vec_b",
        "pairs.mix.weight": "c1_w",
        "pairs.mix.bias": "c1_b",
        "pairs.look.weight": "c2_w",
        "pairs.look.bias": "c2_b",
        "pairs.classify.weight": "fc_w",
        "pairs.classify.bias": "fc_b",
    }
    state = {name: torch.tensor(i[key], dtype=torch.float64) for name, key in given.items()}
    method.load_state_dict(method.state_dict() | state)
    assert method.is_head.nonzero()[:, 0].tolist() == p["head_classes"]
    maps = torch.tensor(i["feature_maps"], dtype=torch.float64)
    return method, maps, torch.tensor(i["labels"])


def test_vector_before_samples_are_generated(vector):
    v = vector("rsg_before_threshold")
    method, maps, labels = from_vector(v)
    found = method.transfer.center_rows(maps, labels).mean()
    found = found + same_class_loss(method.pairs, maps, labels)
    assert found.item() == pytest.approx(v["expected"]["cesc"], rel=v["tolerance"])


def test_vector_with_generated_samples(vector):
    v = vector("rsg_after_threshold")
    method, maps, labels = from_vector(v)
    center = method.transfer.center_rows(maps, labels).mean()
    new, tails, loss = method.generate(maps, labels, (len(maps),))
    expected, close = v["expected"], {"rtol": v["tolerance"], "atol": v["tolerance"]}
    assert center.item() == pytest.approx(expected["cesc"], rel=v["tolerance"])
    assert loss.item() == pytest.approx(expected["mv"], rel=v["tolerance"])
    generated = torch.tensor(expected["generated"], dtype=torch.float64)
    torch.testing.assert_close(new, generated, **close)
    assert [*labels.tolist(), *tails.tolist()] == expected["labels"]


def test_loss_adds_up_from_its_parts(vector):
    """The terms reach ``shared`` with their weights, and generated rows stand after the images."""
    method = build(generate_from=1, reweight_from=None)
    batch = toys.batch()
    seen = method.backbone.run(batch.views[0], 0, 2).detach()
    center = method.transfer.center_rows(seen, batch.labels).mean()
    same = same_class_loss(method.pairs, seen, batch.labels)
    early = method.loss(batch, toys.at(epoch=0))
    torch.testing.assert_close(early.shared, 0.1 * (center + same))
    assert len(early.rows) == early.images == 24
    late = method.loss(batch, toys.at(epoch=1))
    new, tails, loss = method.generate(seen, batch.labels, (24,))
    torch.testing.assert_close(late.shared, 0.1 * center + 0.01 * loss)
    assert len(new) > 0
    assert late.labels.tolist() == [*batch.labels.tolist(), *tails.tolist()]
    assert late.logits.shape == (24, 4)
    assert late.weight.sum() == len(late.rows) == 24 + len(new)


def test_gradients_reach_what_each_term_is_to_train():
    method = build(generate_from=1)
    batch = toys.batch()

    def trained(epoch, part):
        method.zero_grad()
        out = method.loss(batch, toys.at(epoch=epoch))
        (out.shared if part == "shared" else out.rows[part].sum()).backward()
        moved = (n for n, p in method.named_parameters() if p.grad is not None and p.grad.any())
        return {n.replace(".net.", ".").rpartition(".")[0] for n in moved}

    pairs = {"pairs.mix", "pairs.look", "pairs.classify"}
    assert trained(0, "shared") == {"transfer"} | pairs
    assert trained(1, "shared") == {"transfer", "transfer.transform"}
    of_images = trained(0, slice(None, 24))
    assert "backbone.stem.0" in of_images
    assert not any(n.startswith(("transfer", "pairs")) for n in of_images)
    method.eval()  # batch statistics would let real maps matter to generated rows
    of_generated = trained(1, slice(24, None))
    assert "transfer.transform" in of_generated
    assert any(n.startswith("backbone.layer2") for n in of_generated)
    assert not any(n.startswith(("backbone.stem", "backbone.layer1")) for n in of_generated)
    assert not of_generated & (pairs | {"transfer"})


def test_pairs_by_position():
    head = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    heads, tails = head_tail_pairs(head)
    assert (heads.tolist(), tails.tolist()) == ([0, 2, 3, 5], [1, 4, 1, 4])
    heads, tails = head_tail_pairs(~head)
    assert (heads.tolist(), tails.tolist()) == ([1, 4, 1, 4], [0, 2, 3, 5])
    heads, tails = head_tail_pairs(head, strength=0.1)
    assert (heads.tolist(), tails.tolist()) == ([0, 2], [1, 4])
    for one_group in (torch.ones(3).bool(), torch.zeros(3).bool()):
        assert [len(x) for x in head_tail_pairs(one_group)] == [0, 0]
    with pytest.raises(ValueError, match="strength"):
        head_tail_pairs(head, strength=1.5)


def test_head_classes_follow_counts_with_ties_by_index():
    assert head_classes([3, 9, 9, 9, 1] * 2).nonzero()[:, 0].tolist() == [1, 2]
    assert head_classes([1, 2, 3]).tolist() == [False, False, True]


def test_center_loss_is_the_plain_sum_over_positions():
    torch.manual_seed(0)
    maps, centers = torch.randn(5, 4, 3, 2).double(), torch.randn(5, 6, 4).double()
    shares = torch.randn(5, 6).double().softmax(dim=1)
    away = (maps[:, None] - centers[..., None, None]).pow(2).sum(dim=(2, 3, 4))
    torch.testing.assert_close(center_rows(maps, shares, centers), (shares * away).sum(dim=1))


def test_order_of_vectors_matters_unless_there_is_one_position():
    torch.manual_seed(0)
    v, new, tail = torch.randn(3, 2, 4, 3, 3).double()
    by_channel = variation_rows(v, new, tail, "channels")
    assert not torch.allclose(by_channel, variation_rows(v, new, tail))
    length = (new.norm(dim=1) - v.norm(dim=1)).abs().sum(dim=(1, 2))
    agree = (F.normalize(tail, dim=1) * F.normalize(new, dim=1) - 1).abs().sum(dim=(1, 2, 3))
    torch.testing.assert_close(by_channel, length + agree)
    one = [x[..., :1, :1] for x in (v, new, tail)]
    torch.testing.assert_close(variation_rows(*one), variation_rows(*one, "channels"))


def test_a_batch_of_one_group_generates_nothing():
    method = build(generate_from=0)
    x, _ = toys.images(6)
    for label in (0, 3):
        y = torch.full((6,), label)
        batch = toys.Batch((x,), y, torch.arange(6))
        out = method.loss(batch, toys.at())
        assert len(out.rows) == 6
        assert torch.isfinite(out.shared)


def test_looking_for_channels_leaves_the_backbone_as_it_was():
    net = toys.backbone()
    net.net.layer1.eval()
    modes = [m.training for m in net.modules()]
    state = copy.deepcopy(net.state_dict())
    assert entering_channels(net) == 8
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(state[k], t) for k, t in net.state_dict().items())
    assert entering_channels(create_backbone("resnet32_cifar")) == 32
    assert entering_channels(create_backbone("resnet10")) == 256


@pytest.mark.parametrize("whole", [True, False])
def test_backbones_without_maps_are_refused(whole):
    stages = (
        {"one": torch.nn.Flatten(2)} if whole else {"a": torch.nn.Flatten(), "b": torch.nn.ReLU()}
    )
    net = Backbone.from_stages(stages, num_features=4)
    net.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="take a ResNet"):
        entering_channels(net)


@pytest.mark.parametrize("key", ["plain", "sam", "plot-cagrad"])
def test_what_an_epoch_does_not_use_stays(key):
    """The transformation before samples are generated, the pair classifier from then on."""
    from toy_stages import make_update

    from ltbench.config.optim import Optim
    from ltbench.train.optim import build_optimizer
    from ltbench.updates.base import StepRun

    method = build(generate_from=2)
    optimizer = build_optimizer(method.named_parameters(), Optim(lr=0.05, weight_decay=0.1))
    run, update = StepRun(method, optimizer), make_update(key, method)
    for epoch in range(4):
        before = copy.deepcopy(method.state_dict())
        toys.step(update, run, [toys.batch()], toys.at(0, epoch=epoch))
        for name, p in method.named_parameters():
            unused = "pairs." if epoch >= 2 else "transfer.transform."
            assert torch.equal(p, before[name]) == name.startswith(unused), (epoch, name)
        states = [p in optimizer.state for p in method.transfer.transform.parameters()]
        assert states == [epoch >= 2] * 2


@pytest.mark.parametrize("only", ["head", "tail"])
def test_a_batch_of_one_group_does_not_use_the_transformation(only):
    from ltbench.config.optim import Optim
    from ltbench.train.optim import build_optimizer
    from ltbench.updates.base import StepRun
    from ltbench.updates.plain import Plain

    method = build(generate_from=0)
    optimizer = build_optimizer(method.named_parameters(), Optim(lr=0.05, weight_decay=0.1))
    whole = toys.batch()
    keep = method.is_head[whole.labels] == (only == "head")
    assert 0 < int(keep.sum()) < len(keep)
    part = replace(
        whole, views=(whole.views[0][keep],), labels=whole.labels[keep], index=whole.index[keep]
    )
    before = [p.detach().clone() for p in method.transfer.transform.parameters()]
    toys.step(Plain(Plain.Config()), StepRun(method, optimizer), [part], toys.at())
    after = list(method.transfer.transform.parameters())
    assert all(map(torch.equal, before, after))
    assert not any(p in optimizer.state for p in after)


def test_plot_follows_when_generation_begins():
    """From then on the loss has more rows than the batch has images."""
    from toy_stages import ready

    from ltbench.config import validation

    method, run = ready("rsg")
    method.config = method.config.model_copy(update={"generate_from": 1})
    options = {"part": "layer1", "class_gradients": "fast"}
    update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", options))
    for epoch in (0, 1, 1):
        log = toys.step(update, run, [toys.batch()], toys.at(0, epoch=epoch))
        assert torch.isfinite(log["loss"])

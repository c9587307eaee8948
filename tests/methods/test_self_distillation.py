"""MDCS and SHIKE: values of the authors' code, and what their networks and stages are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

from ltbench import get_recipe
from ltbench.config import validation
from ltbench.config.optim import Schedule
from ltbench.errors import UserError
from ltbench.losses import mdcs_confident, mdcs_offsets, mdcs_rows, sade_rows, shike_rows
from ltbench.methods import METHODS
from ltbench.methods.build import build_method
from ltbench.models.backbone import create_backbone
from ltbench.models.branches import Branches
from ltbench.models.cifar_resnet import BasicBlock, CifarResNet
from ltbench.models.fusion import FusedBranches, alignment


def close(actual, expected, tolerance: float) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), expected, atol=tolerance, rtol=tolerance)


def experts(values) -> torch.Tensor:
    """Logits [E, B, C] of a vector as ours [B, E, C], with a gradient."""
    return torch.tensor(values, dtype=torch.float64).transpose(0, 1).contiguous().requires_grad_()


# MDCS ----------------------------------------------------------------------------------------


def mdcs_loss(v, epoch: int, logits: torch.Tensor) -> torch.Tensor:
    p, labels = v["params"], torch.tensor(v["inputs"]["labels"])
    weak, strong = logits.chunk(2)
    offsets = mdcs_offsets(v["inputs"]["counts"], p["powers"])
    weight = p["weight"] * min(epoch / p["warmup"], 1)
    return mdcs_rows(weak, strong, labels[: len(weak)], offsets, weight).mean()


def test_mdcs_vector(vector):
    v = vector("mdcs_loss")
    for epoch, expected in zip(v["params"]["epochs"], v["expected"], strict=True):
        logits = experts(v["inputs"]["logits"])
        loss = mdcs_loss(v, epoch, logits)
        close(loss, expected["loss"], v["tolerance"])
        loss.backward()
        close(logits.grad.transpose(0, 1), expected["gradient"], v["tolerance"])


def test_mdcs_vector_without_a_right_prediction(vector):
    v = vector("mdcs_loss_none_correct")
    logits = experts(v["inputs"]["logits"])
    loss = mdcs_loss(v, v["params"]["epoch"], logits)
    close(loss, v["expected"]["loss"], v["tolerance"])
    loss.backward()
    close(logits.grad.transpose(0, 1), v["expected"]["gradient"], v["tolerance"])
    labels = torch.tensor(v["inputs"]["labels"])[:2]
    offsets = mdcs_offsets(v["inputs"]["counts"], v["params"]["powers"])
    right = mdcs_confident(logits[:2], labels, offsets)
    assert right.T.tolist() == v["expected"]["correct"]


def test_shares_of_the_whole_batch_make_parts_add_up():
    torch.manual_seed(0)
    weak, strong = torch.randn(2, 40, 3, 4, dtype=torch.float64)
    labels, offsets = torch.randint(4, (40,)), mdcs_offsets(toys.COUNTS)
    shares = mdcs_confident(weak, labels, offsets).double().mean(dim=0)
    whole = mdcs_rows(weak, strong, labels, offsets, 0.6)
    parts = [
        mdcs_rows(weak[i], strong[i], labels[i], offsets, 0.6, shares)
        for i in (slice(0, 13), slice(13, 40))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_weak_view_of_mdcs_learns_from_the_label_alone_and_the_strong_one_from_it_too():
    method = toys.method("mdcs").double()
    batch = toys.dressed(toys.batch(), method)
    views = tuple(view.double().requires_grad_() for view in batch.views)
    logits = method.expert_logits(torch.cat(views))
    weak, strong = logits.chunk(2)
    args = batch.labels, method.offsets
    for weight in (0.0, 0.6):
        rows = mdcs_rows(weak, strong, *args, weight)
        found = torch.autograd.grad(rows.sum(), weak, retain_graph=True)[0]
        alone = torch.autograd.grad(sade_rows(weak, *args).sum() / 2, weak, retain_graph=True)[0]
        torch.testing.assert_close(found, alone)


def test_the_consistency_of_mdcs_grows_over_the_first_epochs():
    method = toys.method("mdcs").eval().double()
    batch = toys.dressed(toys.batch(), method)
    batch = replace(batch, views=tuple(view.double() for view in batch.views))
    sums = [method.loss(batch, toys.at(epoch=e)).rows.sum().item() for e in (0, 1, 19, 40)]
    assert sums[0] < sums[1] < sums[2] == sums[3]
    torch.testing.assert_close(sums[1] - sums[0], (sums[2] - sums[0]) / 19)


def test_mdcs_has_one_power_per_expert():
    with pytest.raises(UserError, match="one number per expert, 2, found 3"):
        validation.build_options("METHODS", "mdcs", {"experts": 2})


# SHIKE ---------------------------------------------------------------------------------------


def test_shike_stage_1_vector(vector):
    v = vector("shike_stage1_loss")
    logits, p = experts(v["inputs"]["logits"]), v["params"]
    labels = torch.tensor(v["inputs"]["labels"])
    loss = shike_rows(logits, labels, p["suppression"], p["target_logit"]).mean()
    close(loss, v["expected"]["loss"], v["tolerance"])
    loss.backward()
    close(logits.grad.transpose(0, 1), v["expected"]["gradient"], v["tolerance"])
    close(logits.mean(dim=1), v["expected"]["mean_logits"], v["tolerance"])


def test_shike_stage_2_vector(vector):
    v = vector("shike_stage2_loss")
    logits, labels = experts(v["inputs"]["logits"]), torch.tensor(v["inputs"]["labels"])
    counts = torch.tensor(v["inputs"]["counts"], dtype=torch.float64)
    loss = sade_rows(logits, labels, counts.log().expand(3, -1)).mean()
    close(loss, v["expected"]["loss"], v["tolerance"])
    loss.backward()
    close(logits.grad.transpose(0, 1), v["expected"]["gradient"], v["tolerance"])


def test_shike_learning_rates(vector):
    v = vector("lr_shike")
    recipe = get_recipe("shike_cifar100")
    first, second = (recipe.training(i) for i in (0, 1))
    assert [first.epochs, second.epochs] == v["params"]["epochs"]

    def rates(stage, epochs):
        return [stage.optim.lr * stage.schedule.factor(e, stage.epochs) for e in epochs]

    found = rates(first, [*range(0, 180, 20), *range(7)])
    assert found == pytest.approx(v["expected"]["stage1"], rel=1e-8)
    assert rates(second, range(20)) == pytest.approx(v["expected"]["stage2"], rel=1e-8)


def test_a_warm_up_reaches_the_base_rate_in_its_last_epoch_or_in_the_next():
    last, following = (Schedule(warmup=4, warmup_reach=reach) for reach in ("last", "next"))
    assert [last.factor(e, 9) for e in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [following.factor(e, 9) for e in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert Schedule(warmup=0, warmup_reach="next").factor(0, 9) == 1


def build(name: str, backbone=None, previous=None, **options):
    given = validation.build_options("METHODS", name, options)
    net = toys.backbone() if backbone is None else backbone
    return METHODS.get(name)(given, net, toys.INFO, previous)


def test_experts_take_turns_through_the_inner_stages():
    method = build("shike", create_backbone("resnet20_cifar"), branch_at="layer3")
    kinds = [
        [(m.in_channels, m.out_channels) for m in align if isinstance(m, nn.Conv2d)]
        for align in method.branches.shallow
    ]
    assert kinds == [[(16, 32), (32, 64)], [(32, 64)], [(16, 32), (32, 64)]]
    activated = [[type(m).__name__ for m in align] for align in method.branches.shallow]
    first = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert activated == [[*first, "Conv2d", "BatchNorm2d"], first, [*first, *first[:2]]]


@torch.no_grad()
def test_features_are_the_mean_of_the_product_of_deep_and_aligned_maps():
    method = build("shike", create_backbone("resnet20_cifar"), branch_at="layer3").eval()
    net, x = method.backbone.net, torch.randn(2, 3, 32, 32)
    one = net.layer1(net.act1(net.bn1(net.conv1(x))))
    two = net.layer2(one)
    tails = [net.layer3, *(copy.net.layer3 for copy in method.branches.copies)]
    for e, (tail, align) in enumerate(zip(tails, method.branches.shallow, strict=True)):
        expected = (tail(two) * align(two if e == 1 else one)).mean(dim=(2, 3))
        torch.testing.assert_close(method.branches(x)[:, e], expected)


def test_the_network_of_shike_is_as_large_as_the_authors():
    """Counted by hand: stem, 5 + 5 shared blocks, 3 x 5 own ones, shallow branches, classifiers."""
    recipe = get_recipe("shike_cifar100")
    info = toys.DatasetInfo("cifar100_lt", (500,) * 100, tuple(map(str, range(100))))

    def block(i: int, o: int) -> int:
        projection = i * o + 2 * o if i != o else 0
        return 9 * i * o + 9 * o * o + 4 * o + projection

    def strided(i: int, o: int) -> int:
        return 9 * i * o + 2 * o

    shared = 27 * 16 + 32 + 5 * block(16, 16) + block(16, 32) + 4 * block(32, 32)
    own = block(32, 64) + 4 * block(64, 64)
    shallow = 3 * strided(32, 64) + 2 * strided(16, 32)
    heads = 3 * 64 * 100
    method = build_method(recipe, 0, info)
    assert sum(p.numel() for p in method.parameters()) == shared + 3 * own + shallow + heads
    second = build_method(recipe, 1, info, method)
    assert sum(p.numel() for p in second.parameters()) == shared + 3 * own + shallow + heads
    assert second.head is not method.head
    assert second.branches is method.branches


def test_stage_2_needs_the_experts_of_stage_1():
    ce = toys.method("ce")
    with pytest.raises(UserError, match="a `shike` stage, found one of another method"):
        build("shike_stage2", ce.backbone, ce)
    first = build("shike")
    with pytest.raises(UserError, match="start: fresh"):
        build("shike_stage2", toys.backbone(seed=3), first)
    second = build("shike_stage2", first.backbone, first)
    x = toys.batch().views[0]
    assert torch.equal(second.eval().branches(x), first.eval().branches(x))


@pytest.mark.parametrize("at", ["layer1", "stem"])
def test_an_inner_stage_must_come_before_the_branches(at):
    with pytest.raises(UserError, match="no inner stage to combine with"):
        build("shike", branch_at=at)


def test_networks_without_maps_are_refused():
    with pytest.raises(UserError, match="feature maps"):
        FusedBranches(create_backbone("vit_tiny_patch16_224", img_size=64), 2, "stage3")
    with pytest.raises(UserError, match="turns 64 rows into 16"):
        alignment([(8, 64), (8, 16)])


def test_probing_leaves_modes_and_statistics_alone():
    backbone = create_backbone("resnet20_cifar")
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    backbone.net.layer2.eval()
    FusedBranches(backbone, 2, "layer3")
    assert not backbone.net.layer2[0].bn1.training
    assert backbone.net.layer1[0].bn1.training
    assert all(torch.equal(b, before[n]) for n, b in backbone.named_buffers())


def test_taps_are_the_outputs_of_the_trunk():
    backbone = toys.backbone().eval()
    x = toys.batch().views[0]
    branches = Branches(backbone, 2, "layer2").eval()
    taps = branches.taps(x)
    assert torch.equal(taps[0], backbone.run(x, 0, 1))
    assert torch.equal(taps[1], branches.trunk(x))
    maps = branches.tail_maps(0, taps[1])
    assert torch.equal(maps, backbone.maps(x))
    assert torch.equal(backbone.pool(branches.tail_maps(1, taps[1])), branches.tail(1, taps[1]))


def test_projection_shortcuts_are_strided_convolutions_where_the_shape_changes():
    block = BasicBlock(16, 32, stride=2, shortcut="projection").eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    conv, norm = block.shortcut
    expected = F.relu(norm(F.conv2d(x, conv.weight, stride=2)))
    torch.testing.assert_close(block(x), expected)
    assert BasicBlock(16, 16, 1, "projection").shortcut is None
    names = {n for n, _ in CifarResNet(20, shortcut="projection").named_parameters()}
    added = names - {n for n, _ in CifarResNet(20).named_parameters()}
    assert added == {
        f"layer{i}.0.shortcut.{name}" for i in (2, 3) for name in ("0.weight", "1.weight", "1.bias")
    }
    with pytest.raises(UserError, match="expected pad or projection, found `conv`"):
        CifarResNet(20, shortcut="conv")

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.models import BACKBONES
from ltbench.models.backbone import Backbone, create_backbone, split

CUT = {  # name: (pixels, parameters without classifier, features, stages)
    "resnet20_cifar": (32, 269_072, 64, 4),
    "resnet32_cifar": (32, 463_504, 64, 4),
    "resnet44_cifar": (32, 657_936, 64, 4),
    "resnet56_cifar": (32, 852_368, 64, 4),
    "resnet34_cifar": (32, 21_276_992, 512, 5),
    "resnet32_tinyimagenet": (32, 466_272, 64, 4),
    "efficientnet_lite0": (64, 3_371_008, 1280, 8),
    "efficientnet_lite1": (64, 4_135_680, 1280, 8),
    "efficientnet_lite2": (64, 4_811_072, 1280, 8),
    "resnet10": (32, 4_905_792, 512, 5),
    "resnet50": (32, 23_508_032, 2048, 5),
    "resnet152": (32, 58_143_808, 2048, 5),
    "resnext50_32x4d": (32, 22_979_904, 2048, 5),
    "test_vit": (160, 306_240, 64, 5),
    "deit_tiny_distilled_patch16_224": (224, 5_524_800, 192, 5),
    "test_convnext": (32, 207_128, 64, 5),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "resnet152" else n for n in CUT],
)
def test_cut_anywhere_the_composition_is_the_backbone(name: str) -> None:
    pixels, parameters, features, stages = CUT[name]
    backbone = create_backbone(name).eval()
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert len(backbone.stages) == stages
    x = torch.randn(1, 3, pixels, pixels)
    with torch.inference_mode():
        y = backbone(x)
        assert y.shape == (1, features) == (1, backbone.num_features)
        assert torch.equal(y, backbone.net(x))
        for at in backbone.stages if pixels < 200 else ("stage1", "last"):
            trunk, tail = split(backbone, at)
            assert torch.equal(tail(trunk(x)), y)


def test_every_registered_backbone_is_tested() -> None:
    assert set(BACKBONES.names()) <= set(CUT)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet20_cifar", "resnet32_tinyimagenet", "resnet10"),
        *("test_vit", "test_convnext", "test_efficientnet"),
    ],
)
def test_every_parameter_belongs_to_one_stage(name: str) -> None:
    backbone = create_backbone(name)
    by_stage = [id(p) for s in backbone.stages for p in backbone.parameters_of(s)]
    everything = [id(p) for p in backbone.parameters()]
    assert sorted(by_stage) == sorted(everything)
    assert [id(p) for p in backbone.parameters_of("whole")] == everything
    last = {id(p) for p in backbone.parameters_of("last")}
    assert last == {id(p) for p in backbone.parameters_of(backbone.stages[-1])}
    trunk, tail = split(backbone)
    assert last == {id(p) for p in tail.parameters()}
    assert {id(p) for p in trunk.parameters()} == set(everything) - last
    own = dict(backbone.named_parameters())
    for part in (trunk, tail):
        assert all(own[n] is p for n, p in part.named_parameters())
    in_modules = {id(p) for m in backbone.modules_of("last") for p in m.parameters()}
    assert in_modules == last


def test_names_below_net_are_timms() -> None:
    names = [n.removeprefix("net.") for n, _ in create_backbone("resnet10").named_parameters()]
    timms = timm.create_model("resnet10_lt", num_classes=0).named_parameters()
    assert names == [n for n, _ in timms]


def test_blocks_start_as_in_the_literature() -> None:
    block = create_backbone("resnet10").net.layer4[0]
    assert torch.equal(block.bn2.weight, torch.ones(512))


def test_last_quarter_of_a_transformer_is_its_last_stage() -> None:
    backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=6)
    names = {id(p): n for n, p in backbone.net.named_parameters()}
    stem, last = ([names[id(p)] for p in backbone.parameters_of(s)] for s in ("stem", "last"))
    assert [n for n in stem if "patch" not in n] == ["cls_token", "pos_embed"]
    blocks = {n.split(".")[1] for n in last if n.startswith("blocks.")}
    assert blocks == {"4", "5"}
    assert last[-2:] == ["norm.weight", "norm.bias"]


def test_a_copied_tail_is_an_independent_branch() -> None:
    backbone = create_backbone("resnet20_cifar").eval()
    trunk, tail = split(backbone)
    branch, shared = copy.deepcopy(tail), trunk(torch.randn(1, 3, 32, 32))
    before = tail(shared)
    with torch.no_grad():
        for p in backbone.parameters_of("last"):
            p.zero_()
    assert not torch.equal(tail(shared), before)
    assert torch.equal(branch(shared), before)
    assert [n for n, _ in branch.named_parameters()] == [n for n, _ in tail.named_parameters()]


def test_a_copied_backbone_is_independent() -> None:
    backbone = create_backbone("resnet20_cifar").eval()
    twin, x = copy.deepcopy(backbone), torch.randn(1, 3, 32, 32)
    before = twin(x)
    with torch.no_grad():
        for p in backbone.parameters():
            p.zero_()
    assert torch.equal(twin(x), before)
    assert not backbone(x).any()


def test_unknown_parts_and_uncut_networks() -> None:
    backbone = create_backbone("resnet20_cifar")
    with pytest.raises(UserError, match=r"no part `layer4` .*it has stem, layer1, layer2, layer3"):
        backbone.parameters_of("layer4")
    uncut = create_backbone("test_byobnet")
    assert uncut.stages == ("whole",)
    assert len(uncut.parameters_of("whole")) == len([*uncut.parameters()])
    with pytest.raises(UserError, match="no part `last`; it has whole"):
        split(uncut)
    trunk, tail = split(uncut.eval(), "whole")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(tail(trunk(x)), uncut(x))


def toy() -> Backbone:
    torch.manual_seed(3)
    stages = {
        "front": nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)),
        "layer3": nn.Sequential(nn.Linear(5, 6), nn.Tanh()),
    }
    return Backbone.from_stages(stages, num_features=6).double()


def test_backbone_of_any_modules() -> None:
    backbone = toy()
    assert backbone.stages == ("front", "layer3")
    assert backbone.num_features == 6
    assert [n for n, _ in backbone.named_parameters()][-1] == "net.layer3.0.bias"
    with pytest.raises(ValueError, match="meaning"):
        Backbone.from_stages({"last": nn.Identity()}, 1)


@pytest.mark.parametrize("stage", ["layer3", "last", "whole"])
def test_replay_is_the_full_pass_from_where_it_starts(stage: str) -> None:
    batches = [torch.randn(n, 4, dtype=torch.float64) for n in (3, 5)]

    def climb(backbone: Backbone) -> None:
        with torch.no_grad():
            for p in backbone.parameters_of("last"):
                p.add_(0.1)

    def loss(backbone: Backbone) -> Tensor:
        return sum((backbone(x) ** 3).sum() for x in batches)  # type: ignore[return-value]

    whole, cached, plain = toy(), toy(), toy()
    climb(whole)
    expected = loss(whole)
    with cached.cache_before(stage) as cache:
        loss(cached).backward(retain_graph=True)
        loss(plain).backward()
        for a, b in zip(cached.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        cached.zero_grad()
        climb(cached)
        cache.replay()
        kept = [id(f) for f in cache.features]
        counters = cached.net.front[1].num_batches_tracked.clone()
        found = loss(cached)
        assert torch.equal(loss(cached), found)  # a further pass begins again
        assert kept == [id(f) for f in cache.features]
        ran_front = not torch.equal(cached.net.front[1].num_batches_tracked, counters)
        assert ran_front == (stage == "whole")
        with pytest.raises(RuntimeError, match="3 images"):
            cached(batches[1])
    assert torch.equal(found, expected)
    expected.backward()
    found.backward()
    for a, b in zip(cached.parameters(), whole.parameters(), strict=True):
        assert b.grad.any() or b is whole.net.front[0].bias
        assert torch.equal(a.grad, b.grad)
    assert cached(batches[1]).shape == (5, 6)


def test_replay_on_a_residual_network() -> None:
    backbone, x = create_backbone("resnet20_cifar"), torch.randn(4, 3, 32, 32)
    with backbone.cache_before("layer2") as cache:
        first = backbone(x)
        cache.replay()
        assert torch.equal(backbone(x), first)
    assert cache.features[0].requires_grad


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet32", "resnet32_cifar"), ("resnet_50", "resnet50"), ("convnext_atta", "convnext_atto")],
)
def test_unknown_names_suggest_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"`{name}` .did you mean `{near}`"):
        create_backbone(name)


def test_bad_arguments_are_one_line() -> None:
    for name, args in (("resnet32_cifar", {"depht": 2}), ("resnet50.no_such_tag", {})):
        with pytest.raises(UserError, match=f"`{name}` cannot be built") as error:
            create_backbone(name, **args)
        assert "\n" not in str(error.value)


def test_failed_downloads_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionResetError("reset by peer\nwith details")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        UserError, match=r"public weights of backbone `resnet50`.*reset by peer"
    ) as e:
        create_backbone("resnet50", pretrained=True)
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    with pytest.raises(UserError, match="No pretrained weights exist"):
        create_backbone("resnet32_cifar", pretrained=True)

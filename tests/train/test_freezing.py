"""What a name of a part reaches: in stages that freeze, in rates, in updates."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from ltbench import get_recipe
from ltbench.config.optim import Optim
from ltbench.config.recipe import Stage
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods.build import build_backbone, build_method, reset
from ltbench.models.batchnorm import scale_and_shift
from ltbench.train.freezing import freeze, set_modes
from ltbench.train.optim import parameter_groups
from ltbench.updates.base import StepRun

BRANCHED = ["bbn", "ride", "sade"]


def stage_of(**options) -> Stage:
    return get_recipe("ce_cifar10").stages[0].model_copy(update=options)


def pairs(method):
    """Parameters of the further branches, each beside the backbone's in its place."""
    own = dict(method.backbone.named_parameters())
    return [
        (parameter, own[name.partition(".")[2]])
        for name, parameter in method.branches.copies.named_parameters()
    ]


@pytest.mark.parametrize("name", BRANCHED)
@pytest.mark.parametrize("prefix", ["backbone", "last", "backbone.net.layer2"])
def test_freezing_reaches_all_branches(name, prefix):
    method = toys.method(name)
    found = pairs(method)
    assert found
    freeze(method, stage_of(freeze=(prefix,)))
    inside = {id(p) for p in method.backbone.parameters() if not p.requires_grad}
    assert inside
    for copy, own in found:
        assert copy.requires_grad == own.requires_grad
    assert any(not copy.requires_grad for copy, _ in found)
    assert all(p.requires_grad for p in method.head.parameters())


@pytest.mark.parametrize("name", BRANCHED)
def test_rates_reach_all_branches(name):
    method = toys.method(name)
    optim = Optim(lr=1.0, lr_factors={"backbone": 0.1, "backbone.net.layer2": 0.5})
    factor = {
        id(p): group["factor"]
        for group in parameter_groups(method.known_as(), optim)
        for p in group["params"]
    }
    assert sorted(set(factor.values())) == [0.1, 0.5, 1.0]
    for copy, own in pairs(method):
        assert factor[id(copy)] == factor[id(own)] != 1.0
    # A name of their own is still theirs alone.
    optim = Optim(lr=1.0, lr_factors={"backbone": 0.1, "branches": 0.2, "branches.copies.0": 0.3})
    names = {id(p): n for n, p in method.named_parameters()}
    for group in parameter_groups(method.known_as(), optim):
        for p in group["params"]:
            name = names[id(p)]
            of_copy = 0.3 if name.startswith("branches.copies.0") else 0.2
            others = 0.1 if name.startswith("backbone") else 1.0
            assert group["factor"] == (of_copy if name.startswith("branches") else others)


@pytest.mark.parametrize("name", BRANCHED)
@pytest.mark.parametrize("part", ["last", "backbone"])
def test_parts_of_updates_reach_all_branches(name, part):
    method = toys.method(name)
    run = StepRun(method, torch.optim.SGD(method.parameters(), lr=0.1))
    chosen = {id(p) for p in run.part(part)}
    assert chosen
    for copy, own in pairs(method):
        assert (id(copy) in chosen) == (id(own) in chosen)
    assert any(id(copy) in chosen for copy, _ in pairs(method))


def test_normalisation_of_frozen_parts_can_be_trained():
    method = toys.method("paco")
    stage = stage_of(freeze=("backbone", "twin"), frozen_bn="trained")
    frozen = freeze(method, stage)
    set_modes(method, stage, frozen)
    norms = [m for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    of_norms = {id(p) for p in scale_and_shift(method.backbone)}
    for p in method.backbone.parameters():
        assert p.requires_grad == (id(p) in of_norms)
    assert all(m.training for m in norms)
    # What the method itself freezes has no part in it.
    assert not any(p.requires_grad for p in method.twin.parameters())
    stage = stage_of(freeze=("backbone", "twin"), frozen_bn="train")
    freeze(method, stage)
    assert not any(p.requires_grad for p in method.backbone.parameters())


def test_parts_of_a_pretrained_network_can_begin_anew():
    counts = (9, 5, 2)
    info = DatasetInfo("x", counts, ("a", "b", "c"))
    words = ("backbone.name=resnet20_cifar", "stages.0.reset=[backbone.net.layer3.2, head]")
    recipe = get_recipe("ce_cifar10", *words)
    weights = build_backbone(recipe)
    for p in weights.parameters():
        nn.init.constant_(p, 7)

    def given(recipe, classes=None):
        return weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltbench.methods.build.build_backbone", given)
        method = build_method(recipe, 0, info)
        with pytest.raises(UserError, match=r"`reset`: no layer is called `backbone.net.layer9`"):
            build_method(get_recipe("ce_cifar10", "stages.0.reset=[backbone.net.layer9]"), 0, info)
    for name, p in method.named_parameters():
        anew = name.startswith(("backbone.net.layer3.2.", "head."))
        assert bool((p == 7).all()) != anew, name
    conv = method.backbone.net.layer3[2].conv1.weight
    assert (
        float(conv.detach().abs().max()) <= (64 * 9) ** -0.5 + 1e-6
    )  # PyTorch's own, not Kaiming-normal
    assert get_recipe("ce_cifar10").digest != recipe.digest


@pytest.mark.parametrize("name", BRANCHED)
def test_all_branches_begin_anew(name):
    method = toys.method(name)
    with torch.no_grad():
        for p in method.parameters():
            p.fill_(7)
    reset(method, "backbone.net.layer2")
    anew = {n for n, p in method.named_parameters() if not bool((p == 7).all())}
    assert {n for n in anew if n.startswith("branches.")}
    assert all(".layer2." in n for n in anew)


def test_normalisation_of_frozen_parts_can_differ_by_part():
    method = toys.method("crt")
    modes = {"backbone": "eval", "backbone.net.layer2": "train"}
    stage = stage_of(freeze=("backbone",), frozen_bn=modes)
    set_modes(method, stage, freeze(method, stage))
    found = {
        name.split(".")[2]: module.training
        for name, module in method.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert found == {"stem": False, "layer1": False, "layer2": True}

from __future__ import annotations

import pytest
import torch
import toys

from ltbench.errors import UserError
from ltbench.models.backbone import create_backbone
from ltbench.models.batchnorm import SyncBatchNorm2d, convert_sync_batchnorm
from ltbench.models.branches import Branches

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("at", ["block", "layer2", "last", "whole"])
def test_first_branch_is_the_backbone(at):
    backbone = create_backbone("resnet20_cifar").eval()
    branches = Branches(backbone, 3, at).eval()
    features = branches(X)
    assert features.shape == (3, 3, 64)
    torch.testing.assert_close(features[:, 0], backbone(X))
    assert torch.equal(features[:, 1], branches.tail(1, branches.trunk(X)))
    assert torch.equal(branches.standalone()(X), features)


@pytest.mark.parametrize(("at", "blocks"), [("block", 1), ("last", 3), ("layer2", 6)])
def test_tails_hold_what_comes_from_the_cut_on(at, blocks):
    backbone = create_backbone("resnet20_cifar")
    for copy in Branches(backbone, 3, at).copies:
        names = {n.removeprefix("net.") for n, _ in copy.named_parameters()}
        assert len({n.rpartition(".conv")[0] for n in names if ".conv" in n}) == blocks
        assert names <= {n for n, _ in backbone.net.named_parameters()}


def test_nothing_is_held_twice():
    backbone = create_backbone("resnet20_cifar")
    standalone = Branches(backbone, 3, "block").standalone()
    tensors = [t.data_ptr() for t in standalone.state_dict().values() if t.numel()]
    assert len(tensors) == len(set(tensors))
    own = {id(p) for p in standalone.branches.parameters()}
    assert not own & {id(p) for p in backbone.parameters()}


@pytest.mark.parametrize("trained", ["no", "weights", "stage"])
def test_tails_start_apart_unless_the_backbone_is_trained(trained):
    backbone = create_backbone("resnet20_cifar").eval()
    backbone.pretrained = trained == "weights"
    branches = Branches(backbone, 3, "layer2", trained=trained == "stage").eval()
    features = branches(X)
    for a, b in [(0, 1), (1, 2)]:
        assert torch.equal(features[:, a], features[:, b]) == (trained != "no")
    if trained == "no":
        for name, p in branches.copies[0].named_parameters():
            given = backbone.get_parameter(name)
            spread = p.std() / given.std() if p.dim() > 1 else None
            assert spread is None or 0.9 < spread < 1.1
            assert p.dim() > 1 or torch.equal(p, given)  # scales and shifts start as they were


def test_gradients_reach_each_tail_and_the_trunk():
    backbone = create_backbone("resnet20_cifar")
    branches = Branches(backbone, 2, "block")
    branches.tail(1, branches.trunk(X)).sum().backward()
    assert all(p.grad is not None for p in branches.copies.parameters())
    assert backbone.net.conv1.weight.grad is not None
    assert backbone.net.layer3[-1].conv1.weight.grad is None
    assert backbone.net.layer3[-2].conv1.weight.grad is not None


@pytest.mark.parametrize("name", ["bbn", "ride"])
def test_normalisation_may_be_replaced_afterwards(name):
    method = toys.method(name)
    x = toys.batch().views[0]
    before = method.predict(x)  # in training mode: statistics are those of the batch
    convert_sync_batchnorm(method)
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (4 if name == "bbn" else 7)
    assert all(isinstance(m, SyncBatchNorm2d) for m in norms)
    seen: list[torch.nn.Module] = []
    for m in norms:
        m.register_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(method.predict(x), before)
    assert {id(m) for m in seen} == {id(m) for m in norms}  # what runs is what was replaced


def test_impossible_cuts_are_refused():
    with pytest.raises(UserError, match="no part `layer7`"):
        Branches(create_backbone("resnet20_cifar"), 2, "layer7")
    with pytest.raises(UserError, match="cannot be cut before its last block"):
        Branches(create_backbone("test_vit"), 2, "block")
    with pytest.raises(ValueError, match="at least 1"):
        Branches(create_backbone("resnet20_cifar"), 0)

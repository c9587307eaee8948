from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.errors import UserError
from ltbench.models.cifar_resnet import (
    BasicBlock,
    CifarResNet,
    map_public_weights,
    renumber_appended,
)

ROOT = Path(__file__).parents[2]


def test_timm_finds_the_cifar_resnets() -> None:
    for depth, parameters in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)):
        net = timm.create_model(f"resnet{depth}_cifar")
        assert sum(p.numel() for p in net.parameters()) == parameters
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) + 1 == depth


def test_importing_ltbench_registers_without_torch() -> None:
    code = (
        "import sys, ltbench.models\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
        "import timm\n"
        "print(timm.create_model('resnet32_cifar', num_classes=7).num_classes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "7", done.stderr


def test_timm_interface() -> None:
    net = timm.create_model("resnet20_cifar", num_classes=5, in_chans=1).eval()
    x = torch.randn(2, 1, 32, 32)
    features = net.forward_features(x)
    assert features.shape == (2, 64, 8, 8)
    pooled = net.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert torch.equal(net(x), net.get_classifier()(pooled))
    net.reset_classifier(0)
    assert torch.equal(net(x), pooled)
    net.reset_classifier(3, global_pool="max")
    assert net.num_classes == net(x).shape[1] == 3
    assert torch.equal(net.forward_head(features, pre_logits=True), features.amax((2, 3)))
    cfg = timm.create_model("resnet32_cifar").pretrained_cfg
    assert (cfg["first_conv"], cfg["classifier"], cfg["input_size"]) == ("conv1", "fc", (3, 32, 32))


def test_parameters_come_in_the_fields_order() -> None:
    names = [n.split(".")[0] for n, _ in CifarResNet(20).named_parameters()]
    assert list(dict.fromkeys(names)) == ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]


def test_shortcut_subsamples_and_pads_both_sides() -> None:
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_initialisation_is_kaiming_normal_fan_in() -> None:
    net = CifarResNet(56)
    weights = torch.cat([b.conv2.weight.flatten() for b in net.layer3])
    assert weights.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert net.fc.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.15)


def test_depth_must_fit() -> None:
    with pytest.raises(UserError, match="not 33"):
        CifarResNet(33)


def public(depth: int = 20, classes: int = 10) -> dict[str, Tensor]:
    state = CifarResNet(depth, num_classes=classes).state_dict()
    return {f"module.{n.replace('fc.', 'linear.')}": t for n, t in state.items()}


def test_public_weights_map_in() -> None:
    state = public(classes=7)
    old = {n: t for n, t in state.items() if "num_batches" not in n}
    for given in (state, old):
        net = CifarResNet(20, num_classes=7)
        net.load_state_dict(map_public_weights(given))
        assert torch.equal(net.fc.weight, state["module.linear.weight"])
        assert torch.equal(net.layer2[1].bn2.bias, state["module.layer2.1.bn2.bias"])


def test_foreign_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"shortcut.0.weight"):
        map_public_weights({**public(), "module.layer2.0.shortcut.0.weight": torch.zeros(32, 16)})
    with pytest.raises(
        UserError, match=r"`layer1.0.conv1.weight` must have shape \[16, 16, 3, 3\]"
    ):
        map_public_weights({**public(), "module.layer1.0.conv1.weight": torch.zeros(2)})
    lacking = public()
    del lacking["module.layer3.2.bn1.bias"]
    with pytest.raises(UserError, match=r"ResNet-20 lack `layer3.2.bn1.bias`"):
        map_public_weights(lacking)
    with pytest.raises(UserError, match=r"found blocks.0.weight"):
        map_public_weights({"blocks.0.weight": torch.zeros(1)})


class AppendingBlock(nn.Module):
    """A block whose shortcut has the new channels after the old ones."""

    def __init__(self, old: int, new: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(old, new, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(new)
        self.conv2 = nn.Conv2d(new, new, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(new)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if out.shape != x.shape:
            kept = F.avg_pool2d(x, 1, stride=2)
            x = torch.cat([kept, torch.zeros_like(out)[:, kept.shape[1] :]], dim=1)
        return (out + x).relu()


class AppendingNet(nn.Module):
    def __init__(self, depth: int, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1, self.bn1 = nn.Conv2d(3, a, 3, 1, 1, bias=False), nn.BatchNorm2d(a)
        for i, (old, new, stride) in enumerate([(a, a, 1), (a, b, 2), (b, c, 2)], start=1):
            further = [AppendingBlock(new, new, 1) for _ in range((depth - 2) // 6 - 1)]
            setattr(self, f"layer{i}", nn.Sequential(AppendingBlock(old, new, stride), *further))
        self.fc = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


@pytest.mark.parametrize("widths", [(16, 32, 64), (4, 6, 14), (4, 4, 10)])
@pytest.mark.parametrize("depth", [8, 14, 32])
def test_where_new_channels_are_put_is_a_matter_of_numbers(
    depth: int, widths: tuple[int, int, int]
) -> None:
    other = AppendingNet(depth, widths, classes=5).double()
    for m in other.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight.data, m.bias.data, m.running_mean):
                t.copy_(0.3 * torch.randn_like(t) + 0.7)
            m.running_var.uniform_(0.5, 2)
    ours = CifarResNet(depth, num_classes=5, widths=widths).double()
    ours.load_state_dict(renumber_appended(other.state_dict()))
    x, y = torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 5

    def same(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    expected = other.eval()(x)
    same(ours.eval()(x), expected)
    ours.load_state_dict(other.state_dict())
    assert (ours(x) - expected).abs().max() > 1e-3  # as they are, they are weights of another
    ours.load_state_dict(renumber_appended(other.state_dict()))
    same(ours.train()(x), other.train()(x))
    for net in (ours, other):  # a step later they are still the same
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=0.01)
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for name, t in renumber_appended(other.state_dict()).items():
        torch.testing.assert_close(ours.state_dict()[name], t, rtol=1e-9, atol=1e-12)
    features = {n: t for n, t in other.state_dict().items() if not n.startswith("fc.")}
    assert not any(n.startswith("fc.") for n in renumber_appended(features))

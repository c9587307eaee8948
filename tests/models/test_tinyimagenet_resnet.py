"""The ResNet-32 of public Tiny-ImageNet weights, beside that of CIFAR."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.errors import UserError
from ltbench.models.backbone import create_backbone

NAME = "resnet32_tinyimagenet"


def public() -> dict[str, Tensor]:
    """A state dict with the names of the public file."""
    torch.manual_seed(1)
    state = dict(create_backbone(NAME).net.state_dict())
    for name, tensor in state.items():
        if name.endswith("running_var"):
            state[name] = torch.rand_like(tensor) + 0.5
        elif tensor.is_floating_point():
            state[name] = torch.randn_like(tensor) * 0.1
    return {**state, "fc.weight": torch.zeros(200, 64), "fc.bias": torch.zeros(200)}


def expected(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Features by the formulas of the network."""

    def norm(x: Tensor, name: str) -> Tensor:
        kept = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *kept)

    def block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        out = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        out = F.conv2d(norm(out, f"{name}.bn1").relu(), state[f"{name}.conv2.weight"], padding=1)
        if stride == 2:
            x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2)
            x = norm(x, f"{name}.downsample.1")
        return (norm(out, f"{name}.bn2") + x).relu()

    x = norm(F.conv2d(x, state["conv1.weight"], state["conv1.bias"], padding=1), "bn1").relu()
    for first, later, stride in (("block1", "blocks2", 1), ("block3", "blocks4", 2),
                                 ("block5", "blocks6", 2)):  # fmt: skip
        x = block(x, first, stride)
        for i in range(4):
            x = block(x, f"{later}.{i}")
    return x.mean((2, 3))


def test_public_weights_load_and_give_the_features_of_the_formulas(tmp_path: Path) -> None:
    state, x = public(), torch.randn(2, 3, 32, 32)
    torch.save({"state_dict": state, "best": 49.0}, tmp_path / "w.pth.tar")
    backbone = create_backbone(NAME, weights=str(tmp_path / "w.pth.tar")).eval()
    with torch.inference_mode():
        torch.testing.assert_close(backbone(x), expected(state, x))
        assert backbone.maps(x).shape == (2, 64, 8, 8)
    assert "conv1.weight" in backbone.net.state_dict()


def test_each_of_the_two_networks_refuses_the_weights_of_the_other(tmp_path: Path) -> None:
    torch.save(public(), tmp_path / "b.pth")
    torch.save(create_backbone("resnet32_cifar").net.state_dict(), tmp_path / "a.pth")
    for name, file in (("resnet32_cifar", "b.pth"), (NAME, "a.pth")):
        with pytest.raises(
            UserError, match=r"does not fit .* give weights of the same network"
        ) as e:
            create_backbone(name, weights=str(tmp_path / file))
        assert "\n" not in str(e.value)


def test_there_is_no_package_of_its_weights() -> None:
    with pytest.raises(UserError, match=r"give backbone\.weights=FILE"):
        create_backbone(NAME, pretrained=True)

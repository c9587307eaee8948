"""Class gradients of timm's layers and networks, in float64 and with all columns."""

from __future__ import annotations

import pytest
import timm
import torch
from gradients_by_hand import CLASSES, by_hand, fast_products, problem
from timm import layers
from timm.layers import evo_norm, filter_response_norm, grn, std_conv
from torch import nn

from ltbench.class_gradients.engine import Engine, Pass
from ltbench.class_gradients.layers import rule_of
from ltbench.models.batchnorm import SyncBatchNormAct2d, convert_sync_batchnorm


class Channels(nn.Module):
    """A layer over the last dimension, on maps [B, C, H, W]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def around(*middle: nn.Module) -> nn.Sequential:
    """A small network with layers from 8 to 8 channels in the middle."""
    torch.manual_seed(0)
    head = layers.Linear(8, CLASSES)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=True), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    for p in net.parameters():  # scales of 0 or 1 would hide mistakes
        p.data += 0.3 * torch.rand_like(p)
    return net


def assert_exact(model: nn.Module, size: int = 7, part=None) -> None:
    task = problem(model, size=size)
    part = list(model.parameters()) if part is None else part
    table = by_hand(task, part)
    products = fast_products(model, task, part)[3]
    torch.testing.assert_close(products, table @ table.T, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.PReLU, None])
@pytest.mark.parametrize("synchronised", [False, True])
def test_normalisation_with_activation_is_as_exact_as_without(act, synchronised):
    """One normalisation couples samples only through itself, which is put right."""
    norm = layers.BatchNormAct2d(8, act_layer=act, apply_act=act is not None)
    model = around(norm)
    if synchronised:
        convert_sync_batchnorm(model)
        assert type(model[1]) is SyncBatchNormAct2d
    assert_exact(model)
    assert_exact(model.eval())


def test_normalisation_with_activation_equals_the_two_apart():
    """In a chain, where class gradients are approximate, the approximation is the same."""
    fused, apart = (
        around(*(layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, padding=1), *make())))
        for make in (
            lambda: (layers.BatchNormAct2d(8), nn.Identity()),
            lambda: (nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        )
    )
    apart.load_state_dict(fused.state_dict())
    found = [fast_products(m, problem(m, size=7), columns=4)[3] for m in (fused, apart)]
    assert torch.equal(*found)


def test_dropout_between_normalisation_and_activation_is_seen():
    model = around(layers.BatchNormAct2d(8, drop_layer=lambda: nn.Dropout(0.5)))
    (forward, place, weight), seed = problem(model, size=7), torch.Generator().get_state()

    def again():
        torch.set_rng_state(seed)
        return forward()

    table = by_hand((again, place, weight), list(model.parameters()))
    products = fast_products(model, (again, place, weight))[3]
    torch.testing.assert_close(products, table @ table.T, rtol=1e-8, atol=1e-11)


LAYERS = {
    "conv, SAME": lambda: layers.Conv2dSame(8, 8, 3, stride=2, bias=True),
    "depthwise, SAME": lambda: layers.Conv2dSame(8, 8, 4, dilation=2, groups=8),
    "conv, same": lambda: nn.Conv2d(8, 8, 3, padding="same"),
    "conv, reflected": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "standardised conv": lambda: std_conv.StdConv2d(8, 8, 3, stride=2),
    "standardised conv, SAME": lambda: std_conv.StdConv2dSame(8, 8, 3, stride=2, bias=True),
    "scaled conv": lambda: std_conv.ScaledStdConv2d(8, 8, 3, groups=2),
    "scaled conv, SAME": lambda: std_conv.ScaledStdConv2dSame(8, 8, 1, stride=2),
    "group norm, activated": lambda: layers.GroupNormAct(8, 2),
    "layer norm, activated": lambda: layers.LayerNormAct2d(8),
    "layer norm": lambda: layers.LayerNorm2d(8),
    "root mean square": lambda: layers.RmsNorm2d(8),
    "evolved": lambda: evo_norm.EvoNorm2dS0(8, groups=2),
    "filter response": lambda: filter_response_norm.FilterResponseNormTlu2d(8),
    "global response": lambda: grn.GlobalResponseNorm(8, channels_last=False),
    "scale": lambda: layers.LayerScale2d(8, 0.1),
    "scale of the last dimension": lambda: Channels(layers.LayerScale(8, 0.1)),
    "slope": lambda: nn.PReLU(8),
    "linear": lambda: Channels(layers.Linear(8, 8)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_treat_samples_independently_are_exact(kind):
    assert_exact(around(LAYERS[kind](), nn.Tanh()))


@pytest.mark.parametrize("columns", [4, 1])
def test_columns_under_same_padding_are_those_of_the_weight(columns):
    """Sampled columns of a layer that pads by itself are those of one that is padded before."""
    own = around(layers.Conv2dSame(8, 8, 3, stride=2), nn.Tanh())
    by_hand_ = around(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh())
    for a, b in zip(by_hand_.parameters(), own.parameters(), strict=True):
        a.data.copy_(b)
    found = [fast_products(m, problem(m, size=8), columns=columns)[3] for m in (own, by_hand_)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "layer",
    [
        evo_norm.EvoNorm2dB0(8),  # normalises by the batch
        layers.LayerScale2d(8, inplace=True),  # its input is gone
        layers.GroupNormAct(8, 2, drop_layer=nn.Dropout),  # another draw would be another loss
    ],
)
def test_layers_that_cannot_be_run_alone_have_no_rule(layer):
    assert rule_of(layer) is None


NETWORKS = {
    "tf_mobilenetv3_small_minimal_100": ("blocks.3", {}),
    "mobilenetv3_small_050": ("blocks.5", {}),
    "regnety_002": ("s4.b7", {}),
    "resnetv2_18": ("stages.3.blocks.1", {"channels": (8, 8, 16, 16)}),
    "densenet121": ("features.denseblock4", {"block_config": (1, 1, 1, 2)}),
    "convnext_atto": ("stages.3.blocks.1", {}),
    "convnextv2_atto": ("stages.3.blocks.1", {}),
    "swin_tiny_patch4_window7_224": (
        "layers.1",
        {
            "img_size": 32,
            "window_size": 4,
            "depths": (1, 2),
            "embed_dim": 16,
            "num_heads": (1, 2),
            "drop_path_rate": 0.0,
        },
    ),
    "vit_tiny_patch16_224": ("blocks.1", {"img_size": 32, "depth": 2, "init_values": 0.1}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm_are_exact_in_evaluation_mode(name):
    """Only batch statistics make class gradients approximate where all columns are used."""
    torch.manual_seed(0)
    last, options = NETWORKS[name]
    model = timm.create_model(name, num_classes=CLASSES, **options).eval()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    assert_exact(model, 32, list(model.get_submodule(last).parameters()))


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith(("tf_", "mobile", "regnet"))])
def test_networks_with_fused_normalisation_are_near_exact_in_training(name):
    torch.manual_seed(0)
    last, options = NETWORKS[name]
    model = timm.create_model(name, num_classes=CLASSES, **options).train()
    part, task = list(model.get_submodule(last).parameters()), problem(model, size=32)
    exact = by_hand(task, part)
    exact = exact @ exact.T
    products = fast_products(model, task, part)[3]
    torch.testing.assert_close(products[-1, -1], exact[-1, -1])
    cosine = torch.nn.functional.cosine_similarity(products.flatten(), exact.flatten(), dim=0)
    assert cosine > 0.9


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_minimal_100", "regnety_002"])
def test_alike_layers_taken_together_give_the_products_of_each(name):
    """What a GPU does, to launch fewer kernels."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).train()
    part = list(model.get_submodule("s4" if name.startswith("reg") else "blocks.4").parameters())
    (forward, place, weight), products = problem(model, size=32), []
    for grouped in (False, True):
        engine = Engine(model, part, 4)
        engine.grouped = grouped
        with engine.recording():
            loss = forward()
        one = Pass(forward, place, weight, weight, loss=loss)
        assert engine.supports_fast(one), engine.problem
        products.append(engine.fast([one], CLASSES, [], additive=True)[1])
    torch.testing.assert_close(products[1], products[0], rtol=1e-8, atol=1e-14)


def test_weights_used_without_a_call_of_their_layer_are_refused():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
            self.idle = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.used(x), self.unused.weight)

    model = around(Channels(Tied()))
    forward, place, weight = problem(model, size=7)
    engine = Engine(model, model.parameters())
    assert not engine.supports_fast(Pass(forward, place, weight, weight))
    assert "1.layer.unused (Linear) are used without calling it" in str(engine.problem)

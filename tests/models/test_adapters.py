from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ltbench.class_gradients.engine import Engine, Pass
from ltbench.config import validation
from ltbench.config.adapters import Adapters
from ltbench.config.optim import Optim
from ltbench.config.recipe import Choice, Stage
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods.base import Batch, Progress
from ltbench.methods.lift import LIFT
from ltbench.models.adapters import (
    AdaptFormer,
    LowRank,
    adapters_in,
    add_adapters,
    default_rank,
    is_adapter,
    merged,
    without_adapters,
)
from ltbench.models.backbone import Backbone, create_backbone
from ltbench.models.heads import CosineHead
from ltbench.train.freezing import freeze

F64 = torch.float64
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}


def vit(kind: str | None = None, seed: int = 0, **options) -> Backbone:
    torch.manual_seed(seed)
    adapters = None if kind is None else {"name": kind, "width": 3, **options}
    return create_backbone("test_vit", adapters=adapters, **TINY)


def shaken(net: nn.Module, seed: int = 3) -> nn.Module:
    """Adapters away from their zero start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_adapter(name):
                p += 0.3 * torch.randn(p.shape, generator=generator).to(p)
    return net


def test_default_width(vector):
    v = vector("lift_bottleneck")
    for blocks in v["inputs"]["blocks"]:
        found = [default_rank(c, blocks) for c in v["inputs"]["classes"]]
        assert found == v["expected"][str(blocks)]
    assert default_rank(1000, 12, divisor=4) == 16


def test_lora(vector):
    v = vector("lift_lora")
    low = LowRank(6, v["params"]["rank"]).double()
    down, up, x = (torch.tensor(v["inputs"][k], dtype=F64) for k in ("down", "up", "x"))
    with torch.no_grad():
        low.down.weight.copy_(down.T)
        low.up.weight.copy_(up.T)
    expected = torch.tensor(v["expected"], dtype=F64)
    torch.testing.assert_close(low(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(x @ low.matrix().T, expected, atol=1e-10, rtol=0)


OF_TIMM = {
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "ln_pre": "norm_pre",
    "ln_post": "norm",
    "transformer.resblocks": "blocks",
    "conv1": "patch_embed.proj",
}
OF_OURS = {"adaptformer_list": "blocks", "down_proj": "down", "up_proj": "up", "ln.": "norm."}


def clip_of(v) -> Backbone:
    """The vector's network in timm, without adapters."""
    p = v["params"]
    net = VisionTransformer(
        img_size=4,
        patch_size=p["patch"],
        embed_dim=p["width"],
        depth=p["blocks"],
        num_heads=p["heads"],
        num_classes=0,
        pre_norm=True,
        act_layer=QuickGELU,
        norm_layer=lambda width, **more: nn.LayerNorm(width, eps=1e-5, **more),
    ).double()
    state = {}
    for name, value in v["inputs"]["clip"].items():
        tensor = torch.tensor(value, dtype=F64)
        if name == "class_embedding":
            state["cls_token"] = tensor[None, None]
        elif name == "positional_embedding":
            state["pos_embed"] = tensor[None]
        elif name != "proj":
            for old, new in OF_TIMM.items():
                name = name.replace(old, new)
            state[name] = tensor
    net.load_state_dict(state)
    return Backbone(net)


def test_lift_network(vector):
    v = vector("lift_network")
    backbone = clip_of(v)
    images = torch.tensor(v["inputs"]["images"], dtype=F64)
    labels = torch.tensor(v["inputs"]["labels"])
    expected = {k: torch.tensor(x, dtype=F64) for k, x in v["expected"].items()}
    torch.testing.assert_close(backbone(images), expected["plain_features"], atol=1e-10, rtol=0)
    choice = Adapters(name="adaptformer", width=v["params"]["bottleneck"])
    assert add_adapters(backbone.net, choice, None) == 2
    torch.testing.assert_close(backbone(images), expected["plain_features"], atol=1e-10, rtol=0)
    given = {}
    for name, value in v["inputs"]["adapters"].items():
        for old, new in OF_OURS.items():
            name = name.replace(old, new)
        first, number, rest = name.split(".", 2)
        rest = "scale.weight" if rest == "scale" else rest
        given[f"{first}.{number}.adapter.{rest}"] = torch.tensor(value, dtype=F64)
    state = backbone.net.state_dict()
    assert {n for n in state if is_adapter(n)} == set(given)
    backbone.net.load_state_dict({**state, **given})
    counts = tuple(v["inputs"]["counts"])
    info = DatasetInfo("toy", counts, tuple(map(str, range(len(counts)))))
    config = validation.build_options("METHODS", "lift", {"scale": v["params"]["scale"]})
    method = LIFT(config, backbone, info).double()
    with torch.no_grad():
        method.head.weight.copy_(torch.tensor(v["inputs"]["head"], dtype=F64).T)
    torch.testing.assert_close(backbone(images), expected["features"], atol=1e-10, rtol=0)
    torch.testing.assert_close(method.predict(images), expected["logits"], atol=1e-10, rtol=0)
    freeze(method, stage("lift"))
    batch = Batch((images,), labels, torch.arange(len(labels)))
    loss = method.loss(batch, Progress(0, 0, 0, 1, 0)).rows.mean()
    torch.testing.assert_close(loss, expected["loss"], atol=1e-10, rtol=0)
    loss.backward()
    blocks = backbone.net.blocks
    found = {
        "grad_head": method.head.weight.grad.T,
        "grad_down_0": blocks[0].adapter.down.weight.grad,
        "grad_scale_1": blocks[1].adapter.scale.weight.grad,
    }
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-10, rtol=0)
    frozen = [p.grad is None for n, p in backbone.named_parameters() if not is_adapter(n)]
    assert all(frozen)


def stage(name: str, **fields) -> Stage:
    return Stage(
        method=Choice(name, validation.build_options("METHODS", name, {})),
        epochs=1,
        batch_size=8,
        optim=Optim(lr=0.1),
        sampler=Choice("instance", validation.build_options("SAMPLERS", "instance", {})),
        update=Choice("plain", validation.build_options("UPDATES", "plain", {})),
        **fields,
    )


@pytest.mark.parametrize("kind", ["adaptformer", "lora"])
def test_zero_start_changes_nothing_and_names_stay(kind):
    plain, adapted = vit().eval(), vit(kind).eval()
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(plain(x), adapted(x))
    names = set(plain.net.state_dict())
    own = adapted.net.state_dict()
    assert set(without_adapters(own)) == names
    assert all(torch.equal(own[n], t) for n, t in plain.net.state_dict().items())
    assert adapted.stages == plain.stages
    assert len(adapters_in(adapted.net)) == 4
    last = {id(p) for p in adapted.parameters_of("stage4")}
    added = {n for n, p in adapted.named_parameters() if id(p) in last and is_adapter(n)}
    assert added
    assert all(".blocks.3." in n for n in added)
    assert not torch.equal(shaken(adapted)(x), plain(x))
    again = copy.deepcopy(adapted)
    assert torch.equal(again(x), adapted(x))


def test_initial_weights():
    torch.manual_seed(0)
    normal, uniform = AdaptFormer(768, 256), AdaptFormer(768, 256, uniform=True)
    for one in (normal, uniform):
        assert one.down.weight.std().item() == pytest.approx((3 * 768) ** -0.5, rel=0.02)
        assert not one.up.weight.any()
        assert not one.down.bias.any()
    bound = 768**-0.5
    assert uniform.down.weight.abs().max() <= bound < normal.down.weight.abs().max()
    low = LowRank(768, 16)
    assert low.down.weight.abs().max().item() == pytest.approx(16**-0.5, rel=0.01)


@pytest.mark.parametrize("kind", ["adaptformer", "lora"])
def test_only_adapters_and_classifier_are_trained(kind):
    info = DatasetInfo("toy", (6, 4, 2), ("a", "b", "c"))
    config = validation.build_options("METHODS", "lift", {})
    method = LIFT(config, vit(kind), info)
    freeze(method, stage("lift"))
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in method.named_parameters() if is_adapter(n)} | {"head.weight"}
    freeze(method, stage("lift", but=("adapter", "stage4")))
    assert method.backbone.net.blocks[3].mlp.fc1.weight.requires_grad
    assert not method.backbone.net.blocks[2].mlp.fc1.weight.requires_grad
    freeze(method, stage("lift", but=()))
    assert [n for n, p in method.named_parameters() if p.requires_grad] == ["head.weight"]
    bare = LIFT(config, vit(), info)
    freeze(bare, stage("lift"))  # by default the classifier alone
    assert [n for n, p in bare.named_parameters() if p.requires_grad] == ["head.weight"]
    with pytest.raises(UserError, match=r"nothing is called `adapter`; the backbone has no adap"):
        freeze(bare, stage("lift", but=("adapter",)))


@pytest.mark.parametrize("kind", ["adaptformer", "lora"])
@pytest.mark.parametrize("bf16", [False, True])
def test_class_gradients_agree_with_autograd(kind, bf16):
    """The fast engine sums gradients of adapters by class exactly: nothing couples samples."""
    info = DatasetInfo("toy", (6, 4, 2), ("a", "b", "c"))
    config = validation.build_options("METHODS", "lift", {"scale": 5.0})
    kind_of = torch.float32 if bf16 else torch.float64
    method = LIFT(config, shaken(vit(kind)), info).to(kind_of)
    freeze(method, stage("lift"))
    x = torch.randn(9, 3, 16, 16, dtype=kind_of)
    y = torch.tensor([0, 0, 1, 2, 1, 0, 2, 1, 0])
    batch, at = Batch((x,), y, torch.arange(9)), Progress(0, 0, 0, 1, 0)
    part = [p for p in method.parameters() if p.requires_grad]
    weight = torch.full((9,), 1 / 9, dtype=kind_of)

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return method.loss(batch, at).rows, None

    engine = Engine(method, part, columns=None)
    one = Pass(forward, y, weight, weight)
    assert engine.supports_fast(one), engine.problem
    _, found = engine.sampled(one, 3, part, additive=True)
    assert len(found) == len(part)
    for k in range(3):
        rows = forward()[0]
        exact = torch.autograd.grad((rows * weight * (y == k)).sum(), part)
        scale = max(g.abs().max().item() for g in exact)
        for rows_of, g in zip(found, exact, strict=True):
            got = rows_of.rows[k].view(g.shape).to(g)
            tolerance = 2e-2 * scale if bf16 else 1e-12
            torch.testing.assert_close(got, g, atol=tolerance, rtol=0)


def test_lora_is_merged_into_the_encoder():
    plain, adapted = vit().eval(), shaken(vit("lora")).eval()
    x = torch.randn(3, 3, 16, 16)
    whole = merged(adapted)
    assert list(whole.net.state_dict()) == list(plain.net.state_dict())
    torch.testing.assert_close(whole(x), adapted(x), atol=1e-5, rtol=1e-5)
    assert adapters_in(adapted.net)  # the original is as it was
    with pytest.raises(UserError, match="adaptformer are not linear"):
        merged(vit("adaptformer"))


def test_encoder_weights_fit_with_and_without_adapters(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = create_backbone("test_vit", **TINY)
    save_file(source.net.state_dict(), tmp_path / "encoder.safetensors")
    loaded = create_backbone(
        "test_vit",
        weights=str(tmp_path / "encoder.safetensors"),
        adapters="lora",
        classes=9,
        **TINY,
    )
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.eval()(x), source.eval()(x))
    shaken(loaded)
    save_file(loaded.net.state_dict(), tmp_path / "adapted.safetensors")
    again = create_backbone(
        "test_vit",
        weights=str(tmp_path / "adapted.safetensors"),
        adapters="lora",
        classes=9,
        **TINY,
    )
    assert torch.equal(again.eval()(x), loaded.eval()(x))
    with pytest.raises(UserError, match=r"unknown `blocks\.0\.attn\.qkv\.adapter"):
        create_backbone("test_vit", weights=str(tmp_path / "adapted.safetensors"), **TINY)


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="required a vision transformer") as error:
        create_backbone("resnet20_cifar", adapters="adaptformer", classes=10)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="number of classes, which is not known here; give a width"):
        create_backbone("test_vit", adapters="lora", **TINY)
    with pytest.raises(UserError, match=r"adapters.*name.*found 'prompt'"):
        create_backbone("test_vit", adapters="prompt", **TINY)
    with pytest.raises(UserError, match="init is an option of `adaptformer`"):
        create_backbone("test_vit", adapters={"name": "lora", "init": "kaiming_uniform"}, **TINY)


def test_points_of_a_cosine_head():
    head = CosineHead(4, 3)
    rows = torch.randn(3, 4).double() * 7
    head.point(rows)
    torch.testing.assert_close(head.weight.T, nn.functional.normalize(rows, dim=1).float())
    with pytest.raises(UserError, match=r"required \[3, 4\]"):
        head.point(rows.T)
    with pytest.raises(UserError, match="that of class 1 is zero or not finite"):
        head.point(rows * torch.tensor([[1.0], [0.0], [1.0]]))

"""Every family, rebuilt from a network of ours, comes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ltbench
from ltbench.errors import UserError
from ltbench.importing import orders
from ltbench.importing.importer import Imported, Release, import_release
from tests.importing.theirs import (
    appended,
    below,
    extra,
    foreign,
    head,
    logits,
    made,
    module_,
    net,
    numbers,
    permuted,
    saved,
    tail,
    under,
    without_counters,
)

NARROW = "backbone.args.channels=[8,16,24,32]"
NARROW_X = "backbone.args.channels=[16,16,32,32]"


def imported(path: Path, recipe: str, tmp_path: Path, *words: str, **more: Any) -> Imported:
    found = import_release(Release(path, recipe, words=words, **more), tmp_path / "out")
    assert found.record is None  # no data were given
    return found


def same(found: Imported, method: Any, side: int = 32) -> None:
    """The imported model and the one loaded from its folder have the logits of the original."""
    wanted = logits(method, side)
    assert torch.equal(logits(found.method, side), wanted)
    assert torch.equal(logits(ltbench.load(found.folder), side), wanted)


@pytest.mark.parametrize("legacy", [False, True])
def test_ldam(tmp_path, legacy):
    method = made("ldam_drw_cifar10")
    state = {**net(method), "linear.weight": head(method)["weight"]}
    best = torch.tensor(77.03)
    content = {**extra(best_acc1=best), "state_dict": module_(without_counters(state))}
    path = saved(tmp_path / "ckpt.best.pth.tar", content, legacy)
    found = imported(path, "ldam_drw_cifar10", tmp_path)
    assert (found.facts.family, found.facts.scale, found.facts.epoch) == ("ldam", 30, 200)
    assert found.facts.chosen_on_test == "yes"
    assert logits(found.method).shape == (3, 10)
    same_but_counters = {k: v for k, v in found.method.state_dict().items() if "num_batches" in k}
    assert all(not v.any() for v in same_but_counters.values())
    same(found, method)


def test_a_linear_classifier_and_a_bare_state_dict(tmp_path):
    method = made("ce_cifar10")
    state = {**net(method), **under(head(method), "linear.")}
    found = imported(saved(tmp_path / "last.pth", module_(state)), "ce_cifar10", tmp_path)
    assert found.facts.scale is None
    same(found, method)


def test_widths_and_depth_follow_from_the_shapes(tmp_path):
    method = made("ce_cifar10", "backbone=resnet20_cifar", "backbone.args.widths=[8,16,24]")
    path = saved(tmp_path / "a.pth", {**net(method), **under(head(method), "linear.")})
    found = imported(path, "ce_cifar10", tmp_path)
    assert found.network.name == "resnet20_cifar"
    assert found.network.args == {"widths": [8, 16, 24]}
    same(found, method)


def test_option_b_shortcuts(tmp_path):
    method = made("ce_cifar10", "backbone.args.shortcut=projection")
    path = saved(tmp_path / "a.pth", {**net(method), **under(head(method), "linear.")})
    found = imported(path, "ce_cifar10", tmp_path)
    assert found.network.args == {"shortcut": "projection"}
    same(found, method)


@pytest.mark.parametrize("stage", [1, 2])
def test_mislas(tmp_path, stage):
    method = made("mislas_cifar10")
    if stage == 1:
        torch.nn.init.ones_(method.head.scale)
    content = {
        "epoch": 9,
        "state_dict_model": module_(net(method)),
        "state_dict_classifier": under(head(method, "head.head."), "module.fc."),
        **numbers(),
    }
    if stage == 2:
        content["state_dict_lws_model"] = {"learned_norm": method.head.scale[None].detach()}
    found = imported(saved(tmp_path / "model_best.pth.tar", content), "mislas_cifar10", tmp_path)
    assert (found.facts.family, found.facts.class_order) == ("mislas", "official")
    same(found, method)


def test_mislas_on_large_sets_has_its_classes_by_count(tmp_path):
    method = made("mislas_imagenet_lt", NARROW)
    order = orders.stored("imagenet_lt_descending")
    scale = method.head.scale.detach()[order]
    content = {
        "state_dict_model": module_(net(method)),
        "state_dict_classifier": under(permuted(head(method, "head.head."), order), "fc."),
        "state_dict_lws_model": {"learned_norm": scale[None]},
    }
    path = saved(tmp_path / "a.pth", content)
    found = imported(path, "mislas_imagenet_lt", tmp_path)
    assert found.facts.class_order == "by-count"
    assert found.network.args == {"channels": [8, 16, 24, 32]}
    same(found, method, 64)
    other = imported(path, "mislas_imagenet_lt", tmp_path, classes="official")
    assert not torch.equal(logits(other.method, 64), logits(method, 64))


def test_the_block_of_places_is_the_last_one_of_the_network(tmp_path):
    method = made("mislas_places_lt", "backbone=resnet50", NARROW)
    order = orders.stored("places_lt_descending")
    state = net(method)
    block = below(state, "layer4.2.")
    scale = method.head.scale.detach()[order]
    content = {
        "state_dict_model": {
            **{k: v for k, v in state.items() if not k.startswith("layer4.2.")},
            "fc.weight": torch.zeros(3, 3),  # unused
        },
        "state_dict_block": module_(block),
        "state_dict_classifier": under(permuted(head(method, "head.head."), order), "fc."),
        "state_dict_lws_model": {"learned_norm": scale[None]},
    }
    found = imported(saved(tmp_path / "a.pth", content), "mislas_places_lt", tmp_path)
    same(found, method, 64)


def test_gcl_in_two_files(tmp_path):
    method = made("gcl_cifar10")
    first = {**net(method), "linear.weight": torch.randn(64, 10)}
    one = saved(tmp_path / "ckpt.best.pth.tar", {"state_dict": first})
    two = saved(tmp_path / "stage2.pth.tar", {"state_dict": {"weight": head(method)["weight"]}})
    found = imported(one, "gcl_cifar10", tmp_path, classifier=two)
    assert found.facts.classifier_sha256
    assert found.facts.scale == 20
    same(found, method)
    with pytest.raises(UserError, match=r"holds a classifier only.*classifier=THIS_FILE"):
        imported(two, "gcl_cifar10", tmp_path)


def test_gcl_on_places(tmp_path):
    method = made("gcl_places_lt", "backbone=resnet50", NARROW)
    order = orders.stored("places_lt_descending")
    state = net(method)
    content = {
        "model_state_dict": {k: v for k, v in state.items() if not k.startswith("layer4.2.")},
        "state_dict_block": below(state, "layer4.2."),
        "classifier_state_dict": permuted(head(method), order, columns=True),
    }
    found = imported(saved(tmp_path / "a.pth", content), "gcl_places_lt", tmp_path)
    assert found.facts.class_order == "by-count"
    same(found, method, 64)


@pytest.mark.parametrize("recipe", ["crt_imagenet_lt", "lws_imagenet_lt", "tau_norm_imagenet_lt"])
def test_decoupling(tmp_path, recipe):
    method = made(recipe, NARROW_X)
    own = head(method)
    if "lws" in recipe:
        classifier = {**under(head(method, "head.head."), "module.fc."), "scales": own["scale"]}
    elif "tau" in recipe:
        plain = made("ce_imagenet_lt", NARROW_X)
        classifier = under(head(plain), "module.fc.")
        weight = classifier["module.fc.weight"]
        tau = method.config.tau
        method.head.weight.copy_(weight / weight.norm(dim=1, keepdim=True) ** tau)
    else:
        classifier = under(own, "module.fc.")
    feature = {**net(method), "fc.weight": torch.zeros(2, 2)}
    content = {
        "state_dict_best": {"feat_model": module_(feature), "classifier": classifier},
        "state_dict": {},
        "best_acc": 0.49,
        **numbers(),
    }
    found = imported(saved(tmp_path / "final_model_checkpoint.pth", content), recipe, tmp_path)
    assert (found.facts.family, found.facts.chosen_on_test) == ("decoupling", "no")
    same(found, method, 64)


def test_ltr_codes_on_cifar(tmp_path):
    method = made("balanced_softmax_cifar100_if200")
    content = {
        "state_dict_best": {
            "feat_model": module_(net(method)),
            "classifier": under(head(method), "module.fc."),
        }
    }
    found = imported(saved(tmp_path / "a.pth", content), "balanced_softmax_cifar100", tmp_path)
    assert found.facts.chosen_on_test == "yes"
    same(found, method)


@pytest.mark.parametrize(
    ("recipe", "words", "place"),
    [("bbn_cifar10", (), "layer3.4."), ("bbn_inat", (NARROW,), "layer4.2.")],
)
def test_bbn(tmp_path, recipe, words, place):
    method = made(recipe, *words)
    state = net(method)
    theirs = {k: v for k, v in state.items() if not k.startswith(place)}
    theirs |= under(below(state, place), "cb_block.")
    theirs |= under(below(tail(method, 0), place), "rb_block.")
    content = {
        "state_dict": module_({**under(theirs, "backbone."), **under(head(method), "classifier.")}),
        "scheduler": {},
        **numbers(),
    }
    found = imported(saved(tmp_path / "best_model.pth", content), recipe, tmp_path)
    assert found.facts.family == "bbn"
    same(found, method, 64 if words else 32)


@pytest.mark.parametrize("recipe", ["paco_cifar10", "gpaco_cifar100"])
def test_paco(tmp_path, recipe):
    method = made(recipe)
    body = {**net(method), "fc.0.weight": torch.zeros(64, 64), "linear.weight": torch.zeros(1, 1)}
    state = {
        **under(module_(body), "module.encoder_q."),
        **under(module_(body), "module.encoder_k."),
        **under(head(method), "module.linear."),
        "module.linear_k.weight": torch.zeros(2, 2),
        "module.queue": torch.randn(4, 8),
    }
    path = saved(tmp_path / "moco_ckpt.pth.tar", {**extra(), "state_dict": state})
    found = imported(path, recipe, tmp_path)
    assert (found.facts.family, found.facts.chosen_on_test) == ("paco", "no")
    stored = ltbench.load(found.folder)
    assert not torch.equal(stored.state_dict()["queue"], state["module.queue"])
    same(found, method)


def test_bcl(tmp_path):
    method = made("bcl_cifar10", "stages.0.method.scale=1")
    state = {
        **under(net(method), "encoder."),
        "encoder.fc.weight": torch.zeros(10, 64),
        "fc.weight": head(method)["weight"],
        "head.0.weight": torch.zeros(64, 64),
        "head_fc.0.weight": torch.zeros(64, 64),
    }
    path = saved(tmp_path / "bcl_ckpt.best.pth.tar", {**extra(best_acc1=81.2), "state_dict": state})
    found = imported(path, "bcl_cifar10", tmp_path, scale=1.0)
    assert (found.facts.family, found.facts.scale, found.stated) == ("bcl", 1, {"best_acc1": 81.2})
    same(found, method)


def test_proco_with_its_loss_module(tmp_path):
    method = made("proco_cifar100", "stages.0.method.scale=30")
    state = {**under(net(method), "encoder."), "fc.weight": head(method)["weight"]}
    with foreign() as module:
        content = {"state_dict": module_(state), "criterion_scl": module.Criterion()}
        path = saved(tmp_path / "ckpt.best.pth.tar", content)
    found = imported(path, "proco_cifar100", tmp_path)  # whose classifier is linear by default
    assert any("parse_config.Criterion" in note for note in found.notes)
    same(found, method)


@pytest.mark.parametrize(
    ("recipe", "words", "first", "side"),
    [
        ("ride_cifar100", (), 2, 32),
        ("sade_cifar10", (), 2, 32),
        ("balpoe_cifar100", (), 2, 32),
        ("mdcs_cifar100", (), 2, 32),
        ("dirmixe_cifar100", (), 2, 32),
        ("ride_imagenet_lt", ("backbone.args.channels=[16,16,32,32]",), 3, 64),
    ],
)
def test_experts(tmp_path, recipe, words, first, side):
    method = made(recipe, *words)
    state = net(method)
    late = [f"layer{k}" for k in range(first, 5 if first == 3 else 4)]
    theirs = {k: v for k, v in state.items() if k.partition(".")[0] not in late}
    experts = len(method.head.experts)
    for e in range(experts):
        own = state if e == 0 else tail(method, e - 1)
        for group in late:
            theirs |= under(below(own, f"{group}."), f"{group}s.{e}.")
        theirs[f"linears.{e}.weight"] = head(method, f"head.experts.{e}.")["weight"]
    theirs["expert_help_pred_fc.weight"] = torch.zeros(1, 21)
    with foreign() as module:
        content = {
            **extra(monitor_best=0.49),
            "state_dict": module_(under(theirs, "backbone.")),
            "config": module.ConfigParser(),
        }
        path = saved(tmp_path / "model_best.pth", content)
    found = imported(path, recipe, tmp_path)
    assert found.facts.family == "ride"
    assert found.method.config.branch_at == late[0]
    same(found, method, side)


def test_the_number_of_experts_follows_from_the_file(tmp_path):
    method = made("ride_cifar100", "stages.0.method.experts=4")
    state = net(method)
    theirs = {k: v for k, v in state.items() if not k.startswith(("layer2", "layer3"))}
    for e in range(4):
        own = state if e == 0 else tail(method, e - 1)
        theirs |= under(below(own, "layer2."), f"layer2s.{e}.")
        theirs |= under(below(own, "layer3."), f"layer3s.{e}.")
        theirs[f"linears.{e}.weight"] = head(method, f"head.experts.{e}.")["weight"]
    path = saved(tmp_path / "a.pth", {"state_dict": under(theirs, "backbone.")})
    same(imported(path, "ride_cifar100", tmp_path), method)


def test_sade_on_places_has_its_classes_by_count(tmp_path):
    words = ("backbone=resnet50", NARROW)
    method = made("sade_places_lt", *words)
    order = orders.stored("places_lt_descending")
    state = net(method)
    theirs = {k: v for k, v in state.items() if not k.startswith(("layer3", "layer4"))}
    for e in range(3):
        own = state if e == 0 else tail(method, e - 1)
        for group in ("layer3", "layer4"):
            theirs |= under(below(own, f"{group}."), f"{group}s.{e}.")
        theirs[f"linears.{e}.weight"] = head(method, f"head.experts.{e}.")["weight"][:, order]
    path = saved(tmp_path / "a.pth", {"state_dict": under(theirs, "backbone.")})
    found = imported(path, "sade_places_lt", tmp_path)
    assert found.facts.class_order == "by-count"
    same(found, method, 64)


@pytest.mark.parametrize("words", [(), ("stages.0.method.scale=16",)])
def test_ncl(tmp_path, words):
    method = made("ncl_cifar100", *words)
    state = {}
    for e in range(3):
        state |= under(net(method) if e == 0 else tail(method, e - 1), f"backbone.{e}.")
        own = head(method, f"head.experts.{e}.")
        weight = own["weight"].T if words else own["weight"]
        state |= {f"classifier_ce.{e}.weight": weight, f"classifier_ce.{e}.bias": own["bias"]}
        state[f"classifier.{e}.weight"] = torch.zeros(128, 64)  # MoCo's projection
    path = saved(tmp_path / "best_ensemble_model.pth", {"state_dict": module_(state), **numbers()})
    found = imported(path, "ncl_cifar100", tmp_path, *words)
    assert found.facts.family == "ncl"
    same(found, method)


def test_reslt_on_cifar(tmp_path):
    method = made("reslt_cifar10")
    own = head(method)
    state = {**under(net(method), "model."), **under(below(own, "classifier."), "linear.")}
    for k, letter in enumerate("HMT"):
        state |= under(below(own, f"block.{k}."), f"BN{letter}.")
    found = imported(saved(tmp_path / "a_best.pth", module_(state)), "reslt_cifar10", tmp_path)
    assert found.facts.class_order == "official"
    same(found, method)


def test_reslt_on_large_sets_has_its_rarest_class_first(tmp_path):
    method = made("reslt_imagenet_lt", NARROW_X)
    order = orders.stored("imagenet_lt_ascending")
    own = head(method)
    state = {
        **net(method),
        **under(below(own, "block."), "finalBlock."),
        **under(permuted(below(own, "classifier."), order), "fc."),
    }
    path = saved(tmp_path / "model_best.pth.tar", {**extra(), "state_dict": module_(state)})
    found = imported(path, "reslt_imagenet_lt", tmp_path)
    assert (found.facts.family, found.facts.class_order) == ("reslt", "by-count-ascending")
    same(found, method, 64)


def test_m2m_renumbers_channels(tmp_path):
    method = made("m2m_cifar10")
    theirs = appended({**net(method), **under(head(method), "fc.")})
    content = {"net": theirs, "acc": 78.1, "epoch": 199, "rng_state": torch.zeros(5)}
    found = imported(saved(tmp_path / "a.t7", content, legacy=True), "m2m_cifar10", tmp_path)
    assert (found.facts.family, found.facts.chosen_on_test) == ("m2m", "no")
    same(found, method)


def test_glmc_four_times_as_wide(tmp_path):
    method = made("glmc_cifar100", "backbone.args.widths=[64,128,256]")
    state = {
        **net(method),
        **under(head(method), "fc_cb."),
        "fc.weight": torch.zeros(100, 256),
        "fc.bias": torch.zeros(100),
        "projection_head.0.weight": torch.zeros(128, 256),
        "contrast_head.0.weight": torch.zeros(128, 128),
    }
    found = imported(saved(tmp_path / "a.pth", {"state_dict": state}), "glmc_cifar100", tmp_path)
    assert found.network.args == {"widths": [64, 128, 256]}
    same(found, method)


def test_weight_balancing(tmp_path):
    method = made("weight_balancing_cifar100", "backbone.args.channels=[8,16,24,32]")
    state = {**net(method), **under(head(method), "fc.")}
    path = saved(tmp_path / "a_best.paramOnly", under(state, "encoder."))
    found = imported(path, "weight_balancing_cifar100", tmp_path)
    assert found.facts.family == "weight_balancing"
    same(found, method)


def test_shike(tmp_path):
    method = made("shike_cifar100")
    state, own = net(method), method.state_dict()
    theirs = {k: v for k, v in state.items() if not k.startswith("layer3.")}
    for e in range(3):
        tail_ = state if e == 0 else tail(method, e - 1)
        theirs |= under(below(tail_, "layer3."), f"layer3s.{e}.")
        theirs[f"rt_classifiers.{e}.weight"] = head(method, f"head.experts.{e}.")["weight"]
        theirs[f"classifiers.{e}.weight"] = torch.zeros(64, 100)
        for name, tensor in below(own, f"branches.shallow.{e}.").items():
            index, kind = name.split(".")
            step, layer = {"0": (0, 0), "1": (0, 1), "3": (1, 0), "4": (1, 1)}[index]
            theirs[f"shallow_exps.{e}.convs.StridedConv{step}.conv.{layer}.{kind}"] = tensor
    path = saved(tmp_path / "ckp_E_a.pth.tar", {**extra(), "state_dict": theirs})
    found = imported(path, "shike_cifar100", tmp_path)
    assert found.facts.family == "shike"
    same(found, method)


@pytest.mark.parametrize("kind", ["adaptformer", "lora"])
def test_lift_keeps_the_encoder_elsewhere(tmp_path, kind):
    small = "backbone.args={depth: 2, embed_dim: 24, num_heads: 2, img_size: 32, patch_size: 8}"
    words = (
        *("backbone.name=vit_tiny_patch16_224", "backbone.pretrained=false", small),
        *(f"backbone.adapters={kind}", "backbone.adapters.width=4"),
        *("stages.0.method.init=random", "run.channels_last=false"),
    )
    method = made("lift_cifar100", *words)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "adapter" in name:
                parameter.normal_(std=0.3)
    encoder = {k: v.clone() for k, v in net(method).items() if "adapter" not in k}
    save_file(encoder, tmp_path / "encoder.safetensors")
    tuner = {}
    parts = {"norm": "ln", "down": "down_proj", "up": "up_proj"}
    for name, tensor in net(method).items():
        if "adapter" not in name:
            continue
        _, block, *rest = name.split(".")
        if kind == "lora":
            letter, layer = rest[-3][0], {"down": "A", "up": "B"}[rest[-2]]
            tuner[f"lora_list.{block}.{letter}.lora_{layer}"] = tensor.T
        elif rest[-2] == "scale":
            tuner[f"adaptformer_list.{block}.scale"] = tensor
        else:
            tuner[f"adaptformer_list.{block}.{parts[rest[-2]]}.{rest[-1]}"] = tensor
    content = {"tuner": tuner, "head": {"weight": head(method)["weight"].T}}
    path = saved(tmp_path / "checkpoint.pth.tar", content)
    place = f"backbone.weights={tmp_path / 'encoder.safetensors'}"
    found = imported(path, "lift_cifar100", tmp_path, *words, place)
    assert (found.facts.family, found.facts.scale) == ("lift", 25)
    same(found, method)
    with pytest.raises(UserError, match="adapters and no encoder"):
        imported(path, "lift_cifar100", tmp_path, *words)


def test_torchvision_and_timm(tmp_path):
    method = made("ce_imagenet_lt", "backbone=resnet18", NARROW)
    path = tmp_path / "resnet18.safetensors"
    state = {**net(method), **under(head(method), "fc.")}
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    found = imported(path, "ce_imagenet_lt", tmp_path)
    assert (found.facts.family, found.network.name) == ("ldam", "resnet18")
    same(found, method, 64)


def test_a_whole_pickled_network(tmp_path):
    method = made("ce_cifar10")
    method.backbone.net.linear = torch.nn.Linear(64, 10)
    method.backbone.net.linear.load_state_dict(head(method))
    path = saved(tmp_path / "model.pth", torch.nn.DataParallel(method.backbone.net))
    del method.backbone.net.linear
    found = imported(path, "ce_cifar10", tmp_path)
    assert any("ltbench.models.cifar_resnet" in note for note in found.notes)  # and not imported
    same(found, method)


def refused(path: Path, recipe: str, tmp_path: Path, match: str, **more: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        imported(path, recipe, tmp_path, **more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_networks_are_refused_with_what_differs(tmp_path):
    method = made("ce_cifar10")
    state = {**net(method), **under(head(method), "linear.")}

    def changed(name: str, **more: Any) -> Path:
        return saved(tmp_path / name, {"state_dict": {**state, **more}})

    bias = changed("bias.pth", **{"conv1.bias": torch.zeros(16)})
    refused(bias, "ce_cifar10", tmp_path, "first convolution has a bias")
    down = changed("down.pth", **{"layer2.0.downsample.0.weight": torch.zeros(32, 16, 1, 1)})
    refused(down, "ce_cifar10", tmp_path, "shortcuts have weights")
    squeeze = changed("se.pth", **{"layer2.0.se.weight": torch.zeros(4)})
    refused(squeeze, "ce_cifar10", tmp_path, "it also has `layer2.0.se.weight`")
    fewer = {k: v for k, v in state.items() if not k.startswith("layer3.4.")}
    path = saved(tmp_path / "fewer.pth", fewer)
    refused(path, "ce_cifar10", tmp_path, "groups have 5, 5, 4 blocks")
    late = {**state, "layer1.4.conv1.weight": torch.zeros(32, 16, 3, 3)}  # stride at the end
    path = saved(tmp_path / "late.pth", late)
    refused(path, "ce_cifar10", tmp_path, r"`layer1.4.conv1.weight` has shape \[32, 16, 3, 3\]")
    other = saved(tmp_path / "vgg.pth", {"features.0.weight": torch.zeros(8, 3, 3, 3)})
    refused(other, "ce_cifar10", tmp_path, "no family has these names")


def test_models_of_another_method_or_data_set_are_refused(tmp_path):
    method = made("ldam_drw_cifar10")
    cosine = saved(tmp_path / "a.pth", {**net(method), "linear.weight": head(method)["weight"]})
    refused(cosine, "ce_cifar10", tmp_path, "classifier of the file is cosine.*method is linear")
    refused(cosine, "ldam_drw_cifar100", tmp_path, "file has 10 classes, cifar100_lt has 100")
    refused(cosine, "bbn_cifar10", tmp_path, "classifier of the file|branch")
    refused(cosine, "ride_cifar10", tmp_path, "has 1 classifier, the recipe's method has 3 experts")
    refused(cosine, "reslt_cifar10", tmp_path, "no branches of ResLT")
    refused(cosine, "ldam_drw_cifar10", tmp_path, "expected auto or one of", family="ladm")
    refused(cosine, "ldam_drw_cifar10", tmp_path, "not the file that was expected", sha256="0" * 64)
    broken = {**net(method), "linear.weight": torch.full((64, 10), float("nan"))}
    path = saved(tmp_path / "nan.pth", broken)
    refused(path, "ldam_drw_cifar10", tmp_path, "not finite")


def test_stored_orders_are_those_of_the_old_sort():
    for name, classes in (("imagenet_lt", 1000), ("places_lt", 365), ("inat18", 8142)):
        for way in ("descending", "ascending"):
            order = orders.stored(f"{name}_{way}")
            assert sorted(order.tolist()) == list(range(classes))
    assert orders.labels_of("by-count", "cifar100_lt", 100) is None
    assert orders.labels_of("by-count-ascending", "cifar10_lt", 10).tolist() == [*range(9, -1, -1)]
    with pytest.raises(UserError, match="not for digits_lt"):
        orders.labels_of("by-count", "digits_lt", 10)


def test_stored_orders_sort_the_training_counts():
    from ltbench.importing.checks import _official

    for name in orders.LARGE:
        counts = torch.tensor(_official(name))
        down = counts[orders.stored(f"{name}_descending")]
        up = counts[orders.stored(f"{name}_ascending")]
        assert (down[:-1] >= down[1:]).all()
        assert (up[:-1] <= up[1:]).all()

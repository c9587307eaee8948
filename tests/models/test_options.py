"""Options of networks: what a recipe may set, and the less that a published model may."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ltbench import get_recipe
from ltbench.config.network import ARCHITECTURE, check_args, check_published
from ltbench.errors import UserError
from ltbench.models.backbone import create_backbone

REFUSED: dict[str, Any] = {
    "name": "x",
    "model_name": "x",
    "pretrained": True,
    "weights": "x.safetensors",
    "num_classes": 10,
    "in_chans": 1,
    "features_only": True,
    "feature_cls": "list",
    "out_indices": [1, 2],
    "checkpoint_path": "README.md",
    "pretrained_cfg": {"file": "x"},
    "pretrained_cfg_overlay": {"url": "x"},
    "pretrained_strict": False,
    "pretrained_filter_fn": "x",
    "cache_dir": "x",
    "file": "x",
    "url": "x",
    "hf_hub_id": "a/b",
    "source": "hf-hub",
    "state_dict": "x",
    "scriptable": True,
    "exportable": True,
    "no_jit": True,
    "device": "cuda",
    "drop_rate": 2,
    "drop_path_rate": -0.1,
    "drop_block_rate": True,
    "depth": math.nan,
    "embed_dim": 10**9,
    "act_layer": "../x",
    "norm_layer": "os:system",
    "widths": [[[[1]]]],
    "layers": {"a": 1},
    "channels": [1] * 1000,
    "no name": 1,
    "__class__": object(),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_no_network_takes(key: str) -> None:
    args = {key: REFUSED[key]}
    with pytest.raises(ValueError, match=f"`{key}`"):
        check_args(args)
    with pytest.raises(UserError, match=f"`{key}`") as error:
        check_published({"name": "x", "backbone": {"name": "resnet18", "args": args}}, "a model")
    assert "\n" not in str(error.value)
    recipe = {"name": "resnet20_cifar", "args": args}
    with pytest.raises(UserError, match=r"backbone\.args") as error:
        get_recipe("ce", "data=digits_lt", backbone=recipe)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["checkpoint_path", "cache_dir", "features_only", "num_classes"])
def test_python_calls_are_checked_too(key: str) -> None:
    with pytest.raises(UserError, match=key):
        create_backbone("resnet18", **{key: REFUSED[key]})


def test_what_networks_take() -> None:
    good: dict[str, Any] = {
        "widths": [4, 6, 8], "zero_init_last": True, "drop_path_rate": 0.1, "act_layer": "silu",
        "in_chans": 3, "layers": (2, 2), "global_pool": "", "init_values": None,
    }  # fmt: skip
    assert check_args(good) == good
    check_published({"name": "x", "backbone": {"name": "a.b_1-c", "args": good}}, "a model")
    assert create_backbone("resnet20_cifar", widths=[4, 6, 8], in_chans=3).num_features == 8
    assert create_backbone("resnet18", block_args={"attn_layer": "se"}, layers=[1, 1, 1, 1])
    published = {"name": "resnet18", "args": {"block_args": {"attn_layer": "se"}}}
    with pytest.raises(UserError, match="`block_args` is not an option that a published"):
        check_published({"name": "x", "backbone": published}, "a model")


def test_recipes_may_be_published() -> None:
    used = {}
    for name in [
        "sade_cifar10",
        "sade_inat",
        "disalign_imagenet_lt",
        "ride_inat",
        "mislas_plot_inat",
    ]:
        tree = get_recipe(name).tree()
        check_published(tree, name)
        used |= tree["backbone"]["args"]
    assert used.keys() <= ARCHITECTURE
    assert {"widths", "channels", "zero_init_last"} <= used.keys()


@pytest.mark.parametrize("key", ["name", "backbone"])
@pytest.mark.parametrize(
    "name",
    ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/x", "../x", "..", "/etc", "a b", "", "\x1b[2J", None],
)
def test_published_names_are_plain(key: str, name: Any) -> None:
    tree: dict[str, Any] = {"name": "x", "backbone": {"name": "resnet18"}}
    if key == "name":
        tree["name"] = name
    else:
        tree["backbone"]["name"] = name
    with pytest.raises(UserError, match="is a plain name") as error:
        check_published(tree, "a model")
    assert str(error.value).isprintable()

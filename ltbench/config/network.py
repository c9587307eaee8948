"""Options of networks: those that a recipe may set, and the fewer that a published model may."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ltbench.errors import UserError, did_you_mean

LARGEST = 100_000  # of a number
LONGEST = 200  # items of a list
ELSEWHERE = {  # options of ``create_model`` that a recipe sets in other places
    "name": "backbone.name",
    "model_name": "backbone.name",
    "pretrained": "backbone.pretrained",
    "weights": "backbone.weights",
    "num_classes": "the data set",
}
RATES = {
    "drop_rate", "drop_path_rate", "drop_block_rate", "attn_drop_rate", "proj_drop_rate",
    "pos_drop_rate", "patch_drop_rate",
}  # fmt: skip
_NAMES = """
aa_layer aa_stem_only act_layer attn_act_layer attn_layer attn_mlp_ratio attn_ratio attn_type
avg_down base_dim base_dims base_width block_reduce_first block_type bottle_ratio cardinality
channel_multiplier channels class_token conv_bias conv_init conv_mlp conv_ratio deepen_factor
depth depth_mult depths dim dims distilled down_kernel_size downsample_kernel_size
dynamic_img_pad dynamic_img_size embed_dim embed_dims expand_ratio expansion_ratio fc_norm
ffn_ratio final_norm first_stride global_pool groups growth_rate growth_rates head_bias head_dim
head_hidden_size head_init_scale head_norm head_norm_first hidden_sizes img_size in_chans
init_values initial_chs input_3x3 kernel_size kernel_sizes layer_scale layer_scale_init_value
layers levels ls_init_value memory_efficient mlp_act mlp_bias mlp_layer mlp_ratio mlp_ratios
neck_chans no_embed_class norm_eps norm_layer num_blocks num_features num_heads
num_init_features num_kv_heads num_reg_tokens output_stride pad_type patch_norm patch_size
patch_sizes patch_stride pool_size pos_embed pre_norm preact pretrained_window_sizes proj_bias
qk_dim qk_norm qkv_bias reduction reg_tokens rel_pos_dim rel_pos_type replace_stem_pool
rope_type se_ratio shortcut sr_ratios stem_bias stem_chs stem_kernel_size stem_norm stem_size
stem_stride stem_type stem_width strict_img_size stride strides use_abs_pos use_expand_proj use_grn
use_layer_scale use_pos_embed use_rel_pos use_rope weight_init widen_factor width width_factor
width_mult widths window_ratio window_size window_sizes zero_init_last
"""
ARCHITECTURE = RATES | set(_NAMES.split())
"""Options of the architectures of timm and ltbench that take numbers, flags, names or lists."""
_PLACES = re.compile(
    r"pretrained|^checkpoint|state_dict|cache|file|url|path$|(^|_)dirs?$|folder|repo"
    r"|hub|(^|_)source|(^|_)cfg|config$|overlay|features_only|feature_cls|out_indices|scriptable"
    r"|exportable|no_jit|device|dtype|^args$|^kwargs$|filter_fn"
)
_ARCHITECTURE_TOO = {"pretrained_window_sizes", "block_config"}
_SECRET = re.compile(r"[\w+.-]+://[^/?#\s]*@")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_TEXT = re.compile(r"[\w.+-]{0,40}")


def check_args(args: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a network after a check of names and values.

    Refused are options that another key of a recipe sets, that load files, or that make something
    other than a network with one output, and values other than numbers, flags, short names and
    lists of these.

    Args:
        args: ``backbone.args`` of a recipe.

    Raises:
        ValueError: an option cannot be set, or its value is not of these types.
    """
    for key, value in args.items():
        problem = _problem(key, value)
        if problem:
            raise ValueError(f"`{_cut(key)}` {problem}")
    return args


def check_published(tree: Any, origin: str) -> None:
    """Check what the recipe of a published model says of its name and network.

    Args:
        tree: the recipe as plain data.
        origin: name of the model in messages.

    Raises:
        UserError: the network is loaded from somewhere else, or has an option that is not one of
            ``ARCHITECTURE``.
    """
    if not isinstance(tree, Mapping) or not isinstance(tree.get("backbone"), Mapping):
        raise UserError(f"{origin}: the recipe names no backbone; export the model again")
    name, network = tree.get("name"), tree["backbone"].get("name")
    for key, text in (("name", name), ("backbone.name", network)):
        if not isinstance(text, str) or not _NAME.fullmatch(text) or ".." in text:
            raise UserError(
                f"{origin}: `{key}` of a published model is a plain name of letters, digits and "
                f"_.-, found `{_cut(text)}`"
            )
    args = tree["backbone"].get("args") or {}
    if not isinstance(args, Mapping):
        raise UserError(f"{origin}: `backbone.args` are names with values, found `{_cut(args)}`")
    for key, value in args.items():
        problem = _problem(key, value)
        if key not in ARCHITECTURE:
            hint = did_you_mean(str(key)[:100], ARCHITECTURE)
            problem = f"is not an option that a published model may set{hint}"
        if problem:
            raise UserError(f"{origin}: `backbone.args`: `{_cut(key)}` {problem}")


def secrets_in(node: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of the addresses with a user or a password in plain data."""
    if isinstance(node, str):
        if _SECRET.match(node):
            yield path
    elif isinstance(node, Mapping | list | tuple):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield from secrets_in(value, f"{path}.{key}" if path else str(key))


def _problem(key: Any, value: Any) -> str:
    """Return the problem of an option, or nothing."""
    if not isinstance(key, str) or not key.isidentifier():
        return "is no name of an option"
    if key in ELSEWHERE:
        return f"is set by {ELSEWHERE[key]}; leave it out of backbone.args"
    if key == "in_chans" and (value != 3 or isinstance(value, bool)):
        return f"must be 3, the channels of all images, found {_cut(value)}"
    if _PLACES.search(key) and key not in _ARCHITECTURE_TOO:
        return (
            "is not an option of an architecture; initial weights are given by "
            "backbone.pretrained or backbone.weights"
        )
    if key in RATES and not (_is_number(value) and 0 <= value <= 1):
        return f"must be a number from 0 to 1, found {_cut(value)}"
    if key.endswith("_args") and isinstance(value, dict):  # of a part, e.g. block_args
        value = [*value.keys(), *value.values()]
    if not _is_plain(value):
        return (
            f"must be a number up to {LARGEST:,}, true, false, a short name, or a list of these, "
            f"found {_cut(value)}"
        )
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any, depth: int = 2) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return abs(value) <= LARGEST  # false for NaN
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    few = isinstance(value, list | tuple) and len(value) <= LONGEST
    return few and depth > 0 and all(_is_plain(item, depth - 1) for item in value)


def _cut(value: Any) -> str:
    """Return the beginning of a value as printable text."""
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value)[1:-1] if isinstance(value, str) else ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

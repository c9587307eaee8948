"""Layouts of one network with one classifier."""

from __future__ import annotations

import re
from typing import Any

from ltbench.errors import UserError, visible
from ltbench.importing.layouts.file import (
    ReleasedFile,
    State,
    below,
    find_classifier,
    last_names,
    number_of_features,
    without,
)
from ltbench.importing.layouts.parts import Classifier, Kind, Parts
from ltbench.importing.reading import entries
from ltbench.models.cifar_resnet import renumber_appended

ADAPTER_PARTS = {  # names in LIFT's adapters: ours
    **{f"ln.{kind}": f"norm.{kind}" for kind in ("weight", "bias")},
    **{f"down_proj.{kind}": f"down.{kind}" for kind in ("weight", "bias")},
    **{f"up_proj.{kind}": f"up.{kind}" for kind in ("weight", "bias")},
    "scale": "scale.weight",
    "q.lora_A": "query.down.weight",
    "q.lora_B": "query.up.weight",
    "v.lora_A": "value.down.weight",
    "v.lora_B": "value.up.weight",
}


def ldam(file: ReleasedFile) -> Parts:
    """Return the parts of a plain state dict, whose classifier may be in a second file."""
    state = file.state
    if all(name.startswith("backbone.") for name in state):
        state = below(state, "backbone.")
    heads = [n for n in ("linear", "fc", "classifier") if f"{n}.weight" in state]
    if file.second is not None:
        body = file.load(without(state, *(f"{n}." for n in heads)))
        own = _only_classifier(file.second)
        return Parts(body, (find_classifier(file.second, own, number_of_features(body)),))
    if not heads:
        raise UserError(
            f"{file.checkpoint.path} holds no classifier; GCL's second stage keeps it in a file of "
            "its own: give that as classifier=FILE"
        )
    return _network(file, state, heads[0])


def _only_classifier(file: ReleasedFile) -> State:
    """Return weight and bias of a file that holds nothing else."""
    names = last_names(file.state)
    if len(names) != len(file.state) or not set(names) <= {"weight", "bias"}:
        shown = ", ".join(visible(n, 60) for n in list(file.state)[:3])
        raise UserError(
            f"`classifier`: expected a file with `weight`, and `bias` or not, found {shown} in "
            f"{file.checkpoint.path}"
        )
    return names


def _network(file: ReleasedFile, state: State, head: str, **kinds: Any) -> Parts:
    """Return the parts of a network whose classifier has this name."""
    body = file.load(without(state, f"{head}."))
    own = below(state, f"{head}.")
    return Parts(body, (find_classifier(file, own, number_of_features(body), **kinds),))


def gcl_classifier(file: ReleasedFile) -> Parts:
    """Refuse a classifier without its network."""
    raise UserError(
        f"{file.checkpoint.path} holds a classifier only; GCL's second stage keeps it apart from "
        "the network: give file=BACKBONE_RUN classifier=THIS_FILE"
    )


def mislas(file: ReleasedFile) -> Parts:
    """Return the parts of network, classifier and learned scales in mappings of their own."""
    return _apart(file, "state_dict_model", "state_dict_classifier")


def gcl_places(file: ReleasedFile) -> Parts:
    """Return the parts of network and classifier in mappings of their own."""
    return _apart(file, "model_state_dict", "classifier_state_dict")


def _apart(file: ReleasedFile, model: str, head: str) -> Parts:
    """Return the parts of network and classifier below two keys.

    On Places-LT the last residual block, which alone is trained, has a mapping of its own.
    """
    body = without(file.inside(model), "fc.", "linear.")
    own = last_names(file.inside(head))
    block = file.inside("state_dict_block")
    learned = file.inside("state_dict_lws_model").get("learned_norm")
    if block:
        place = 1 + max(int(n.split(".")[1]) for n in body if n.startswith("layer4."))
        inner = {n.removeprefix("block."): t for n, t in block.items()}
        body.update({f"layer4.{place}.{n}": t for n, t in inner.items()})
    tensors = file.load(body)
    features = number_of_features(tensors)
    classifier = find_classifier(file, own, features, square="linear", scales=learned)
    return Parts(tensors, (classifier,))


def decoupling_key(file: ReleasedFile) -> str:
    """Return the key below which network and classifier lie apart, or nothing."""
    for key in ("state_dict_best", "state_dict"):
        inside = dict(entries(file.outer.get(key)))
        if {"feat_model", "classifier"} <= set(inside):
            return key
    return ""


def decoupling(file: ReleasedFile) -> Parts:
    """Return the parts of ``feat_model`` and ``classifier``, with the learned scales of LWS."""
    key = decoupling_key(file)
    body = file.load(without(file.inside(key, "feat_model"), "fc.", "linear."))
    head = file.inside(key, "classifier")
    if "fc.weight" not in head:
        shown = ", ".join(visible(n, 40) for n in list(head)[:3]) or "nothing"
        raise UserError(
            f"{file.checkpoint.path}: its classifier is no linear one (`fc.weight` is missing, "
            f"found {shown}); LADE's causal classifier is not one of ltbench"
        )
    classifier = find_classifier(
        file,
        below(head, "fc."),
        number_of_features(body),
        square="linear",
        scales=head.get("scales"),
    )
    return Parts(body, (classifier,))


def paco(file: ReleasedFile) -> Parts:
    """Return the parts of an encoder and class centres, without momentum encoder and queue."""
    body = file.load(without(below(file.state, "encoder_q."), "fc.", "linear."))
    own = below(file.state, "linear.")
    head = find_classifier(file, own, number_of_features(body), square="linear")
    return Parts(body, (head,))


def bcl(file: ReleasedFile) -> Parts:
    """Return the parts of an encoder and a cosine classifier, without projections."""
    body = file.load(without(below(file.state, "encoder."), "fc.", "linear."))
    own = below(file.state, "fc.")
    return Parts(body, (find_classifier(file, own, number_of_features(body)),))


def weight_balancing(file: ReleasedFile) -> Parts:
    """Return the parts of an encoder that has the classifier inside."""
    return _network(file, below(file.state, "encoder."), "fc", square="linear")


def glmc(file: ReleasedFile) -> Parts:
    """Return the parts of a network with the classifier of its two that predicts."""
    unused = ("fc.", "fc_cb.", "projection_head.", "contrast_head.")
    body = file.load(without(file.state, *unused))
    own = below(file.state, "fc_cb.")
    return Parts(body, (find_classifier(file, own, number_of_features(body)),))


def m2m(file: ReleasedFile) -> Parts:
    """Return the parts of a network whose shortcuts append channels, which are renumbered."""
    inside = {"conv_a": "conv1", "bn_a": "bn1", "conv_b": "conv2", "bn_b": "bn2"}
    found = {}
    for name, tensor in file.load(file.state).items():
        new = re.sub(r"^conv_1_3x3\.", "conv1.", re.sub(r"^bn_1\.", "bn1.", name))
        new = re.sub(r"^linear\.", "fc.", new)
        if place := re.fullmatch(r"stage_(\d)\.(\d+)\.(\w+)\.(\w+)", name):
            group, block, layer, kind = place.groups()
            new = f"layer{group}.{block}.{inside.get(layer, layer)}.{kind}"
        found[new] = tensor
    try:
        ours = renumber_appended(found)
        weight, bias = ours.pop("fc.weight"), ours.pop("fc.bias", None)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{file.checkpoint.path} is not M2m's ResNet-32: layers are missing"
        ) from error
    return Parts(ours, (Classifier("linear", weight.contiguous(), bias),))


def lift(file: ReleasedFile) -> Parts:
    """Return the parts of adapters and classifier, whose encoder is not in the file."""
    tuner, head = file.inside("tuner"), file.inside("head")
    if "weight" not in head:
        raise UserError(
            f"{file.checkpoint.path}: it has no `head` (LIFT keeps the classifier there)"
        )
    named: State = {}
    for name, stored in tuner.items():
        found = re.fullmatch(r"(adaptformer|lora)_list\.(\d+)\.(.+)", name)
        new = ADAPTER_PARTS.get(found[3]) if found else None
        if found is None or new is None:
            raise UserError(
                f"{file.checkpoint.path}: `{visible(name, 60)}` belongs to no adapter that ltbench "
                "has; those are adaptformer and lora"
            )
        inside = "adapter" if found[1] == "adaptformer" else "attn.qkv.adapter"
        named[f"blocks.{found[2]}.{inside}.{new}"] = stored
    adapters = {n: t.T.contiguous() if ".qkv." in n else t for n, t in file.load(named).items()}
    own = file.load({n: head[n] for n in ("weight", "bias") if n in head})
    bias = own.get("bias")
    kind: Kind = "cosine" if bias is None else "linear"
    return Parts({}, (Classifier(kind, own["weight"], bias),), adapters=adapters)


def disalign(file: ReleasedFile) -> Parts:
    """Refuse a network of cvpods."""
    raise UserError(
        f"{file.checkpoint.path}: it holds a network of cvpods (DisAlign), whose layers are not "
        "those of ltbench"
    )

"""Layouts of released checkpoints: which tensors are backbone, experts and classifier."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ltbench.errors import UserError, did_you_mean, visible
from ltbench.importing.reading import Checkpoint, Stored, entries, loaded, tensors_of
from ltbench.models.cifar_resnet import renumber_appended

Kind = Literal["linear", "cosine", "either"]
State = dict[str, Stored]


@dataclass(frozen=True)
class Classifier:
    """Classifier of a released model.

    Args:
        kind: dot product, or cosine, or what the names do not tell.
        weight: [C, D].
        bias: [C], or ``None``.
        scales: factors of the logits that were learned by class [C], or ``None``.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor | None = None
    scales: Tensor | None = None

    def permuted(self, order: Tensor) -> Classifier:
        """Return the classifier with its classes in another order.

        Args:
            order: label of the class at each position [C].
        """
        where = torch.argsort(order)

        def moved(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows[where].contiguous()

        weight = self.weight[where].contiguous()
        return Classifier(self.kind, weight, moved(self.bias), moved(self.scales))


@dataclass(frozen=True)
class Parts:
    """Released weights by what they are.

    Args:
        body: of the network, without classifier, by the names of the file.
        classifiers: one, or one for each expert or network.
        tails: of each further expert, the weights of its own stages.
        branch_at: first stage that the experts have of their own; ``block`` is the last residual
            block, ``whole`` all of the network.
        block: branches of ResLT by the names of ``ResLTHead.block``.
        fusion: convolutions of inner maps by the names of ``FusedBranches.shallow`` (SHIKE).
        adapters: weights inside the blocks of an encoder that is not in the file (LIFT).
    """

    body: dict[str, Tensor]
    classifiers: tuple[Classifier, ...]
    tails: tuple[dict[str, Tensor], ...] = ()
    branch_at: str = ""
    block: dict[str, Tensor] = field(default_factory=dict)
    fusion: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A file, and a second one with its classifier, with the tensors that lie flat in it.

    Args:
        checkpoint: the file.
        state: tensors by name, ``module.`` removed.
        second: of a file that holds only the classifier.
    """

    checkpoint: Checkpoint
    state: State
    second: Opened | None = None

    @property
    def outer(self) -> Mapping[str, Any]:
        """Names and values at the top of the file."""
        return dict(entries(self.checkpoint.content))

    def has(self, *patterns: str) -> bool:
        """Return whether each pattern fits the beginning of a tensor's name."""
        return all(any(re.match(p, name) for name in self.state) for p in patterns)

    def load(self, state: Mapping[str, Stored]) -> dict[str, Tensor]:
        """Return the content of tensors."""
        return loaded(state, self.checkpoint.path)


@dataclass(frozen=True)
class Family:
    """A layout.

    Args:
        title: methods whose authors' code writes it.
        fits: returns whether a file has it.
        take: returns the parts.
    """

    title: str
    fits: Callable[[Opened], bool]
    take: Callable[[Opened], Parts]


def opened(checkpoint: Checkpoint, second: Checkpoint | None = None) -> Opened:
    """Return a file with the tensors of its model, those of optimizers aside.

    Args:
        checkpoint: the file.
        second: a further file, with the classifier.
    """
    more = None if second is None else opened(second)
    content = checkpoint.content
    outer = dict(entries(content))
    for key in ("state_dict", "net", "model", "model_state"):
        inside = outer.get(key)
        if inside is not None and any(True for _ in tensors_of(inside)):
            content = dict(entries(inside)) if key != "model" else _model(inside)
            break
    return Opened(checkpoint, _named(content), more)


def find_family(file: Opened, asked: str = "auto") -> tuple[str, Parts]:
    """Return the family of a file by its names, and its parts.

    Args:
        file: the file.
        asked: name of the family, or ``auto``.

    Raises:
        UserError: no family has such names, or the family is one that ltbench cannot represent.
    """
    if asked != "auto":
        name = SAME.get(asked, asked)
        if name not in FAMILIES:
            known = sorted({*FAMILIES, *SAME})
            raise UserError(
                f"`family`: expected auto or one of {', '.join(known)}, found "
                f"`{visible(asked, 40)}`{did_you_mean(asked, known)}"
            )
        return name, FAMILIES[name].take(file)
    for name, family in FAMILIES.items():
        if family.fits(file):
            return name, family.take(file)
    shown = ", ".join(visible(n, 60) for n in list(file.state)[:4])
    outer = ", ".join(visible(str(n), 40) for n in list(file.outer)[:6])
    raise UserError(
        f"{file.checkpoint.path}: no family has these names ({outer}; tensors {shown}); known are "
        f"{', '.join(FAMILIES)}: give `family=` if it is one of them"
    )


def _model(inside: Any) -> Any:
    """Return the state dict of a pickled model, or of one that is nested once more."""
    found = dict(entries(inside))
    return found.get("model", found) if isinstance(found.get("model"), Mapping) else inside


def _named(content: Any) -> State:
    """Return tensors by name, every part `module` of a name removed."""
    found: State = {}
    for name, stored in tensors_of(content):
        found[".".join(part for part in name.split(".") if part != "module")] = stored
    return found


def _inside(file: Opened, *keys: str) -> State:
    """Return the tensors of a mapping in the file, which is empty if it is not there."""
    node: Any = file.checkpoint.content
    for key in keys:
        node = dict(entries(node)).get(key)
    return _named(node)


def _below(state: Mapping[str, Stored], prefix: str) -> State:
    """Return the tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _without(state: Mapping[str, Stored], *prefixes: str) -> State:
    return {n: t for n, t in state.items() if not n.startswith(prefixes)}


def _classifier(
    file: Opened,
    state: Mapping[str, Stored],
    features: int,
    *,
    bare: Kind = "linear",
    square: Kind = "cosine",
    scales: Stored | None = None,
) -> Classifier:
    """Return a classifier from its ``weight`` and ``bias``.

    Args:
        file: they are of.
        state: the two tensors.
        features: number of features D.
        bare: kind of a weight [C, D] without bias.
        square: kind of a weight [D, D] without bias.
        scales: factors of the logits.

    Raises:
        UserError: there is no such weight.
    """
    found = file.load({n: t for n, t in state.items() if n in ("weight", "bias")})
    weight, bias = found.get("weight"), found.get("bias")
    if weight is None or weight.dim() != 2 or features not in weight.shape:
        shape = "none" if weight is None else str(list(weight.shape))
        raise UserError(
            f"{file.checkpoint.path}: expected the weight of a classifier on {features} features, "
            f"found {shape}; it is another network"
        )
    by_class = weight.shape[1] == features
    if bias is not None:
        kind: Kind = "linear"
    elif weight.shape[0] == weight.shape[1]:
        kind, by_class = square, square == "linear" or bare == "cosine"
    else:
        kind = bare if by_class else "cosine"
    factors = None if scales is None else file.load({"scales": scales})["scales"].flatten()
    rows = weight if by_class else weight.T.contiguous()
    if bias is not None and (not by_class or len(bias) != len(rows)):
        raise UserError(f"{file.checkpoint.path}: weight and bias of its classifier do not agree")
    return Classifier(kind, rows, bias, factors)


def _features(body: Mapping[str, Tensor]) -> int:
    """Return the number of features of a ResNet: the channels of its last normalisation."""
    last = [n for n in body if n.endswith(("bn2.weight", "bn3.weight", "bn_b.weight"))]
    if not last:
        shown = ", ".join(visible(n, 60) for n in list(body)[:3]) or "nothing"
        raise UserError(f"the file holds no ResNet: its network begins with {shown}")

    def place(name: str) -> tuple[Any, ...]:
        return tuple(int(p) if p.isdecimal() else p for p in re.findall(r"\d+|\D+", name))

    return len(body[max(last, key=place)])


def _single(file: Opened, state: State, head: str, **kinds: Any) -> Parts:
    """Return the parts of one network with a classifier of this name."""
    body = file.load(_without(state, f"{head}."))
    return Parts(body, (_classifier(file, _below(state, f"{head}."), _features(body), **kinds),))


def _ldam(file: Opened) -> Parts:
    state = file.state
    if all(name.startswith("backbone.") for name in state):
        state = _below(state, "backbone.")
    heads = [n for n in ("linear", "fc", "classifier") if f"{n}.weight" in state]
    if file.second is not None:
        body = file.load(_without(state, *(f"{n}." for n in heads)))
        return Parts(body, (_classifier(file.second, _head_only(file.second), _features(body)),))
    if not heads:
        raise UserError(
            f"{file.checkpoint.path} holds no classifier; GCL's second stage keeps it in a file of "
            "its own: give that as classifier=FILE"
        )
    return _single(file, state, heads[0])


def _head_only(file: Opened) -> State:
    """Return weight and bias of a file that holds only a classifier."""
    names = {n.rpartition(".")[2]: t for n, t in file.state.items()}
    if len(names) != len(file.state) or not set(names) <= {"weight", "bias"}:
        shown = ", ".join(visible(n, 60) for n in list(file.state)[:3])
        raise UserError(
            f"`classifier`: expected a file with `weight`, and `bias` or not, found {shown} in "
            f"{file.checkpoint.path}"
        )
    return names


def _alone(file: Opened) -> Parts:
    raise UserError(
        f"{file.checkpoint.path} holds a classifier only; GCL's second stage keeps it apart from "
        "the network: give file=BACKBONE_RUN classifier=THIS_FILE"
    )


def _split(file: Opened, model: str, head: str) -> Parts:
    body = _without(_inside(file, model), "fc.", "linear.")
    own = _inside(file, head)
    block = _inside(file, "state_dict_block")
    learned = _inside(file, "state_dict_lws_model").get("learned_norm")
    if block:
        place = 1 + max(int(n.split(".")[1]) for n in body if n.startswith("layer4."))
        inside = {n.removeprefix("block."): t for n, t in block.items()}
        body.update({f"layer4.{place}.{n}": t for n, t in inside.items()})
    tensors = file.load(body)
    own = {n.rpartition(".")[2]: t for n, t in own.items()}
    classifier = _classifier(file, own, _features(tensors), square="linear", scales=learned)
    return Parts(tensors, (classifier,))


def _mislas(file: Opened) -> Parts:
    return _split(file, "state_dict_model", "state_dict_classifier")


def _gcl_places(file: Opened) -> Parts:
    return _split(file, "model_state_dict", "classifier_state_dict")


def _decoupling_key(file: Opened) -> str:
    """Return the key that holds network and classifier apart, or nothing."""
    for key in ("state_dict_best", "state_dict"):
        inside = dict(entries(file.outer.get(key)))
        if {"feat_model", "classifier"} <= set(inside):
            return key
    return ""


def _decoupling(file: Opened) -> Parts:
    key = _decoupling_key(file)
    body = file.load(_without(_inside(file, key, "feat_model"), "fc.", "linear."))
    head = _inside(file, key, "classifier")
    if "fc.weight" not in head:
        shown = ", ".join(visible(n, 40) for n in list(head)[:3]) or "nothing"
        raise UserError(
            f"{file.checkpoint.path}: its classifier is no linear one (`fc.weight` is missing, "
            f"found {shown}); LADE's causal classifier is not one of ltbench"
        )
    own = _below(head, "fc.")
    kinds: Any = {"square": "linear", "scales": head.get("scales")}
    return Parts(body, (_classifier(file, own, _features(body), **kinds),))


def _bbn(file: Opened) -> Parts:
    state = _below(file.state, "backbone.")
    head = {n.rpartition(".")[2]: t for n, t in _below(file.state, "classifier.").items()}
    shared = _without(state, "cb_block.", "rb_block.")
    group = max(int(m[1]) for n in shared if (m := re.match(r"layer(\d)\.", n)))
    place = 1 + max(int(n.split(".")[1]) for n in shared if n.startswith(f"layer{group}."))
    first, other = (
        file.load({f"layer{group}.{place}.{n}": t for n, t in _below(state, f"{b}_block.").items()})
        for b in ("cb", "rb")
    )
    body = {**file.load(shared), **first}
    if "weight" in head and _features(body) in head["weight"].shape:
        raise UserError(
            f"{file.checkpoint.path}: its classifier is on the features of the shared blocks, of "
            "which the last group has one less than the others (CC-SAM, PLOT); ltbench's CIFAR "
            "ResNets have equal groups"
        )
    classifier = _classifier(file, head, 2 * _features(body), bare="cosine")
    return Parts(body, (classifier,), tails=(other,), branch_at="block")


def _paco(file: Opened) -> Parts:
    body = file.load(_without(_below(file.state, "encoder_q."), "fc.", "linear."))
    head = _classifier(file, _below(file.state, "linear."), _features(body), square="linear")
    return Parts(body, (head,))


def _bcl(file: Opened) -> Parts:
    body = file.load(_without(_below(file.state, "encoder."), "fc.", "linear."))
    return Parts(body, (_classifier(file, _below(file.state, "fc."), _features(body)),))


def _weight_balancing(file: Opened) -> Parts:
    return _single(file, _below(file.state, "encoder."), "fc", square="linear")


def _ride(file: Opened) -> Parts:
    state = _below(file.state, "backbone.") if file.has(r"backbone\.") else file.state
    numbers = sorted({int(m[1]) for n in state if (m := re.match(r"layer\ds\.(\d+)\.", n))})
    split = sorted({m[1] for n in state if (m := re.match(r"(layer\d)s\.\d+\.", n))})
    shared = _without(state, *(f"{g}s." for g in split), "linears.", "expert_help_pred")
    tails = [
        file.load({f"{g}.{n}": t for g in split for n, t in _below(state, f"{g}s.{e}.").items()})
        for e in numbers
    ]
    body = {**file.load(shared), **tails[0]}
    width = _features(body)
    heads = tuple(_classifier(file, _below(state, f"linears.{e}."), width) for e in numbers)
    return Parts(body, heads, tails=tuple(tails[1:]), branch_at=split[0])


def _ncl(file: Opened) -> Parts:
    numbers = sorted({int(m[1]) for n in file.state if (m := re.match(r"backbone\.(\d+)\.", n))})
    name = "classifier_ce" if file.has(r"classifier_ce\.") else "classifier"
    bodies = [file.load(_below(file.state, f"backbone.{e}.")) for e in numbers]
    width = _features(bodies[0])
    own = (_below(file.state, f"{name}.{e}.") for e in numbers)
    heads = [_classifier(file, head, width, bare="cosine") for head in own]
    # The authors' cosine classifier has a bias too, so that its names are those of a linear one.
    heads = [Classifier("either", h.weight, h.bias) if h.bias is not None else h for h in heads]
    tails = tuple(bodies[1:])
    return Parts(bodies[0], tuple(heads), tails=tails, branch_at="whole")


def _shike(file: Opened) -> Parts:
    state = file.state
    numbers = sorted({int(m[1]) for n in state if (m := re.match(r"layer3s\.(\d+)\.", n))})
    heads = "rt_classifiers" if file.has(r"rt_classifiers\.") else "classifiers"
    others = ("layer3s.", "shallow_exps.", "classifiers.", "rt_classifiers.")
    tails = [
        file.load({f"layer3.{n}": t for n, t in _below(state, f"layer3s.{e}.").items()})
        for e in numbers
    ]
    body = {**file.load(_without(state, *others)), **tails[0]}
    found: State = {}
    for name, stored in _below(state, "shallow_exps.").items():
        place = re.fullmatch(r"(\d+)\.convs\.StridedConv(\d)\.conv\.([01])\.(\w+)", name)
        if place is None:
            raise UserError(f"{file.checkpoint.path}: `{visible(name, 60)}` is no part of SHIKE")
        expert, step, layer, kind = place.groups()
        found[f"{expert}.{(0, 3)[min(int(step), 1)] + int(layer)}.{kind}"] = stored
    width = _features(body)
    classifiers = (_classifier(file, _below(state, f"{heads}.{e}."), width) for e in numbers)
    tails_ = tuple(tails[1:])
    return Parts(body, tuple(classifiers), tails_, "layer3", fusion=file.load(found))


def _lift(file: Opened) -> Parts:
    tuner, head = _inside(file, "tuner"), _inside(file, "head")
    if "weight" not in head:
        raise UserError(
            f"{file.checkpoint.path}: it has no `head` (LIFT keeps the classifier there)"
        )
    adapters: State = {}
    for name, stored in tuner.items():
        found = re.fullmatch(r"(adaptformer|lora)_list\.(\d+)\.(.+)", name)
        new = ADAPTER_PARTS.get(found[3]) if found else None
        if found is None or new is None:
            raise UserError(
                f"{file.checkpoint.path}: `{visible(name, 60)}` belongs to no adapter that ltbench "
                "has; those are adaptformer and lora"
            )
        inside = "adapter" if found[1] == "adaptformer" else "attn.qkv.adapter"
        adapters[f"blocks.{found[2]}.{inside}.{new}"] = stored
    loaded_ = file.load(adapters)
    turned = {n: t.T.contiguous() if ".qkv." in n else t for n, t in loaded_.items()}
    weight = file.load({"weight": head["weight"]})["weight"]
    bias = file.load({"bias": head["bias"]})["bias"] if "bias" in head else None
    kind: Kind = "cosine" if bias is None else "linear"
    return Parts({}, (Classifier(kind, weight, bias),), adapters=turned)


def _reslt(file: Opened) -> Parts:
    state = file.state
    small = file.has(r"BNH\.")
    if small:
        norms = [_below(state, f"BN{b}.") for b in "HMT"]
        block = {f"{k}.{n}": t for k, norm in enumerate(norms) for n, t in norm.items()}
        body = _below(state, "model.") if file.has(r"model\.") else state
        body = _without(body, "BNH.", "BNM.", "BNT.", "linear.", "fc.")
        head = _below(state, "linear.") or _below(state, "model.linear.")
    else:
        block = _below(state, "finalBlock.")
        body, head = _without(state, "finalBlock.", "fc."), _below(state, "fc.")
    tensors = file.load(body)
    classifier = _classifier(file, head, _features(tensors), square="linear")
    return Parts(tensors, (classifier,), block=file.load(block))


def _m2m(file: Opened) -> Parts:
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


def _glmc(file: Opened) -> Parts:
    unused = ("fc.", "fc_cb.", "projection_head.", "contrast_head.")
    body = file.load(_without(file.state, *unused))
    return Parts(body, (_classifier(file, _below(file.state, "fc_cb."), _features(body)),))


def _refused(why: str) -> Callable[[Opened], Parts]:
    def take(file: Opened) -> Parts:
        raise UserError(f"{file.checkpoint.path}: {why}")

    return take


def _outer(*keys: str) -> Callable[[Opened], bool]:
    return lambda file: set(keys) <= set(file.outer)


def _names(*patterns: str) -> Callable[[Opened], bool]:
    return lambda file: file.has(*patterns)


FAMILIES: dict[str, Family] = {  # the first that fits is taken
    "mislas": Family(
        "MiSLAS, Difficulty-Net, H2T",
        _outer("state_dict_model", "state_dict_classifier"),
        _mislas,
    ),
    "gcl_places": Family(
        "GCL on Places-LT", _outer("model_state_dict", "classifier_state_dict"), _gcl_places
    ),
    "decoupling": Family(
        "classifier-balancing, LADE, BALMS", lambda file: bool(_decoupling_key(file)), _decoupling
    ),
    "lift": Family("LIFT, LIFT+", _outer("tuner"), _lift),
    "paco": Family("PaCo, GPaCo", _names(r"encoder_q\."), _paco),
    "ncl": Family("NCL", _names(r"backbone\.0\.", r"classifier"), _ncl),
    "bbn": Family("BBN", _names(r"backbone\.cb_block\."), _bbn),
    "shike": Family("SHIKE", _names(r"shallow_exps\.", r"layer3s\."), _shike),
    "ride": Family(
        "RIDE, SADE, BalPoE, MDCS, DirMixE", _names(r"(backbone\.)?layer[23]s\.0\."), _ride
    ),
    "reslt": Family("ResLT", lambda file: file.has(r"BNH\.") or file.has(r"finalBlock\."), _reslt),
    "bcl": Family("BCL, ProCo", _names(r"encoder\.", r"fc\.weight"), _bcl),
    "weight_balancing": Family(
        "weight balancing", _names(r"encoder\.fc\.weight"), _weight_balancing
    ),
    "glmc": Family("GLMC", _names(r"fc_cb\."), _glmc),
    "disalign": Family(
        "DisAlign",
        _names(r"network\.(stem|res2)\."),
        _refused("it holds a network of cvpods (DisAlign), whose layers are not those of ltbench"),
    ),
    "m2m": Family("M2m", _names(r"conv_1_3x3\."), _m2m),
    "gcl_classifier": Family(
        "GCL, second stage", lambda file: set(file.state) <= {"weight", "bias"}, _alone
    ),
    "ldam": Family(
        "LDAM-DRW, GCL, CE, VS, torchvision, timm",
        _names(r"(backbone\.)?conv1\.weight"),
        _ldam,
    ),
}
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
SAME = {  # further names of a layout
    **dict.fromkeys(("difficulty_net", "h2t"), "mislas"),
    **dict.fromkeys(("lade", "balms", "crt", "lws", "tau_norm"), "decoupling"),
    **dict.fromkeys(("sade", "balpoe", "mdcs", "dirmixe"), "ride"),
    **dict.fromkeys(("gcl", "ce", "vs", "rsg", "cmo", "torchvision", "timm"), "ldam"),
    "gpaco": "paco",
    "proco": "bcl",
    "nclpp": "ncl",
    "lift_plus": "lift",
}


def family_names() -> Iterator[str]:
    """Yield the names that ``family=`` takes."""
    yield from ("auto", *FAMILIES, *SAME)

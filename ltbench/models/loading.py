from __future__ import annotations

import contextlib
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ltbench.config.weights import FILE, HUB, Source, find_source, hash_of, identity
from ltbench.digest import JSON_BYTES, read_json
from ltbench.errors import UserError, visible
from ltbench.models.adapters import is_adapter
from ltbench.remote import hub as client

PICKLED = (".pth", ".pt", ".tar", ".ckpt", ".bin")
OURS = "backbone.net."  # prefix of a backbone's tensors in a method
HEADS = {"fc", "linear", "classifier", "head", "heads", "last_linear", "projector", "predictor"}
NESTED = 4  # levels of dictionaries in a file that may hold tensors


@dataclass(frozen=True)
class Weights:
    """Tensors of a source of initial weights.

    Args:
        tensors: by name; names of nested dictionaries are joined by dots.
        sha256: of the file.
        origin: name of the source without places of this machine, e.g. ``resnet50.pth``.
        class_names: of the classifier, if a description beside the file has them.
    """

    tensors: dict[str, Tensor]
    sha256: str
    origin: str
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Origin:
    """Where the weights of a backbone came from.

    Args:
        name: of the network.
        weights: source given by ``backbone.weights``; ``None`` is the public weights of that name.
        args: options of the architecture.
    """

    name: str
    weights: str | None
    args: Mapping[str, Any]


def load_weights(net: nn.Module, source: str | Path) -> None:
    """Load initial weights into a network without classifier.

    Prefixes of wrappers (``module.``, ``state_dict``, ``model``, ``backbone.net.``) are found by
    comparing names; of several complete copies, a moving average (``ema``) is preferred, as in
    timm. A classifier in the file is ignored.

    Args:
        net: a timm network built without classifier.
        source: see ``ltbench.config.weights.find_source``.

    Raises:
        UserError: the weights are missing or damaged, hold more than tensors, or belong to another
            network.
    """
    text = visible(str(source), 200)
    tensors = read_weights(str(source)).tensors
    own = net.state_dict()
    given = _named_like(own, tensors)
    optional = {n for n in own if n.endswith("num_batches_tracked")}  # absent in old files
    if not any(map(is_adapter, given)):  # those of the encoder alone
        optional |= set(filter(is_adapter, own))
    heads = HEADS | _classifier(net)
    shapes = {n: (_shape(own[n]), _shape(given[n])) for n in own if n in given}
    extra = [n for n in given if n not in own and n.partition(".")[0] not in heads]
    first = {n: f" {_shape(own[n])}" for n in own} | {n: f" {_shape(given[n])}" for n in extra}
    problems = [
        _some(
            "has another shape of",
            {
                n: f" (required {required}, found {found})"
                for n, (required, found) in shapes.items()
                if required != found
            },
        ),
        _some("lacks", {n: first[n] for n in own if n not in given and n not in optional}),
        _some("has unknown", {n: first[n] for n in extra}),
    ]
    if any(problems):
        found = ", it ".join(problem for problem in problems if problem)
        raise UserError(
            f"backbone.weights: {text} does not fit {type(net).__name__}: it {found}; "
            "give weights of the same network"
        )
    for name in shapes:
        _check_values(own[name], given[name], f"backbone.weights: `{name}` of {text}")
    net.load_state_dict({**{n: own[n] for n in optional}, **{n: given[n] for n in shapes}})


def load_classifier(model: nn.Module, source: str, class_names: tuple[str, ...]) -> None:
    """Load the classifier of a model of ltbench that was trained on the same classes.

    Otherwise the model keeps its own, and a warning says why.

    Args:
        model: a method with ``backbone``; everything else that is trained is its classifier.
        source: as given to ``load_weights``.
        class_names: of the training data.
    """
    found = read_weights(source)
    own = {n: p for n, p in model.named_parameters() if not n.startswith("backbone.")}
    why = _other_classes(found.class_names, class_names)
    if not why and not any(n.startswith(OURS) for n in found.tensors):
        why = "it is not a model of ltbench"
    for name, parameter in own.items() if not why else ():
        if name not in found.tensors:
            why = f"it has no `{name}`"
        elif found.tensors[name].shape != parameter.shape:
            required, shape = _shape(parameter), _shape(found.tensors[name])
            why = f"`{name}` has shape {shape}, and {required} is required"
        if why:
            break
    if why:
        warnings.warn(
            f"backbone.weights: the classifier of {found.origin} is left out: {why}", stacklevel=2
        )
        return
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found.tensors[name])


def image_projection(origin: Origin | None, width: int) -> Tensor:
    """Return the projection of an encoder's features to the space that it shares with text.

    It is the released classifier of an image-text encoder in timm, ``head.weight``; a file may
    also have OpenAI's and OpenCLIP's ``visual.proj``, which is its transpose.

    Args:
        origin: of the encoder's weights; ``None`` are random ones.
        width: number of features D.

    Returns:
        float32 [E, D].

    Raises:
        UserError: there is no such projection.
    """
    if origin is None:
        raise UserError(
            "a classifier from text needs an encoder trained with text, and this one has random "
            "weights; give backbone.pretrained=true or backbone.weights=FILE"
        )
    if origin.weights is not None:
        place = visible(origin.weights, 200)
        tensors = read_weights(origin.weights).tensors
        found = None if any(n.startswith(OURS) for n in tensors) else _projection(tensors)
    else:
        place = f"the public weights of {origin.name}"
        with client.offline_unless_reachable():
            net: Any = timm.create_model(origin.name, pretrained=True, **origin.args)
        found = _projection({f"head.{n}": t for n, t in net.get_classifier().state_dict().items()})
    if found is None or found.shape[1] != width:
        shape = "none" if found is None else f"one of shape {_shape(found)}"
        raise UserError(
            f"a classifier from text needs the encoder's projection, `head.weight` with {width} "
            f"columns, found {shape} in {place}; take a CLIP encoder, e.g. "
            "vit_base_patch16_clip_quickgelu_224.openai, with the weights as released"
        )
    return found.detach().float()


def _projection(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the first projection among the tensors of an encoder [E, D]."""
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and f".{name}".endswith(".head.weight"):
            return tensor
        if tensor.dim() == 2 and f".{name}".endswith(".visual.proj"):
            return tensor.T
    return None


def describe_weights(source: str) -> str:
    """Return hash and name of initial weights for a record, e.g. ``sha256:... (resnet50.pth)``."""
    place = find_source(source)
    known = identity(source)
    if place.sha256 is not None:
        return f"{known} ({source})"  # of the zoo
    found = _located(place)
    return f"{known} ({_origin(place, found, _facts(found))})"


def read_weights(source: str) -> Weights:
    """Return the tensors that ``backbone.weights`` names, fetched if they are on the Hub.

    Args:
        source: see ``ltbench.config.weights.find_source``.

    Raises:
        UserError: they are missing or damaged, or the file holds more than tensors.
    """
    place = find_source(source)
    path = _located(place)
    digest = hash_of(path)
    facts = _facts(path)
    wanted = place.sha256 or facts.get("sha256") or digest
    if digest != wanted:
        raise UserError(
            f"backbone.weights: {path} is damaged or was replaced: expected SHA-256 "
            f"{visible(str(wanted), 12)}, found {digest[:12]}"
        )
    names = facts.get("class_names")
    return Weights(
        _read(path),
        digest,
        _origin(place, path, facts),
        tuple(map(str, names)) if isinstance(names, list) else None,
    )


def _located(place: Source) -> Path:
    """Return the file of a source, fetched from the Hub unless it is on this machine."""
    if place.file is not None:
        return place.file
    repository, revision = place.repository, place.revision
    inside = f"{place.folder}/" if place.folder else ""
    with client.offline_unless_reachable() as reachable:
        try:
            with contextlib.suppress(client.Missing):
                client.download(repository, f"{inside}config.json", revision, limit=JSON_BYTES)
            return client.download(repository, f"{inside}{FILE}", revision, sha256=place.sha256)
        except client.Missing as error:
            if reachable:
                raise
            raise UserError(
                f"backbone.weights: {place.text} is not in the cache, and {client.endpoint()} "
                "cannot be reached; check the network, or give a file"
            ) from error


def _facts(path: Path) -> dict[str, Any]:
    """Return the description beside weights: class names, hash, recipe, seed; or nothing."""
    for name in ("model.json", "config.json") if path.name == FILE else ():
        try:
            found = read_json(path.with_name(name))
        except (OSError, ValueError):
            continue
        if not isinstance(found, dict):
            continue
        args, ours = found.get("model_args"), found.get("ltbench")
        if isinstance(args, dict) and isinstance(ours, dict):  # a published model
            found = {**args, **ours, "class_names": found.get("label_names")}
        if isinstance(found.get("recipe"), dict):
            return found
    return {}


def _origin(place: Source, path: Path, facts: Mapping[str, Any]) -> str:
    if place.text.startswith(HUB):
        return f"sha256:{hash_of(path)}"
    if place.sha256 is not None:
        return place.text
    if facts:
        name, seed = facts["recipe"].get("name"), facts.get("seed")
        return visible(f"{name}, seed {seed}", 100)
    return visible(path.name, 100)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.name.endswith(PICKLED):
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"backbone.weights: {path} is no intact safetensors file ({error}); expected "
                f".safetensors, or one of {', '.join(PICKLED)}"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storages in old formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"backbone.weights: {path} holds more than tensors, numbers and text{_foreign(path)}; "
            "nothing else is read, as it could run code: store its state_dict() with torch.save "
            "or as safetensors"
        ) from error
    except Exception as error:  # whatever torch's readers raise on damaged files
        cause = visible(str(error).strip().partition("\n")[0], 120)
        raise UserError(f"backbone.weights: {path} is no intact torch file ({cause})") from error
    found = dict(_flat(content))
    if not found:
        raise UserError(f"backbone.weights: there are no named tensors in {path}")
    return found


def _foreign(path: Path) -> str:
    """Return the class that a pickle would import, in brackets, or nothing."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an old format, or damaged
        return ""
    return f" ({visible(', '.join(names[:3]), 120)})" if names else ""


def _flat(content: Any, prefix: str = "", depth: int = NESTED) -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries with their names joined by dots."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        else:
            yield from _flat(value, f"{prefix}{key}.", depth - 1)


def _named_like(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors below the prefix under which most names are those of a network."""
    found: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in own:
                found[".".join([*parts[:cut], ""])] += 1

    def rank(prefix: str) -> tuple[int, bool, bool]:
        return found[prefix], prefix == OURS, "ema" in prefix.lower()

    prefix = max(found, key=rank, default="")
    return {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}


def _classifier(net: nn.Module) -> set[str]:
    names = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return {n.partition(".")[0] for n in ([names] if isinstance(names, str) else names)}


def _check_values(own: Tensor, given: Tensor, what: str) -> None:
    strided = given.layout == torch.strided and given.device.type == "cpu"
    if not strided or given.is_floating_point() != own.is_floating_point():
        raise UserError(f"{what}: expected {own.dtype}, found {given.dtype} ({given.layout})")
    if given.is_floating_point() and not torch.isfinite(given).all():
        raise UserError(f"{what} has values that are not finite; take another checkpoint")


def _other_classes(found: tuple[str, ...] | None, wanted: tuple[str, ...]) -> str:
    """Return how the classes of a classifier differ from those of the data, or nothing."""
    if found is None:
        return "no class names are stored with it"
    if len(found) != len(wanted):
        return f"it has {len(found)} classes, the data have {len(wanted)}"
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a != b:
            return f"its class {k} is `{visible(a, 60)}`, that of the data is `{visible(b, 60)}`"
    return ""


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _some(what: str, found: Mapping[str, str]) -> str:
    """Return a clause about the first of some names, each with what is said of it."""
    if not found:
        return ""
    (name, said), *others = found.items()
    return f"{what} `{name}`{said}{f' and {len(others)} more' if others else ''}"

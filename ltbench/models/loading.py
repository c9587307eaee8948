from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.models.cifar_resnet import CifarResNet, map_public_weights


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load the weights of a safetensors file into a network without classifier.

    Names are those of the network, optionally prefixed with ``net.``; a classifier in the file is
    ignored.

    Args:
        net: a timm network built without classifier.
        path: path of the file.

    Raises:
        UserError: the file is missing or damaged, or belongs to another network.
    """
    given = _without_classifier(net, _read(Path(path)))
    if isinstance(net, CifarResNet):
        try:
            given = map_public_weights(given)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        given = _without_classifier(net, given)
    own = net.state_dict()
    optional = {n for n in own if n.endswith("num_batches_tracked")}  # absent in old files
    problems = [
        _some("lacks", own.keys() - given.keys() - optional),
        _some("has unknown", given.keys() - own.keys()),
        _some(
            "has another shape of",
            [n for n in own if n in given and given[n].shape != own[n].shape],
        ),
    ]
    if any(problems):
        found = ", it ".join(problem for problem in problems if problem)
        raise UserError(
            f"{path} does not fit {type(net).__name__}: it {found}; "
            "give weights of the same network"
        )
    net.load_state_dict({**{n: own[n] for n in optional}, **given})


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights: {path} is no intact safetensors file ({error})") from error
    return {name.removeprefix("net."): tensor for name, tensor in state.items()}


def _without_classifier(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{n}." for n in ([names] if isinstance(names, str) else names))
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def _some(what: str, names: Iterable[str]) -> str:
    found = sorted(names)
    if not found:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{what} {', '.join(f'`{n}`' for n in found[:3])}{more}"

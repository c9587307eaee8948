"""Files of a sharded split: tars, one binary index, keys, manifest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.data.shards.bounds import (
    MANIFEST_BYTES,
    index_bytes,
    keys_bytes,
    read_within,
    shown,
    unpack,
)
from ltbench.data.shards.manifest import Manifest as Manifest
from ltbench.data.shards.manifest import Shard as Shard
from ltbench.data.shards.manifest import manifest_problems
from ltbench.digest import open_regular, parse_json
from ltbench.errors import UserError
from ltbench.files import SEALED, seal, write_atomic

FORMAT = 1
INDEX, KEYS, MANIFEST, INFO = "index.npy", "keys.zlib", "manifest.json", "_info.json"
CONTENT_LIMIT = 2 * 2**30  # bytes; larger splits are fingerprinted by names and sizes
NAME_BYTES = 100  # what a plain ustar header has room for
_BENT = re.compile(r"/\.{0,2}/")  # in a name after a slash, which tar bends
_META = re.compile(r"__[^/]*__/")  # begins names that webdataset takes for metadata
ROW = np.dtype(
    [("shard", "<u4"), ("label", "<i4"), ("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")]
)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest beside its shards; from then on readers accept the folder."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_atomic(folder / MANIFEST, seal(json.dumps(content, indent=1)))


def parse_manifest(text: str | bytes, origin: str) -> Manifest:
    """Return the manifest in a text.

    Args:
        text: JSON.
        origin: where it comes from, for messages.

    Raises:
        UserError: it is damaged, says what cannot be, or is of a format this version does not
            read.
    """
    try:
        content = parse_json(text, limit=MANIFEST_BYTES, strict=True)
        found = content.pop("format")
        if type(found) is not int or found != FORMAT:
            raise UserError(
                f"{origin} has format {shown(found)}, this version reads {FORMAT}; use the "
                "version of ltbench that wrote it, or prepare the data again"
            )
        if content.pop("checksum", None) is not None:  # older versions wrote none
            sealed = SEALED.fullmatch(text.encode() if isinstance(text, str) else text)
            if sealed is None or hashlib.sha256(sealed[1]).hexdigest().encode() != sealed[2]:
                raise ValueError("damaged or edited: its checksum does not match")
        for name in ("class_counts", "class_names"):
            content[name] = tuple(_list(content, name))
        content["shards"] = tuple(Shard(**shard) for shard in _list(content, "shards"))
        manifest = Manifest(**content)
        problem = next(manifest_problems(manifest), "")
        if problem:
            raise ValueError(problem)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = shown(error)
        raise UserError(
            f"{origin} is not a manifest of ltbench's shards ({reason}); copy it again, or run "
            "`ltbench data prepare` again"
        ) from error
    return manifest


def _list(content: dict[str, Any], name: str) -> list[Any]:
    found = content[name]
    if not isinstance(found, list):
        raise ValueError(f"{name} is a list, found a {type(found).__name__}")
    return found


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a split's folder.

    Raises:
        UserError: there is none, so the folder is unfinished or something else; or it is damaged.
    """
    try:
        text = read_within(folder / MANIFEST, MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise UserError(
            f"`{folder}` has no {MANIFEST}: it holds no finished shards; run `ltbench data "
            "prepare` to the end (it goes on where it stopped), or `ltbench data index` for tars "
            "made elsewhere"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read `{folder / MANIFEST}`: {error.strerror}; copy it again, or run `ltbench "
            "data prepare` again"
        ) from error
    return parse_manifest(text, str(folder / MANIFEST))


def write_index(folder: Path, rows: np.ndarray, keys: Sequence[str]) -> tuple[str, str]:
    """Write ``index.npy`` and ``keys.zlib`` and return their SHA-256.

    Args:
        folder: of the split.
        rows: ``ROW`` records [N]; row i is image i of the list that was packed.
        keys: path of each image as the list has it (a foreign tar: its member's name) [N].
    """
    packed = zlib.compress("".join(f"{key}\n" for key in keys).encode("utf-8", "surrogateescape"))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(rows, dtype=ROW), version=(1, 0))
    write_atomic(folder / INDEX, buffer.getvalue())
    write_atomic(folder / KEYS, packed)
    return (
        hashlib.sha256(buffer.getvalue()).hexdigest(),
        hashlib.sha256(packed).hexdigest(),
    )


def read_index(folder: Path, manifest: Manifest) -> np.ndarray:
    """Return the index as a read-only memory map of ``ROW`` records [N], after checking its hash.

    Raises:
        UserError: it is missing, damaged or another split's.
    """
    path = folder / INDEX
    _check_hash(path, manifest.index_sha256, index_bytes(manifest.samples))
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # its header is text for Python's parser, which raises anything
        reason = shown(error)
        raise UserError(f"cannot read `{path}`: {reason}; copy it again") from error
    if rows.dtype != ROW or rows.shape != (manifest.samples,):
        raise UserError(
            f"`{path}` holds {str(rows.dtype)[:80]} {list(rows.shape)}, needed are "
            f"{manifest.samples} rows of {ROW}; copy it again"
        )
    return rows


def read_keys(folder: Path, manifest: Manifest) -> list[str]:
    """Return the key of each image [N], after checking the file's hash.

    Raises:
        UserError: the file is missing or damaged.
    """
    path, limit = folder / KEYS, keys_bytes(manifest.samples)
    _check_hash(path, manifest.keys_sha256, limit)
    try:
        text = unpack(read_within(path, limit), limit)
        if text.count(b"\n") != manifest.samples or text[-1:] != b"\n":
            raise ValueError(f"{text.count(10)} keys for {manifest.samples} images")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read `{path}`: {reason}; copy the folder again") from error
    return text.decode("utf-8", "surrogateescape").split("\n")[:-1]


def fingerprint_of(keys: Iterable[str], labels: np.ndarray, crc32: np.ndarray) -> str:
    """Return a SHA-256 over ``key label crc32`` lines in index order.

    Args:
        keys: of each image [N].
        labels: class of each image [N].
        crc32: checksum of each image's bytes [N].
    """
    lines = (
        f"{key}\t{label}\t{crc:08x}\n"
        for key, label, crc in zip(keys, labels.tolist(), crc32.tolist(), strict=True)
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def content_of(
    paths: Sequence[str], labels: np.ndarray, sizes: np.ndarray, crc32: np.ndarray | None
) -> str:
    """Return ``"content:"`` or ``"listing:"`` and a SHA-256 over images in their order.

    It covers the label, size and checksum of each image; without checksums the label, size and
    base name. The same images give the same, whether they lie in a folder or in shards.

    Args:
        paths: of each image [N].
        labels: class of each image [N].
        sizes: bytes of each image [N].
        crc32: checksum of each image's bytes [N]; ``None`` where there are more than
            ``CONTENT_LIMIT`` bytes, so that a folder need not be read for it.
    """
    facts = (
        (f"{crc:08x}" for crc in crc32.tolist())
        if crc32 is not None
        else (path.rpartition("/")[2] for path in paths)
    )
    lines = (
        f"{label} {size} {fact}\n"
        for label, size, fact in zip(labels.tolist(), sizes.tolist(), facts, strict=True)
    )
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{'listing' if crc32 is None else 'content'}:{digest}"


def member_key(path: str) -> str:
    """Return the key under which an image lies in its tar, without ending.

    It is the path without its last ending; dots left in the base name become ``_``, because
    webdataset cuts keys at the first dot. A path that would not fit a ustar header, leads out of
    its root, or that webdataset takes for metadata becomes a hash.
    """
    folder, slash, name = path.rpartition("/")
    key = folder + slash + name.rpartition(".")[0].replace(".", "_")
    ending = member_ending(name)
    longer = ending if len(ending) > len(".cls") else ".cls"
    if (
        len(f"{key}{longer}".encode("utf-8", "surrogateescape")) > NAME_BYTES
        or _BENT.search(f"/{key}")
        or _META.match(key)
    ):
        key = f"long/{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}"
    return key


def member_ending(path: str) -> str:
    """Return the ending of an image's member: that of its file in lower case, ``.jpeg`` as jpg."""
    ending = "." + path.rpartition("/")[2].rpartition(".")[2].lower()
    return ".jpg" if ending == ".jpeg" else ending


def write_info(root: Path) -> None:
    """Write timm's description of all finished splits below a root, beside them."""
    splits = {}
    for folder in sorted(p.parent for p in root.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(folder)
        except UserError:  # damaged, or another program's file of that name
            continue
        splits[manifest.split] = {
            "name": manifest.split,
            "filenames": [f"{folder.name}/{shard.name}" for shard in manifest.shards],
            "shard_lengths": [shard.samples for shard in manifest.shards],
            "num_samples": manifest.samples,
        }
    write_atomic(root / INFO, (json.dumps({"splits": splits}, indent=1) + "\n").encode())


def _check_hash(path: Path, expected: str, limit: int) -> None:
    """Check the SHA-256 of a file of at most ``limit`` bytes."""
    digest = hashlib.sha256()
    try:
        with open(open_regular(path), "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor)
            size = os.fstat(file.fileno()).st_size
            while size <= limit and (block := file.read(2**20)):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}; copy it again") from error
    if size > limit:
        raise UserError(
            f"`{path}` has {size:,} bytes, the images of its manifest need at most {limit:,}; copy "
            "the folder again"
        )
    if digest.hexdigest() != expected:
        raise UserError(
            f"`{path}` is damaged or belongs to other shards: the manifest says SHA-256 "
            f"{expected[:12]}..., found {digest.hexdigest()[:12]}...; copy the folder again"
        )

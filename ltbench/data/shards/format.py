"""Files of a sharded split: tars, one binary index, keys, manifest."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.errors import UserError
from ltbench.files import write_atomic

FORMAT = 1
INDEX, KEYS, MANIFEST, INFO = "index.npy", "keys.zlib", "manifest.json", "_info.json"
CONTENT_LIMIT = 2 * 2**30  # bytes; larger splits are fingerprinted by names and sizes
NAME_BYTES = 100  # what a plain ustar header has room for
_BENT = re.compile(r"/\.{0,2}/")  # in a name after a slash, which tar bends
_META = re.compile(r"__[^/]*__/")  # begins names that webdataset takes for metadata
ROW = np.dtype(
    [("shard", "<u4"), ("label", "<i4"), ("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")]
)


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        name: file name, without folder.
        bytes: size of the file.
        sha256: of the whole file.
        samples: number of images in it.
    """

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Manifest:
    """What a sharded split is; written last, so that a folder without it is unfinished.

    Args:
        dataset: registered name of the data set, or ``"list"``, ``"folder"``, ``"foreign"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        samples: number of images N.
        class_counts: images of each class in this split [C].
        class_names: one name per class [C].
        shards: the tars, in the order that the index numbers them.
        index_sha256: of ``index.npy``.
        keys_sha256: of ``keys.zlib``.
        fingerprint: ``fingerprint_of`` keys, labels and checksums.
        content: what the same images give as ``Split.fingerprint`` when read from files.
        list_sha256: ``Listing.sha256`` of the list it was packed from, ``""`` without one.
        parameters: how it was packed: shard size, seed, resizing.
    """

    dataset: str
    split: str
    samples: int
    class_counts: tuple[int, ...]
    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    index_sha256: str
    keys_sha256: str
    fingerprint: str
    content: str
    list_sha256: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest beside its shards; from then on readers accept the folder."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_atomic(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def parse_manifest(text: str | bytes, origin: str) -> Manifest:
    """Return the manifest in a text.

    Args:
        text: JSON.
        origin: where it comes from, for messages.

    Raises:
        UserError: it is damaged, or of a format this version does not read.
    """
    try:
        content = json.loads(text)
        found = content.pop("format")
        if found != FORMAT:
            raise UserError(
                f"{origin} has format {found}, this version reads {FORMAT}; use the version of "
                "ltbench that wrote it, or prepare the data again"
            )
        for name in ("class_counts", "class_names"):
            content[name] = tuple(content[name])
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        return Manifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{origin} is not a manifest of ltbench's shards ({reason}); copy it again, or run "
            "`ltbench data prepare` again"
        ) from error


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a split's folder.

    Raises:
        UserError: there is none, so the folder is unfinished or something else; or it is damaged.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise UserError(
            f"`{folder}` has no {MANIFEST}: it holds no finished shards; run `ltbench data "
            "prepare` to the end (it goes on where it stopped), or `ltbench data index` for tars "
            "made elsewhere"
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
    _check_hash(path, manifest.index_sha256)
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read `{path}`: {error}; copy it again") from error
    if rows.dtype != ROW or rows.shape != (manifest.samples,):
        raise UserError(
            f"`{path}` holds {rows.dtype} {list(rows.shape)}, needed are {manifest.samples} rows "
            f"of {ROW}; copy it again"
        )
    return rows


def read_keys(folder: Path, manifest: Manifest) -> list[str]:
    """Return the key of each image [N], after checking the file's hash.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / KEYS
    _check_hash(path, manifest.keys_sha256)
    text = zlib.decompress(path.read_bytes()).decode("utf-8", "surrogateescape")
    return text.split("\n")[:-1]


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
        except UserError:  # damaged, or somebody else's file of that name
            continue
        splits[manifest.split] = {
            "name": manifest.split,
            "filenames": [f"{folder.name}/{shard.name}" for shard in manifest.shards],
            "shard_lengths": [shard.samples for shard in manifest.shards],
            "num_samples": manifest.samples,
        }
    write_atomic(root / INFO, (json.dumps({"splits": splits}, indent=1) + "\n").encode())


def _check_hash(path: Path, expected: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}; copy it again") from error
    if found != expected:
        raise UserError(
            f"`{path}` is damaged or belongs to other shards: the manifest says SHA-256 "
            f"{expected[:12]}..., found {found[:12]}...; copy the folder again"
        )

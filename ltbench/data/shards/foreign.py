"""Index of webdataset tars made elsewhere; the tars are neither copied nor changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tarfile import TarInfo
from typing import Any, BinaryIO

import numpy as np
from isal.isal_zlib import crc32 as crc32_of

from ltbench.data.shards import format
from ltbench.data.shards.bounds import (
    KEY_BYTES,
    MOST_CLASSES,
    MOST_IMAGES,
    SPLITS,
    is_shard_name,
    shown,
)
from ltbench.data.shards.format import (
    INDEX,
    KEYS,
    MANIFEST,
    ROW,
    Manifest,
    Shard,
    content_of,
    fingerprint_of,
    write_index,
    write_info,
    write_manifest,
)
from ltbench.data.shards.jobs import Progress, Tick, run_jobs
from ltbench.data.shards.layout import PLAN
from ltbench.data.shards.members import DamagedTar, Members
from ltbench.data.shards.ustar import BLOCK
from ltbench.digest import open_regular, parse_json
from ltbench.errors import UserError

DATASET = "foreign"  # what manifests call these
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")  # the first counts
DENSE = 10_000  # classes; of more, half must have an image unless they have names

_LARGEST = 2**32 - 1  # bytes of an image; what the index has room for
_DIGITS = 64  # bytes of a label, at most
_JSON = 2**20  # bytes of a label's JSON, at most
_CHUNK = 2**20
_PACKERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK": "zip",
}
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key and ending, as webdataset cuts them
_META = re.compile(r"__[^/]*__(/|$)")  # names that webdataset passes over


def index_tars(
    tars: Sequence[Path],
    out: Path,
    split: str = "train",
    *,
    label: str = "cls",
    class_names: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Index webdataset tars where they lie, so that they can be read like packed shards.

    The folder ``out/split`` gets index and manifest, and a symbolic link to each tar that does not
    lie there itself. A sample is the members whose names agree up to the first dot; of several
    images the first kind of ``IMAGES`` is taken, and members that are neither image nor label do
    not count. Images are numbered as they come.

    Args:
        tars: files, in the order of their numbers.
        out: root of the data set, made if it does not exist.
        split: ``"train"``, ``"val"`` or ``"test"``.
        label: ending of the members that hold the label as a number, or ``"json:FIELD"`` for a
            field of the ``.json`` members.
        class_names: one name per class [C]; ``None`` takes the numbers up to the largest label.
        workers: processes; ``None`` takes one per usable core.
        progress: called with the numbers of bytes read and of all.

    Returns:
        The manifest that was written.

    Raises:
        UserError: a tar is missing, compressed, damaged or cut; a sample has no image or no
            label, or occurs twice; or the folder cannot be written.
    """
    tars, out = [Path(tar) for tar in tars], Path(out)
    _check_arguments(tars, split, label)
    folder = out / split
    if (folder / PLAN).exists():
        raise UserError(f"`{folder}` holds packed shards; pass another out= or split=")
    sizes = [_size(tar) for tar in tars]
    if class_names is not None and not 1 <= len(class_names) <= MOST_CLASSES:
        raise UserError(f"1 to {MOST_CLASSES:,} class names are needed, found {len(class_names):,}")
    scans = run_jobs(partial(_scan, label), tars, sizes, workers=workers, progress=progress)
    _check_twice(tars, scans)
    names = _names(tars, scans, class_names)
    rows = np.concatenate([_rows(number, scan.samples) for number, scan in enumerate(scans)])
    samples = [sample for scan in scans for sample in scan.samples]
    if len(samples) > MOST_IMAGES:
        raise UserError(f"a split has at most {MOST_IMAGES:,} images, found {len(samples):,}")
    keys = [sample.name for sample in samples]
    small = int(rows["size"].sum(dtype=np.int64)) <= format.CONTENT_LIMIT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for tar in tars:
            _check_link(tar, folder)
        (folder / MANIFEST).unlink(missing_ok=True)  # until all is new
        for tar in tars:
            _link(tar, folder, out)
    except OSError as error:
        raise UserError(
            f"cannot write to `{folder}`: {error.strerror}; pass another out="
        ) from error
    index_sha256, keys_sha256 = write_index(folder, rows, keys)
    manifest = Manifest(
        dataset=DATASET,
        split=split,
        samples=len(rows),
        class_counts=tuple(np.bincount(rows["label"], minlength=len(names)).tolist()),
        class_names=names,
        shards=tuple(
            Shard(tar.name, size, scan.sha256, len(scan.samples))
            for tar, size, scan in zip(tars, sizes, scans, strict=True)
        ),
        index_sha256=index_sha256,
        keys_sha256=keys_sha256,
        fingerprint=fingerprint_of(keys, rows["label"], rows["crc32"]),
        content=content_of(keys, rows["label"], rows["size"], rows["crc32"] if small else None),
        parameters={"label": label},
    )
    write_manifest(folder, manifest)
    write_info(out)
    return manifest


@dataclass(slots=True)
class _Sample:
    """An image and its label, as far as they are found."""

    name: str = ""  # of the image's member; empty: none so far
    offset: int = 0
    size: int = 0
    label: int = -1  # none so far
    crc32: int = 0


@dataclass
class _Scan:
    samples: list[_Sample] = field(default_factory=list)  # in the order of the tar
    sha256: str = ""


def _check_arguments(tars: list[Path], split: str, label: str) -> None:
    if split not in SPLITS:
        raise UserError(f"a split is one of {', '.join(SPLITS)}, found `{split}`")
    if label in ("", "json:", "json") or label in IMAGES or label.startswith("."):
        raise UserError(
            f"label is the ending of the labels' members, such as cls, or json:FIELD; found "
            f"`{label}`"
        )
    if not tars:
        raise UserError("tars to index are needed, found none; name them in their order")
    seen: dict[str, Path] = {}
    for tar in tars:
        if not is_shard_name(tar.name) or tar.name in (INDEX, KEYS, MANIFEST, PLAN):
            raise UserError(
                f"a tar cannot be called `{shown(tar.name)}` in the index: a plain, printable name "
                f"that does not begin with a dot and is none of {INDEX}, {KEYS}, {MANIFEST} and "
                f"{PLAN} is needed; rename it"
            )
        other = seen.setdefault(tar.name, tar)
        if other is not tar:
            raise UserError(
                f"`{other}` and `{tar}` have the same name, which the index can hold only once; "
                "give each tar once, or rename one"
            )


def _size(tar: Path) -> int:
    try:
        with open(open_regular(tar), "rb") as file:  # noqa: PTH123 (a descriptor)
            start = file.read(8)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(f"cannot read `{tar}`: {error.strerror}; check the path") from error
    for mark, packer in _PACKERS.items():
        if start.startswith(mark):
            raise UserError(
                f"`{tar}` is compressed ({packer}), which allows no reading in any order; unpack "
                "it to a plain tar first"
            )
    return size


def _scan(label: str, tar: Path, tick: Tick) -> _Scan:
    """Find the samples of a tar, then read it from front to end for checksums."""
    try:
        with open(open_regular(tar), "rb") as file:  # noqa: PTH123 (a descriptor)
            samples, end = _find_samples(label, tar, file)
            return _Scan(samples, _add_checksums(tar, file, samples, end, tick))
    except OSError as error:
        raise UserError(f"cannot read `{tar}`: {error.strerror}; copy it again") from error


def _find_samples(label: str, tar: Path, file: BinaryIO) -> tuple[list[_Sample], int]:
    """Return the samples of a tar in its order, and where its members end."""
    found: dict[str, _Sample] = {}
    ending, _, json_field = label.partition(":")
    members = Members(file)
    try:
        for member in members:
            parts = _SAMPLE.fullmatch(member.name)
            if not member.isreg() or parts is None or _META.match(member.name):
                continue
            key, kind = parts[1], parts[2].lower()
            if kind in IMAGES:
                _take_image(found.setdefault(key, _Sample()), tar, member, kind)
            elif kind == ending:
                sample = found.setdefault(key, _Sample())
                if sample.label >= 0:
                    raise _twice(tar, member.name)
                sample.label = _label(tar, members, member, json_field)
    except DamagedTar as error:
        raise UserError(
            f"`{tar}` is no tar, or damaged or cut ({error}); copy it again, or make it again"
        ) from error
    for key, sample in found.items():
        if not sample.name or sample.label < 0:
            what = "label" if sample.name else "image"
            wanted = f".{ending}" if sample.name else ", ".join(f".{kind}" for kind in IMAGES)
            raise UserError(
                f"sample `{shown(key)}` of `{tar}` has no {what} ({wanted}); make the tar again, "
                "or say where labels are with label="
            )
    return sorted(found.values(), key=lambda sample: sample.offset), members.end


def _take_image(sample: _Sample, tar: Path, member: TarInfo, kind: str) -> None:
    name = member.name
    if (
        not 0 < member.size <= _LARGEST
        or member.issparse()
        or "\n" in name
        or len(name.encode("utf-8", "surrogateescape")) >= KEY_BYTES
    ):
        raise UserError(
            f"image `{shown(name)}` of `{tar}` is empty, sparse, over 4 GiB, or has a name on two "
            f"lines or of more than {KEY_BYTES - 1:,} bytes; make the tar again without it"
        )
    if sample.name:
        before = _kind(sample.name)
        if before == kind:
            raise _twice(tar, member.name)
        if IMAGES.index(before) < IMAGES.index(kind):
            return
    sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size


def _kind(name: str) -> str:
    parts = _SAMPLE.fullmatch(name)
    assert parts is not None
    return parts[2].lower()


def _twice(tar: Path, name: str) -> UserError:
    return UserError(f"`{tar}` holds `{shown(name)}` twice; make it again, each sample once")


def _label(tar: Path, members: Members, member: TarInfo, json_field: str) -> int:
    known = ""
    content = members.content(member, _JSON + 1 if json_field else _DIGITS)
    found: Any = content.decode("utf-8", "replace").strip()
    if json_field:
        found = "none"
        try:
            fields = parse_json(content, limit=_JSON)
            known = f"; it has {', '.join(shown(name) for name in list(fields)[:8])}"
            found = fields[json_field]
        except (ValueError, TypeError, KeyError):
            pass
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) <= _DIGITS:
        found = int(found)
    if type(found) is not int or not 0 <= found < MOST_CLASSES:
        where = f"field `{json_field}`" if json_field else "the label"
        raise UserError(
            f"`{shown(member.name)}` of `{tar}`: {where} is a number from 0 to "
            f"{MOST_CLASSES - 1}, found `{shown(found)}`{known}; say where labels are with label="
        )
    return found


def _add_checksums(tar: Path, file: BinaryIO, samples: list[_Sample], end: int, tick: Tick) -> str:
    """Fill in the checksums of images, and return the SHA-256 of the file."""
    digest = hashlib.sha256()
    at = 0
    file.seek(0)
    for sample in samples:
        for chunk in _chunks(file, sample.offset - at):
            digest.update(chunk)
        for chunk in _chunks(file, sample.size):
            digest.update(chunk)
            sample.crc32 = crc32_of(chunk, sample.crc32)
        at = sample.offset + sample.size
        tick(at)
    for chunk in _chunks(file, end - at):
        digest.update(chunk)
    if file.tell() != end:
        raise UserError(f"`{tar}` is cut off: it ends before byte {end}; copy it again")
    closed = False
    for chunk in _chunks(file, None):
        digest.update(chunk)
        if chunk.strip(b"\0"):
            raise UserError(
                f"`{tar}` is damaged at byte {end}, or several tars joined to one: readers stop "
                "there, but members follow; copy it again, or make it again"
            )
        closed = closed or len(chunk) >= BLOCK
    if not closed:
        raise UserError(
            f"`{tar}` is cut off: nothing marks the end of its members at byte {end}; copy it "
            "again, or make it again"
        )
    tick(file.tell())
    return digest.hexdigest()


def _chunks(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """Read the next ``size`` bytes, or all, piece by piece; stop early at the end of the file."""
    left = size
    while left is None or left > 0:
        chunk = file.read(_CHUNK if left is None else min(left, _CHUNK))
        if not chunk:
            return
        yield chunk
        left = None if left is None else left - len(chunk)


def _check_twice(tars: list[Path], scans: list[_Scan]) -> None:
    owners: dict[str, Path] = {}
    for tar, scan in zip(tars, scans, strict=True):
        if not scan.samples:
            raise UserError(f"`{tar}` holds no samples, images with a label; leave it out")
        for sample in scan.samples:
            parts = _SAMPLE.fullmatch(sample.name)
            assert parts is not None
            other = owners.setdefault(parts[1], tar)
            if other is not tar:
                raise UserError(
                    f"sample `{shown(parts[1])}` is in `{other}` and in `{tar}`; make them "
                    "again with a name of its own for each sample"
                )


def _names(
    tars: list[Path], scans: list[_Scan], class_names: Sequence[str] | None
) -> tuple[str, ...]:
    if class_names is None:
        largest = max(sample.label for scan in scans for sample in scan.samples)
        seen = len({sample.label for scan in scans for sample in scan.samples})
        if largest >= DENSE and 2 * seen <= largest:
            raise UserError(
                f"the largest label is {largest:,}, but only {seen:,} labels occur: labels are "
                "numbers of classes, 0, 1, 2, ... without gaps, not ids; make the tars again"
            )
        return tuple(str(label) for label in range(largest + 1))
    for tar, scan in zip(tars, scans, strict=True):
        for sample in scan.samples:
            if sample.label >= len(class_names):
                raise UserError(
                    f"`{shown(sample.name)}` of `{tar}` has label {sample.label}, but there are "
                    f"names of {len(class_names)} classes, 0 to {len(class_names) - 1}; one "
                    "per class is needed"
                )
    return tuple(class_names)


def _rows(number: int, samples: list[_Sample]) -> np.ndarray:
    return np.array([(number, s.label, s.offset, s.size, s.crc32) for s in samples], dtype=ROW)


def _check_link(tar: Path, folder: Path) -> None:
    link = folder / tar.name
    if link.exists() and not link.is_symlink() and not link.samefile(tar):
        raise UserError(f"`{link}` is another file than `{tar}`; pass another out=")


def _link(tar: Path, folder: Path, root: Path) -> None:
    """Make a tar visible in the folder of the split; a link inside the root may move with it."""
    link, target = folder / tar.name, tar.absolute()
    if link.exists() and link.samefile(target):
        return
    link.unlink(missing_ok=True)
    inside = root.absolute() in target.parents
    link.symlink_to(os.path.relpath(target, folder.absolute()) if inside else target)

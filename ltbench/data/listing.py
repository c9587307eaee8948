"""List files with ``relative/path label`` lines."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltbench.errors import UserError

_LINE = "lines are `relative/path label` with labels 0, 1, 2, ..."


@dataclass(frozen=True)
class Listing:
    """Content of a list file.

    Args:
        file: path of the file.
        paths: relative path of each image [N].
        labels: class of each image, int64 [N].
        lines: line number of each image, 1-based [N].
        sha256: hash of the sorted ``label basename`` lines, which is independent of the order of
            the list and the path prefixes of a public copy.
    """

    file: Path
    paths: list[str]
    labels: np.ndarray
    lines: list[int]
    sha256: str


def find_root(root: str | None, needed: str) -> Path:
    """Return the root as an existing, non-empty folder.

    Args:
        root: the option ``data.root``.
        needed: message for a missing option.

    Raises:
        UserError: the root was not given, does not exist, is not a folder or is empty.
    """
    if not root:
        raise UserError(f"{needed}; found no data.root")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise UserError(f"data.root=`{root}` does not exist; check the path")
    if not folder.is_dir():
        raise UserError(f"data.root=`{root}` is a file; give the folder of the unpacked images")
    if next(folder.iterdir(), None) is None:
        raise UserError(f"data.root=`{root}` is empty; unpack the images there first")
    return folder


def look_for(root: Path, name: str) -> Path | None:
    """Return the path of a list in the root or as given, plain or with ``.gz``, or ``None``."""
    for folder in (root, Path()):
        for ending in ("", ".gz"):
            file = folder / (str(Path(name).expanduser()) + ending)
            if file.is_file():
                return file
    return None


def find_list(root: Path, name: str, option: str) -> Path:
    """Return the path of the list ``name``.

    Raises:
        UserError: the list is neither in the root nor at the given path.
    """
    file = look_for(root, name)
    if file is None:
        raise UserError(
            f"data.{option}=`{name}` is neither in data.root=`{root}` nor a file by itself; "
            f"give the path of the list"
        )
    return file


def read_list(file: Path) -> Listing:
    """Read ``relative/path label`` lines, plain or gzip; blank lines are skipped.

    Raises:
        UserError: the list cannot be read, is empty or has an invalid line.
    """
    paths: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not path:
            raise UserError(f"{file}, line {number}: found `{line.strip()[:80]}`; {_LINE}")
        if not (label.isascii() and label.isdigit()):
            raise UserError(
                f"{file}, line {number}: label `{label[:40]}` is not 0, 1, 2, ...; {_LINE}"
                + (" (images of unknown class have no place here)" if label == "-1" else "")
            )
        paths.append(path.rstrip())
        labels.append(int(label))
        lines.append(number)
    if not paths:
        raise UserError(f"list `{file}` is empty; {_LINE}")
    pairs = sorted(f"{y} {p.rpartition('/')[2]}\n" for p, y in zip(paths, labels, strict=True))
    sha256 = hashlib.sha256("".join(pairs).encode()).hexdigest()
    return Listing(file, paths, np.array(labels, dtype=np.int64), lines, sha256)


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read `{file}`: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"`{file}` is not UTF-8 text: {error}; {_LINE}") from error


def count_classes(train: Listing) -> int:
    """Return the number of classes C of a training list.

    Raises:
        UserError: there are fewer than two classes, or a class has no image.
    """
    largest = int(train.labels.max())
    seen = np.unique(train.labels)
    if len(seen) <= largest:  # before bincount, which would allocate for an absurdly large label
        gap = int(np.nonzero(seen != np.arange(len(seen)))[0][0])
        line = train.lines[int(train.labels.argmax())]
        raise UserError(
            f"{train.file}: class {gap} has no training image, though labels go up to {largest} "
            f"(line {line}); number the classes 0, 1, 2, ... without gaps"
        )
    if largest == 0:
        raise UserError(f"{train.file}: all images have label 0; at least two classes are needed")
    return largest + 1


def check_parts(listings: Mapping[str, Listing]) -> None:
    """Check that all labels are classes of ``"train"``, and that ``"test"`` has all classes.

    Raises:
        UserError: a label is not a class of the training list, or a class has no test image.
    """
    num_classes = count_classes(listings["train"])
    for part, listing in listings.items():
        outside = np.nonzero(listing.labels >= num_classes)[0]
        if len(outside):
            first = int(outside[0])
            raise UserError(
                f"{listing.file}, line {listing.lines[first]}: label {listing.labels[first]}, but "
                f"the training list has classes 0..{num_classes - 1}; use lists of one data set"
            )
        counts = np.bincount(listing.labels, minlength=num_classes)
        if part == "test" and counts.min() == 0:
            raise UserError(
                f"{listing.file}: class {int(counts.argmin())} has no test image "
                f"({int((counts == 0).sum())} such classes); every class needs at least one"
            )


def names_from_paths(listing: Listing, num_classes: int) -> tuple[str, ...]:
    """Return the folder name of each class [C] if these are distinct, else the labels as text."""
    names = [""] * num_classes
    for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
        if not names[label]:
            names[label] = path.rpartition("/")[0].rpartition("/")[2]
    if len(set(names)) == num_classes and all(names):
        return tuple(names)
    return tuple(str(label) for label in range(num_classes))


def read_names(file: Path, num_classes: int) -> tuple[str, ...]:
    """Read class names [C] from a file with one name per line.

    Raises:
        UserError: the number of names is not the number of classes.
    """
    names = tuple(line.strip() for line in _text(file).split("\n") if line.strip())
    if len(names) != num_classes:
        raise UserError(
            f"`{file}` has {len(names)} class names, the training list {num_classes} classes; "
            f"one name per line is needed"
        )
    return names

"""List files with ``relative/path label`` lines."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltbench.config.paths import expanded
from ltbench.digest import read_regular
from ltbench.errors import UserError

_LINE = "lines are `relative/path label` with labels 0, 1, 2, ..."
_HEADERS = {
    "label", "labels", "label_id", "class", "class_id", "classid", "class_index", "class_idx",
    "category", "category_id", "target", "id", "index", "y",
}  # fmt: skip
_DIGITS = 19  # a label with fewer digits fits int64
_LONGEST = 4096  # letters of a path; the system's limit on bytes
_LARGEST = 2**31  # bytes of a list


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
    folder = expanded(root)
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
            file = folder / (str(expanded(name)) + ending)
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
    """Read ``relative/path label`` lines, plain or gzip, in UTF-8 or UTF-16.

    Path and label may also be separated by a tab, a comma or a semicolon. Blank lines, comments
    (``# ...``) and a header are skipped.

    Raises:
        UserError: the list cannot be read, is empty or has an invalid line.
    """
    paths: list[str] = []
    labels: list[int] = []
    skipped: list[int] = []
    text = _text(file).replace("\t", " ")
    plain = str.isdigit if text.isascii() else _is_number
    if text.startswith("#") or any(mark in text for mark in ("\n#", '"', ", ", "; ")):
        plain = _never
    for line in text.split("\n"):
        path, _, label = line.rpartition(" ")
        if not (path and plain(label) and len(label) < _DIGITS):
            number = len(paths) + len(skipped) + 1
            words = _words(line.strip(), f"{file}, line {number}", first=not paths)
            if words is None:
                skipped.append(number)
                continue
            path, label = words
        paths.append(path.strip())
        labels.append(int(label))
    if not paths:
        raise UserError(f"list `{file}` is empty; {_LINE}")
    lines = list(range(1, len(paths) + len(skipped) + 1))
    if skipped:
        lines = sorted(set(lines) - set(skipped))
    longest = max(paths, key=len)
    if len(longest) > _LONGEST:
        raise UserError(
            f"{file}, line {lines[paths.index(longest)]}: the path `{longest[:40]}...` has "
            f"{len(longest):,} letters, more than {_LONGEST:,}; {_LINE}"
        )
    sha256 = listing_sha256(paths, labels)
    return Listing(file, paths, np.array(labels, dtype=np.int64), lines, sha256)


def listing_sha256(paths: Sequence[str], labels: Sequence[int]) -> str:
    """Return the SHA-256 of the sorted ``label basename`` lines of images.

    Args:
        paths: path of each image [N].
        labels: class of each image [N].
    """
    pairs = sorted(f"{y} {p.rpartition('/')[2]}\n" for p, y in zip(paths, labels, strict=True))
    return hashlib.sha256("".join(pairs).encode("utf-8", "surrogateescape")).hexdigest()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _never(text: str) -> bool:
    return False


def _words(line: str, where: str, *, first: bool) -> tuple[str, str] | None:
    """Return path and label of an unusual line, or ``None`` for a line that is no image.

    Args:
        line: the line without surrounding blanks.
        where: file and line number, for messages.
        first: no image was named before, so the line may be a header.
    """
    if not line or line.startswith("# "):
        return None
    path, label = "", line
    for separator in " ,;":
        head, _, tail = line.rpartition(separator)
        if head.strip() and (tail := tail.strip().strip('"')):
            if not path or tail.isdigit():
                path, label = head.strip().rstrip(",;"), tail
            if tail.isdigit():
                break
    if len(path) > 1 and path[0] == path[-1] == '"':
        path = path[1:-1]
    if path and _is_number(label) and len(label.lstrip("0")) < _DIGITS:
        return path, label.lstrip("0") or "0"
    if line.startswith("#"):
        return None
    if first and (path or label) and label.lower() in _HEADERS:
        warnings.warn(f"{where}: `{line[:80]}` is taken for a header", stacklevel=3)
        return None
    if not path:
        raise UserError(f"{where}: found `{line[:80]}`; {_LINE}")
    if path.isdigit() and not label.isdigit():
        raise UserError(f"{where}: found `{line[:80]}`, the label before the path; {_LINE}")
    if _is_number(label):
        raise UserError(
            f"{where}: label `{label[:20]}...` has {len(label):,} digits, so it is no number of a "
            f"class; {_LINE}"
        )
    raise UserError(
        f"{where}: label `{label[:40]}` is not 0, 1, 2, ...; {_LINE}"
        + (" (images of unknown class have no place here)" if label == "-1" else "")
    )


def _text(file: Path) -> str:
    try:
        data = read_regular(file, _LARGEST)
        if data[:2] == b"\x1f\x8b":
            with gzip.open(file) as packed:
                data = packed.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise UserError(f"`{file}` has more than {_LARGEST:,} bytes, too many for a list")
        utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read `{file}`: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"`{file}` is not UTF-8 text: {error}; save it as UTF-8; {_LINE}"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{file}, line {line}: found a zero byte, which no path has; save the list as UTF-8; "
            f"{_LINE}"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


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

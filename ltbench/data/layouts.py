"""Names and nesting of class folders: which folders are parts of a data set, which are classes."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ltbench.data.walk import entries, holds_images, is_dir, subfolders
from ltbench.errors import UserError

LAYOUT = "data.root needs train/<class>/ and test/<class>/ folders of images, or <class>/ folders"
_KINDS = {"train": "train|training|trn", "test": "test|testing|tst", "val": "val|valid|validation"}
_SUFFIX = r"([ _-]?(set|split|part|data|images|imgs))?"


class Layout(NamedTuple):
    """Folders of the parts of a data set, relative to its root.

    Args:
        train: folder of the training part; ``None`` if the classes lie directly in the root.
        test: folder of the test part, if there is one.
        val: folder of the validation part, if there is one.
    """

    train: str | None
    test: str | None
    val: str | None


def find_layout(root: Path, train: str, test: str | None, val: str | None) -> Layout:
    """Return the folders of the parts, by the options or by their usual names in any case.

    A validation folder is the test part if there is no test folder.

    Args:
        root: folder of the data set.
        train: option ``data.train``; ``"train"`` is the default.
        test: option ``data.test``.
        val: option ``data.val``.

    Raises:
        UserError: a named folder is missing, a name is ambiguous, or there are parts but none for
            training.
    """
    names = subfolders(root)
    found = {
        "train": _pick(root, names, "train", train if train != "train" else None),
        "test": _pick(root, names, "test", test),
        "val": _pick(root, names, "val", val),
    }
    if found["train"] == "train" and _is_class(root, names):
        found["train"] = None
    if found["train"] is None:
        _check_no_parts(root, names)
        return Layout(None, found["test"], found["val"])
    if found["test"] is None:
        found["test"], found["val"] = found["val"], None
    if found["test"] is None:
        class_folders(root / found["train"])
        raise UserError(
            f"`{root}` has `{found['train']}` but neither `test` nor `val`; name the test folder "
            f"with data.test=, or give data.root={root / found['train']} to hold out images of it"
        )
    return Layout(
        found["train"], found["test"], found["val"] if found["val"] != found["test"] else None
    )


def kind_of(name: str) -> str | None:
    """Return the part that a folder name stands for: ``"train"``, ``"test"``, ``"val"``."""
    for kind, words in _KINDS.items():
        if re.fullmatch(f"({words}){_SUFFIX}", name, re.IGNORECASE):
            return kind
    return None


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders in a folder.

    Raises:
        UserError: there are fewer than two.
    """
    names = subfolders(folder)
    if len(names) >= 2:
        return tuple(names)
    found, hint = (f"one folder, `{names[0]}`" if names else "no folder"), ""
    if names and len(subfolders(folder / names[0])) >= 2:
        hint = f"; it holds folders itself: give data.root={folder / names[0]}"
    elif holds_images(folder):
        hint = " but images: put those of each class into a folder of its own, or use data=list"
    raise UserError(
        f"at least two class folders are needed in `{folder}`, found {found}{hint}; {LAYOUT}"
    )


def check_nesting(folder: Path, names: Sequence[str], *, parts: bool) -> None:
    """Issue a note if all class folders hold folders only, which do not count as classes.

    Args:
        folder: folder of the class folders.
        names: names of the class folders.
        parts: ``True`` if the class folders belong to a part that was recognised by its name.

    Raises:
        UserError: the class folders look like parts, or hold parts.
    """
    inner: list[list[str]] = []
    for name in names:
        here = entries(folder / name)
        if not here or not all(is_dir(entry) for entry in here):
            return
        inner.append(sorted(entry.name for entry in here))
    same = all(one == inner[0] for one in inner)
    some = ", ".join(inner[0][:3]) + (", ..." if len(inner[0]) > 3 else "")
    if any(kind_of(name) for one in inner for name in one):
        raise UserError(
            f"the class folders in `{folder}` hold the parts themselves (`{names[0]}` holds {some})"
            f"; {LAYOUT}"
        )
    if same and len(inner[0]) > 1 and not parts:
        raise UserError(
            f"the folders {', '.join(names[:3])} in `{folder}` all hold the same folders ({some}), "
            f"so they look like parts, not classes; name the parts with data.train={names[0]} "
            f"data.test={names[1]}, or give data.root={folder / names[0]}; if they are the "
            f"classes, name the images by a list (data=list)"
        )
    warnings.warn(
        f"the classes are the {len(names):,} folders in `{folder}`, which hold folders only: "
        f"the images in {names[0]}/{inner[0][0]} belong to class `{names[0]}`; to make the inner "
        f"folders the classes, move them up, or use data=list",
        stacklevel=2,
    )


def check_same_classes(folder: Path, train: Path, names: Sequence[str]) -> None:
    """Check that a part has the classes of the training part.

    Raises:
        UserError: classes are missing or surplus; the message names the first ones.
    """
    here = set(subfolders(folder))
    missing, surplus = sorted(set(names) - here), sorted(here - set(names))
    if not here and holds_images(folder):
        raise UserError(f"`{folder}` holds images but no class folders; {LAYOUT}")
    if missing or surplus:
        differences = [
            f"`{', '.join(some[:3])}{', ...' if len(some) > 3 else ''}` {verb} only {where}"
            for some, where in (
                (missing, f"in the training part `{train}`"),
                (surplus, "there"),
            )
            if some
            for verb in ("is" if len(some) == 1 else "are",)
        ]
        file = next((name for name in missing if (folder / name).is_file()), None)
        hint = f" (`{folder / file}` is a file)" if file else ""
        if {_folded(name) for name in missing} & {_folded(name) for name in surplus}:
            hint = " (some differ only in case, or in the Unicode form of an accent)"
        raise UserError(
            f"`{folder}` has other classes than the training part: {' and '.join(differences)}"
            f"{hint}; the folder names must agree"
        )


def _pick(root: Path, names: Sequence[str], kind: str, given: str | None) -> str | None:
    if given is not None:
        if not given or not (root / given).is_dir():
            some = ", ".join(names[:5]) or "no folder"
            raise UserError(
                f"data.{kind}=`{given}`: there is no folder `{given}` in `{root}`; found {some}; "
                f"{LAYOUT}"
            )
        return given
    if kind in names:
        return kind
    if (root / kind).is_file():
        raise UserError(f"`{root / kind}` is a file, a folder is needed; {LAYOUT}")
    found = [name for name in names if kind_of(name) == kind and subfolders(root / name)]
    if len(found) > 1:
        raise UserError(
            f"`{root}` has {' and '.join(f'`{name}`' for name in found)}; say which one is meant: "
            f"data.{kind}={found[0]}"
        )
    return found[0] if found else None


def _is_class(root: Path, names: Sequence[str]) -> bool:
    """True if the folder `train` is one class (of vehicles, say) among others."""
    others = [name for name in names if kind_of(name) is None]
    return (
        len(others) == len(names) - 1 >= 2
        and not subfolders(root / "train")
        and holds_images(root / "train")
    )


def _check_no_parts(root: Path, names: Sequence[str]) -> None:
    parts = [name for name in names if kind_of(name) in ("test", "val")]
    if not parts:
        return
    flat = [name for name in names if kind_of(name) == "train"]
    reason = f"`{flat[0]}` holds no class folders" if flat else "no folder for training is there"
    raise UserError(
        f"`{root}` has {', '.join(f'`{name}`' for name in parts)}, but {reason}; name the parts "
        f"with data.train= and data.test=, or rename a class of that name; {LAYOUT}"
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()

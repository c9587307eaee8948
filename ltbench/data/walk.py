"""Search for image files in folders: hidden entries, links, and the identity of files."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ltbench.data.codecs import ENDINGS
from ltbench.errors import UserError

# Made by tools and systems beside or inside folders of images; compared in lower case.
_TOOLS = {
    "@eadir", "@recycle", "#recycle", "__macosx", "__pycache__", "$recycle.bin", "lost+found",
    "system volume information",
}  # fmt: skip
_NO_IMAGES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}


def is_hidden(name: str) -> bool:
    """True if a file or folder is hidden, or was made by a tool rather than the user."""
    return name.startswith(".") or name.lower() in _TOOLS


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"cannot read folder `{folder}`: {error.strerror}") from error


def subfolders(folder: str | Path) -> list[str]:
    """Return the sorted names of the folders in a folder, links to folders included."""
    return sorted(entry.name for entry in entries(folder) if is_dir(entry))


def is_dir(entry: os.DirEntry[str]) -> bool:
    """True if an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def holds_images(folder: str | Path) -> bool:
    """True if an image file lies directly in a folder."""
    return any(e.name.lower().endswith(ENDINGS) and not is_dir(e) for e in entries(folder))


class Files(NamedTuple):
    """Files of a folder.

    Args:
        names: names of the regular files.
        links: path of the file behind each link to a file, relative to the root.
        moved: beginning of the paths of the regular files if the folder lies behind a link.
    """

    names: set[str]
    links: dict[str, str]
    moved: str


def files_in(root: str, folder: str) -> Files:
    """Return the files in a folder; none if it cannot be read.

    Args:
        root: real path of the root.
        folder: path of the folder, relative to the root.
    """
    place = os.path.join(root, folder)  # noqa: PTH118
    try:
        with os.scandir(place) as found:
            here = list(found)
        odd = set(filter(os.DirEntry.is_symlink, here))
        regular = [entry for entry in here if entry not in odd] if odd else here
        names = {entry.name for entry in filter(os.DirEntry.is_file, regular)}
        links = {entry.name: _relative(entry.path, root) for entry in odd if _is_file(entry)}
    except (OSError, ValueError):
        return Files(set(), {}, "")
    real = _relative(place, root) if folder else ""
    return Files(names, links, f"{real}/" if real != folder else "")


def _relative(path: str, root: str) -> str:
    return os.path.realpath(path).removeprefix(f"{root}/")


def identity(status: os.stat_result) -> int:
    """Return one number for the device and inode of a file."""
    return status.st_dev << 64 | status.st_ino


class Walk:
    """Search for image files below class folders at any depth.

    Links are followed, but not to class folders, to what lies above them, or twice to one folder.

    Args:
        root: folder to which the paths of images are relative.
        parts: folders of the parts of the data set.
    """

    def __init__(self, root: Path, parts: Sequence[Path]) -> None:
        self.root = root
        self._barred = {_stat(above) for part in (root, *parts) for above in _upwards(part)}
        self._left_out: Counter[str] = Counter()  # by ending
        self._loops: list[str] = []
        self._broken: list[str] = []

    def images(self, folder: Path, names: Sequence[str]) -> list[list[tuple[str, int]]]:
        """Return path and ``identity`` of each image of each class, sorted by path.

        Args:
            folder: folder of the class folders.
            names: names of the class folders.

        Raises:
            UserError: a folder cannot be read, or two classes are links to one folder.
        """
        start = os.path.relpath(folder, self.root)
        start = "" if start == "." else f"{start}/"
        places = [os.path.join(folder, name) for name in names]  # noqa: PTH118
        classes: dict[int, str] = {}
        for name, place in zip(names, places, strict=True):
            other = classes.setdefault(_stat(place), name)
            if other != name:
                raise UserError(
                    f"classes `{other}` and `{name}` in `{folder}` are one folder (a link), so "
                    f"each of its images would have two labels; remove one of them"
                )
            if os.path.islink(place):  # noqa: PTH114
                self._barred |= {_stat(above) for above in _upwards(Path(place))}
        barred = self._barred | set(classes)
        return [
            sorted(self._below(place, f"{start}{name}", barred))
            for name, place in zip(names, places, strict=True)
        ]

    def everything(self) -> list[str]:
        """Return the paths of all images below the root, sorted, links that lead nowhere included.

        Raises:
            UserError: a folder cannot be read.
        """
        found = [path for path, _ in self._below(str(self.root), "", self._barred)]
        broken, self._broken = self._broken, []
        return sorted(path.removeprefix("/") for path in (*found, *broken))

    def _below(self, top: str, shown: str, barred: set[int]) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        seen: set[int] = set()
        waiting = [(top, shown)]
        while waiting:
            folder, at = waiting.pop()
            here = _stat(folder)
            if here in seen or (here in barred and folder is not top):
                self._loops.append(at)
                continue
            seen.add(here)
            device = here >> 64 << 64
            for entry in entries(folder):
                name = entry.name
                if entry.is_file(follow_symlinks=False):
                    if name.lower().endswith(ENDINGS):
                        found.append((f"{at}/{name}", device | entry.inode()))
                    elif name.lower() not in _NO_IMAGES:
                        self._left_out[os.path.splitext(name)[1] or "no ending"] += 1  # noqa: PTH122
                elif is_dir(entry):
                    waiting.append((entry.path, f"{at}/{name}"))
                elif not name.lower().endswith(ENDINGS):
                    self._left_out["links and devices"] += 1
                elif _is_file(entry):
                    found.append((f"{at}/{name}", identity(entry.stat())))
                else:
                    self._broken.append(f"{at}/{name}")
        return found

    def left_out(self) -> str:
        """Return the endings and numbers of the files left out, or an empty string."""
        if not self._left_out:
            return ""
        some = ", ".join(f"{end} ({count:,})" for end, count in self._left_out.most_common(5))
        more = ", ..." if len(self._left_out) > 5 else ""
        return f"files left out: {some}{more}"

    def report(self) -> None:
        """Issue notes about what was left out.

        Raises:
            UserError: links lead nowhere.
        """
        if self._broken:
            raise UserError(
                f"links that lead nowhere instead of images: {len(self._broken):,} (first: "
                f"`{self.root / self._broken[0]}`); copy the images, or remove the links"
            )
        if self._left_out:
            warnings.warn(
                f"`{self.root}`: {self.left_out()}; images end in {', '.join(ENDINGS)}",
                stacklevel=2,
            )
        if self._loops:
            warnings.warn(
                f"`{self.root}`: links not followed, since they lead to folders that are read "
                f"anyway: {len(self._loops):,} (first: `{self._loops[0]}`)",
                stacklevel=2,
            )


def _stat(folder: str | Path) -> int:
    try:
        return identity(os.stat(folder))  # noqa: PTH116 (Path is slow here)
    except OSError as error:
        raise UserError(f"cannot read folder `{folder}`: {error.strerror}") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _upwards(folder: Path) -> tuple[Path, ...]:
    real = folder.resolve()
    return real, *real.parents

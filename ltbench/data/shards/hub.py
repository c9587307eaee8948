"""Shards in a dataset repository of the Hugging Face Hub, cached by the Hub's client."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ltbench.config.paths import cache_base
from ltbench.data.shards.bounds import MANIFEST_BYTES, index_bytes, keys_bytes
from ltbench.data.shards.format import INDEX, KEYS, MANIFEST, parse_manifest
from ltbench.data.shards.remote import RemoteSplit, find_splits, not_an_address
from ltbench.remote import hub as client
from ltbench.remote.address import Address


@dataclass(frozen=True)
class HubFolder:
    """Folder of a dataset repository at a commit.

    Args:
        root: as the user wrote it.
        repo: ``org/name``.
        commit: 40 hex digits; a branch may move on during a run.
        folder: inside the repository.
    """

    root: str
    repo: str
    commit: str
    folder: str

    def shown(self, path: str = "") -> str:
        """Return the address of a file for messages."""
        return f"`{'/'.join(filter(None, [self.root, path]))}`"

    def request(self, path: str) -> urllib.request.Request:
        """Return the request of a file, with the user's token if there is one."""
        return client.request(self.repo, self._inside(path), self.commit, kind="dataset")

    def fetch(
        self,
        path: str,
        *,
        sha256: str | None = None,
        size: int | None = None,
        limit: int | None = None,
    ) -> Path:
        """Return a file, fetched into the cache unless it is there, and checked."""
        return client.download(
            self.repo, self._inside(path), self.commit, kind="dataset", sha256=sha256, size=size,
            limit=limit, cache=cache_base() / "hub",
        )  # fmt: skip

    def _inside(self, path: str) -> str:
        return f"{self.folder}/{path}" if self.folder else path


@dataclass(frozen=True)
class HubSplit(RemoteSplit):
    """A split in a repository; shards are checked when they are fetched into the cache."""

    place: HubFolder

    def has(self, number: int) -> bool:
        """Return whether a shard is in the cache, by its size."""
        shard = self.manifest.shards[number]
        path = self.folder / shard.name
        return path.is_file() and path.stat().st_size == shard.bytes

    def shard(self, number: int) -> Path:
        """Return the file of a shard, fetched if need be."""
        if not self.has(number):
            self.repair(number)
        return self.folder / self.manifest.shards[number].name

    def repair(self, number: int) -> None:
        """Fetch a shard again unless all its bytes are right."""
        shard = self.manifest.shards[number]
        self.place.fetch(f"{self.split}/{shard.name}", sha256=shard.sha256, size=shard.bytes)


def open_hub(root: str) -> dict[str, RemoteSplit]:
    """Return the splits of a repository by name, with their indices but not their shards.

    Args:
        root: ``hf://datasets/ORG/NAME[@REVISION][/FOLDER]``.

    Raises:
        UserError: there is no such folder, no access or no answer, or its files are damaged.
    """
    found = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", root.rstrip("/"))
    if not found:
        raise not_an_address(Address(root))
    repo, revision, folder = found.groups("")
    commit = client.resolve(repo, unquote(revision) or "main", kind="dataset")
    place = HubFolder(root.rstrip("/"), repo, commit, folder)
    names = find_splits(place, lambda path: place.fetch(path, limit=MANIFEST_BYTES).read_bytes())
    return {name: _open_split(place, name) for name in names}


def _open_split(place: HubFolder, name: str) -> HubSplit:
    path = place.fetch(f"{name}/{MANIFEST}", limit=MANIFEST_BYTES)
    manifest = parse_manifest(path.read_bytes(), place.shown(f"{name}/{MANIFEST}"))
    index, keys = index_bytes(manifest.samples), keys_bytes(manifest.samples)
    place.fetch(f"{name}/{INDEX}", sha256=manifest.index_sha256, limit=index)
    place.fetch(f"{name}/{KEYS}", sha256=manifest.keys_sha256, limit=keys)
    return HubSplit(place, name, path.parent, manifest)

from __future__ import annotations

import base64
import errno
import json
import multiprocessing
import os
import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from ltbench.data.shards import remote
from ltbench.data.shards.format import INDEX, INFO, KEYS, MANIFEST
from ltbench.data.shards.reader import ShardSource
from ltbench.data.shards.remote import cache_folder, open_remote
from ltbench.errors import UserError
from ltbench.remote import http as transfer
from ltbench.remote.address import Address
from tests.data.shards import faults

N = faults.IMAGES
SHARD = r"train-00001\.tar$"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = faults.make(tmp_path_factory.mktemp("made"))
    return root


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)


@pytest.fixture
def server(made: Path) -> Iterator[Any]:
    with faults.Server(made) as running:
        yield running


def read_all(url: str, split: str = "train") -> None:
    images = ShardSource(open_remote(url)[split]).read(np.arange(N))
    assert [image.tobytes() for image in images] == [faults.content(i) for i in range(N)]


def message(url: str) -> str:
    with pytest.raises(UserError) as caught:
        read_all(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_of(tmp_path: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob(pattern))


def test_a_shard_is_fetched_when_it_is_read_and_once(server: Any, tmp_path: Path) -> None:
    splits = open_remote(server.url + "/")
    assert list(splits) == ["train", "test"]
    assert server.asked(r"\.tar$") == 0
    assert (server.asked(INDEX), server.asked(KEYS), server.asked(MANIFEST)) == (2, 2, 2)
    source = ShardSource(splits["train"])
    inside = np.flatnonzero(source.index["shard"] == 1)
    assert source.read(inside[:1])[0].tobytes() == faults.content(int(inside[0]))
    assert [entry["path"] for entry in server.log if ".tar" in entry["path"]] == [
        "/train/train-00001.tar"
    ]
    read_all(server.url)
    read_all(server.url)
    shards = len(source.manifest.shards)
    assert server.asked(r"train-\d+\.tar$") == shards > 2
    assert server.asked(INDEX) == 2  # kept, unlike the manifests
    assert files_of(tmp_path, "*.part") == []
    assert not any("Authorization" in entry for entry in server.log)


def test_what_is_in_the_cache_reads_like_a_folder(server: Any) -> None:
    read_all(server.url)
    folder = open_remote(server.url)["train"].folder
    images = ShardSource(folder).read(np.arange(N))
    assert images[7].tobytes() == faults.content(7)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on_where_it_broke(server: Any, ranges: bool) -> None:
    server.fault(SHARD, "cut", times=1, after=5000)
    if not ranges:
        server.fault(SHARD, "no ranges")
    read_all(server.url)
    asked = [entry.get("Range") for entry in server.log if re.search(SHARD, entry["path"])]
    assert asked == [None, "bytes=5000-"]


def test_progress_renews_the_tries(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fault(SHARD, "cut", after=4000)
    size = open_remote(server.url)["train"].manifest.shards[1].bytes
    monkeypatch.setattr(transfer, "PROGRESS", 4000)
    read_all(server.url)
    assert server.asked(SHARD) == -(-size // 4000) > transfer.TRIES


@pytest.mark.parametrize(
    ("pattern", "kind", "options", "parts", "requests"),
    [
        (SHARD, "cut", {"after": 0}, ["ended after 0 of", "3 tries"], 3),
        (SHARD, "status", {"status": 404}, ["HTTP 404", "ltbench data prepare"], 1),
        (SHARD, "status", {"status": 403}, ["HTTP 403", "hf auth login", "USER:PASSWORD"], 1),
        (SHARD, "status", {"status": 503}, ["HTTP 503", "3 tries", "try again later"], 3),
        (SHARD, "swap", {}, ["not the file that its manifest describes", "copy the prepared"], 2),
        (INDEX, "swap", {}, ["not the file that its manifest describes", INDEX], 2),
        (INDEX, "status", {"status": 404}, ["HTTP 404", f"train/{MANIFEST}", INDEX], 1),
        ("json", "status", {"status": 404}, ["no shards at", INFO, f"train/{MANIFEST}"], 4),
        (f"train/{MANIFEST}", "status", {"status": 404}, [MANIFEST, "ltbench data prepare"], 1),
    ],
)
def test_failures_are_one_line(
    server: Any,
    tmp_path: Path,
    pattern: str,
    kind: str,
    options: dict[str, int],
    parts: list[str],
    requests: int,
) -> None:
    server.fault(pattern, kind, **options)
    text = message(server.url)
    for part in [*parts, "127.0.0.1"]:
        assert part in text
    assert server.asked(pattern) == requests
    assert files_of(tmp_path, "*.part") == []


def test_failures_that_pass(server: Any) -> None:
    server.fault(SHARD, "status", times=2, status=503)
    server.fault(r"train-00000\.tar$", "swap", times=1)
    server.fault(INDEX, "cut", times=1, after=100)
    read_all(server.url)
    assert server.asked(SHARD) == 3
    assert server.asked(r"train-00000\.tar$") == 2


@pytest.mark.parametrize(("kind", "seconds"), [("stall", 3.0), ("trickle", 0.02)])
def test_a_slow_server_is_not_waited_for(
    server: Any, monkeypatch: pytest.MonkeyPatch, kind: str, seconds: float
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
    server.fault(SHARD, kind, seconds=seconds)
    assert re.search(r"no answer for 0\.3 s|[\d,]+ bytes in 1 s", message(server.url))
    assert server.asked(SHARD) == 3


@pytest.mark.parametrize(
    ("root", "parts"),
    [
        ("ftp://host/data", ["no address of shards", "http(s)://HOST"]),
        ("hf://org/name", ["no address of shards", "hf://datasets/ORG/NAME"]),
        ("http://127.0.0.1:9/data", ["cannot fetch `http://127.0.0.1:9/data/_info.json`"]),
        ("http://127.0.0.1:port/data", ["cannot fetch", "port"]),
    ],
)
def test_addresses_of_nothing(root: str, parts: list[str]) -> None:
    text = message(root)
    for part in parts:
        assert part in text


def test_another_folder_than_the_prepared_one(server: Any, made: Path, tmp_path: Path) -> None:
    assert "ltbench data prepare" in message(server.url + "/train")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / INFO).write_text("<html>Log in</html>")
    with faults.Server(tmp_path / "site") as site:
        assert "ltbench data prepare" in message(site.url)


def test_info_is_not_needed(server: Any) -> None:
    server.fault(INFO, "status", status=404)
    assert list(open_remote(server.url)) == ["train", "test"]
    read_all(server.url, "test")


def test_a_damaged_or_hostile_manifest(made: Path, tmp_path: Path) -> None:
    text = (made / "train" / MANIFEST).read_text()
    unsealed = re.sub(r',\s*"checksum": "\w+"', "", text)
    (tmp_path / "train").mkdir()
    with faults.Server(tmp_path) as server:
        for bad, part in (
            (text.replace("train-00001.tar", "../../x.tar"), "its checksum does not match"),
            (unsealed.replace("train-00001.tar", "../../x.tar"), "`../../x.tar`"),
            (text[:300], "is not a manifest"),
            (text.replace('"format": 1', '"format": 2'), "has format 2"),
        ):
            (tmp_path / "train" / MANIFEST).write_text(bad)
            found = message(server.url)
            assert part in found
            assert server.url in found


def test_credentials_are_used_and_never_shown(made: Path) -> None:
    login = base64.b64encode(b"me:s3cret/").decode()
    with faults.Server(made, login=login) as server:
        host = server.url.removeprefix("http://")
        read_all(f"http://me:s3cret%2F@{host}?sig=abc")
        assert all(entry["path"].endswith("?sig=abc") for entry in server.log)
        for wrong in (f"http://me:other@{host}?sig=abc", server.url):
            text = message(wrong)
            assert "HTTP 401" in text
            assert "other" not in text
            assert "sig" not in text
    folder = str(cache_folder(Address(f"http://me:s3cret%2F@{host}?sig=abc")))
    assert "s3cret" not in folder
    assert "sig" not in folder


class Elsewhere(faults.Handler):  # type: ignore[misc, name-defined]
    """Redirects to what the owner's ``target`` says."""

    def answer(self, path: str, fault: Any) -> None:
        self.send_response(302)
        self.send_header("Location", self.owner.target(path))
        self.end_headers()


def test_credentials_go_to_no_other_host(made: Path) -> None:
    with (
        faults.Server(made) as store,
        faults.Server(made, handler=Elsewhere) as front,
    ):
        front.target = lambda path: f"{store.url}/{path}"
        read_all(front.url.replace("://", "://me:secret@"))
        assert all("Authorization" in entry for entry in front.log)
        assert len(store.log) > 5
        assert not any("Authorization" in entry for entry in store.log)


def test_equal_base_names_never_meet() -> None:
    roots = [
        "http://one.org/data/places",
        "https://one.org/data/places",
        "http://two.org/data/places",
        "http://one.org/other/places",
        "http://one.org/data/places?version=2",
        "http://one.org:81/data/places",
    ]
    folders = [cache_folder(Address(root)) for root in roots]
    assert len(set(folders)) == len(roots)
    assert all(folder.parent == folders[0].parent for folder in folders)
    same = [Address("http://one.org/data/places/"), Address("http://me:pw@one.org/data/places")]
    assert {cache_folder(address) for address in same} == {folders[0]}


def test_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = Address("http://one.org/places")
    assert cache_folder(address).parent == tmp_path / "cache" / "shards"
    monkeypatch.delenv("LTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(address).parent == tmp_path / "xdg" / "ltbench" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(address).parent == tmp_path / ".cache" / "ltbench" / "shards"


@pytest.mark.parametrize("poison", ["bytes", "size", "sidecar", "none", "other sidecar"])
def test_what_in_the_cache_is_trusted(server: Any, poison: str) -> None:
    split = open_remote(server.url)["train"]
    path = split.shard(1)
    data = path.read_bytes()
    sidecar = path.with_name(f"{path.name}.checked")
    assert sidecar.is_file()
    wrong = data[:3000] + bytes(2000) + data[5000:]
    assert wrong != data
    if poison == "bytes":
        path.write_bytes(wrong)
    elif poison == "size":
        path.write_bytes(data[:-512])
    else:
        sidecar.unlink()
        path.write_bytes(data if poison == "sidecar" else wrong)
        if poison == "other sidecar":
            sidecar.write_text(json.dumps({"sha256": "0" * 64}))
    read_all(server.url)
    assert path.read_bytes() == data
    assert sidecar.is_file()
    assert server.asked(SHARD) == (1 if poison == "sidecar" else 2)


def test_a_cache_that_stays_wrong_is_named(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_remote(server.url)["train"]
    path = split.shard(1)
    wrong = path.read_bytes()[:3000] + bytes(2000) + path.read_bytes()[5000:]
    path.write_bytes(wrong)
    monkeypatch.setattr(remote.RemoteSplit, "repair", lambda self, number: None)
    text = message(server.url)
    for part in ("train-00001.tar", "offset", ".jpg", "LTBENCH_CACHE"):
        assert part in text


def test_a_poisoned_index_is_fetched_again(server: Any) -> None:
    folder = open_remote(server.url)["train"].folder
    data = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(data[:-10] + bytes(10))
    read_all(server.url)
    assert (folder / INDEX).read_bytes() == data


def test_a_new_edition_at_the_same_address(tmp_path: Path) -> None:
    root = faults.make(tmp_path / "one")
    other = faults.make(tmp_path / "two", lambda i: faults.content(N - 1 - i))
    with faults.Server(root) as server:
        read_all(server.url)
        server.root = other
        source = ShardSource(open_remote(server.url)["train"])
        images = [image.tobytes() for image in source.read(np.arange(N))]
        assert images == [faults.content(N - 1 - i) for i in range(N)]


def race(url: str, go: Any, done: Any) -> None:
    go.wait()
    read_all(url)
    done.put(os.getpid())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_fetch_once(server: Any, method: str) -> None:
    server.fault(r"\.tar$", "stall", seconds=0.1)
    context = multiprocessing.get_context(method)
    go, done = context.Event(), context.Queue()
    two = [context.Process(target=race, args=(server.url, go, done)) for _ in range(2)]
    for process in two:
        process.start()
    go.set()
    assert {done.get(timeout=60) for _ in two} == {process.pid for process in two}
    for process in two:
        process.join(30)
        assert process.exitcode == 0
    paths = [entry["path"] for entry in server.log if ".tar" in entry["path"]]
    assert len(paths) == len(set(paths)) > 2


def test_a_lock_without_progress_is_an_error(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    split = open_remote(server.url)["train"]
    with filelock.FileLock(split.folder / ".train-00001.tar.lock"):
        text = message(server.url)
    assert ".train-00001.tar.lock" in text
    read_all(server.url)


def test_a_full_cache_needs_no_lock(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie on a file system that is mounted read-only."""
    read_all(server.url)
    open_remote(server.url)
    monkeypatch.setattr(remote, "_locked", None)
    monkeypatch.setattr(remote, "write_atomic", None)
    read_all(server.url)


def test_disk_full(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = open_remote(server.url)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError) as caught:
            splits["train"].shard(1)
    text = str(caught.value)
    size = f"{splits['train'].manifest.shards[1].bytes:,} bytes"
    for part in ("No space left", "LTBENCH_CACHE", "make room", size, str(tmp_path)):
        assert part in text
    assert files_of(tmp_path, "*.part") == files_of(tmp_path, "*.tar") == []
    read_all(server.url)


def test_a_cache_that_cannot_be_written(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "file"))
    assert "set LTBENCH_CACHE" in message(server.url)


def test_offline_with_everything_cached(server: Any) -> None:
    read_all(server.url)
    server.fault("", "status", status=503)
    before = len(server.log)
    with pytest.warns(UserWarning, match=r"HTTP 503.*going on with what is in"):
        read_all(server.url)
    assert len(server.log) == before + 1
    # What is gone from the cache cannot be had.
    split = open_remote_quietly(server.url)["train"]
    (split.folder / "train-00001.tar").unlink()
    with pytest.warns(UserWarning, match="going on"), pytest.raises(UserError, match="HTTP 503"):
        read_all(server.url)


def open_remote_quietly(url: str) -> Any:
    with pytest.warns(UserWarning, match="going on"):
        return open_remote(url)


def test_gone_is_not_offline(server: Any) -> None:
    read_all(server.url)
    server.fault("", "status", status=404)
    assert "no shards at" in message(server.url)


def test_prefetch_in_the_order_of_first_use(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "THREADS", 1)
    source = ShardSource(open_remote(server.url)["train"], np.arange(N)[::-1])
    assert source.rows is not None
    order = np.arange(N)
    uses = dict.fromkeys(source.index["shard"][source.rows[order]].tolist())
    source.prefetch(order)
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(30)
    paths = [entry["path"] for entry in server.log if ".tar" in entry["path"]]
    assert paths == [f"/train/train-{number:05d}.tar" for number in uses]
    assert paths != sorted(paths)
    source.read(order)
    source.prefetch(order)
    assert server.asked(r"\.tar$") == len(paths)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_a_failed_prefetch_is_left_to_the_read(server: Any) -> None:
    server.fault(SHARD, "status", status=404)
    split = open_remote(server.url)["train"]
    for thread in split.prefetch(range(len(split.manifest.shards))):
        thread.join(30)
        assert not thread.is_alive()
    with pytest.raises(UserError, match="HTTP 404"):
        split.shard(1)


def test_a_pickled_source_fetches_by_itself(server: Any) -> None:
    source = pickle.loads(pickle.dumps(ShardSource(open_remote(server.url)["train"])))
    assert source.read(np.array([4]))[0].tobytes() == faults.content(4)


def test_transfers_in_the_tool(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk-full case of the tool is a real one: the system refuses to write."""
    with faults.Server(made) as server:
        assert faults.outcome(lambda: faults._disk_full(server)) == "caught"

"""Shards in a dataset repository: `data.root=hf://datasets/...`."""

from __future__ import annotations

import hashlib
import random
import warnings

import numpy as np
import pytest

from ltbench.data.shards.dataset import open_parts
from ltbench.data.shards.hub import open_hub
from ltbench.data.shards.layout import PartToPack
from ltbench.data.shards.pack import pack
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError

NAME = "lab/images"
ROOT = f"hf://datasets/{NAME}/sub"
N = 40


def content(i):
    return random.Random(i).randbytes(3000)


def make(root, file=content):
    labels = np.arange(N) % 3
    paths = [f"c{i % 3}/{i}.jpg" for i in range(N)]
    for split in ("train", "test"):
        part = PartToPack("list", split, file, paths, labels, ("a", "b", "c"))
        pack(part, root / split, shard_bytes=40_000, workers=1)
    return {
        f"sub/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read_all(root=ROOT):
    images = open_parts(root)["train"].read(np.arange(N))
    assert [image.tobytes() for image in images] == [content(i) for i in range(N)]


def shards_sent(hub):
    tars = [data for name, data in hub.files(NAME, kind="dataset").items() if "train-" in name]
    names = {f"/cdn/{hashlib.sha256(data).hexdigest()}" for data in tars}
    return [r for r in hub.requests if r.origin == "cdn" and r.path in names]


@pytest.mark.parametrize("private", [False, True])
def test_shards_are_fetched_once_into_the_cache(hub, files, cache, private):
    hub.add(NAME, files, kind="dataset", private=private)
    splits = open_hub(ROOT)
    assert list(splits) == ["train", "test"]
    assert not shards_sent(hub)
    read_all()
    shards = len(splits["train"].manifest.shards)
    assert len(shards_sent(hub)) == shards > 2
    assert not any(r.authorized for r in shards_sent(hub))
    assert len(list(cache.rglob("train-*.tar"))) == shards
    read_all()
    read_all(f"hf://datasets/{NAME}@main/sub/")
    assert len(shards_sent(hub)) == shards


def test_a_branch_that_moves_on_changes_no_run_under_way(hub, files, tmp_path):
    hub.add(NAME, files, kind="dataset")
    source = ShardSource(open_hub(ROOT)["train"])
    hub.add(NAME, make(tmp_path / "new", lambda i: content(i + 1)), kind="dataset")
    assert source.read(np.array([3]))[0].tobytes() == content(3)
    new = ShardSource(open_hub(ROOT)["train"])
    assert new.read(np.array([3]))[0].tobytes() == content(4)


def test_a_shard_is_streamed_from_any_byte_without_being_kept(hub, files, cache):
    hub.add(NAME, files, kind="dataset", private=True)
    split = open_hub(ROOT)["train"]
    shard = split.manifest.shards[1]
    hub.fault("GET", "^/cdn/", "cut", after=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltbench.remote.http.BACKOFF", 0)
        body = split.stream(1, 512)
        read = b"".join(iter(body.read, b""))
    assert read == files[f"sub/train/{shard.name}"][512:]
    assert not any(r.authorized for r in shards_sent(hub))
    assert not list(cache.rglob("*.tar"))


def test_a_damaged_shard_is_fetched_again(hub, files):
    hub.add(NAME, files, kind="dataset")
    read_all()
    split = open_hub(ROOT)["train"]
    path = split.shard(1).resolve()
    data = path.read_bytes()
    path.write_bytes(data[:3000] + bytes(2000) + data[5000:])
    read_all()
    assert split.shard(1).read_bytes() == data


def test_a_shard_other_than_the_manifest_says_is_refused(hub, files):
    wrong = {name: b"\0" * len(data) for name, data in files.items() if "train-00001" in name}
    hub.add(NAME, {**files, **wrong}, kind="dataset")
    with pytest.raises(UserError, match=rf"train-00001.tar of {NAME}@.*the content is wrong"):
        read_all()


def test_info_is_not_needed(hub, files):
    hub.add(NAME, {p: d for p, d in files.items() if "_info" not in p}, kind="dataset")
    read_all()


@pytest.mark.parametrize(
    ("root", "part"),
    [
        ("hf://datasets/lab/other", "no such repository"),
        (f"hf://datasets/{NAME}@v9", "no such revision"),
        (f"{ROOT}/train", "ltbench data prepare"),
        ("hf://lab/images", "no address of shards"),
        (f"hf://datasets/{NAME}@", "no address of shards"),
    ],
)
def test_addresses_of_nothing(hub, files, root, part):
    hub.add(NAME, files, kind="dataset")
    with pytest.raises(UserError, match=part) as caught:
        open_parts(root)
    assert "\n" not in str(caught.value)


def test_offline_mode_reads_the_cache_and_asks_nobody(hub, files, offline):
    revision = hub.add(NAME, files, kind="dataset")
    read_all()
    asked = len(hub.requests)
    offline()
    with pytest.warns(UserWarning, match=f"using what `main` of {NAME} was"):
        read_all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_all(f"hf://datasets/{NAME}@{revision}/sub")
    with pytest.raises(UserError, match="offline mode"):
        open_hub("hf://datasets/lab/other")
    assert len(hub.requests) == asked


def test_with_the_hub_down_the_cache_is_used_and_says_so(hub, files, monkeypatch):
    monkeypatch.setattr("ltbench.remote.faults.PATIENCE", 0)
    hub.add(NAME, files, kind="dataset")
    read_all()
    hub.stop()
    with pytest.warns(UserWarning, match="cannot connect"):
        read_all()
    with pytest.raises(UserError, match="cannot connect"):
        open_hub("hf://datasets/lab/other")

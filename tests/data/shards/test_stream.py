from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltbench.data.files import FileSource
from ltbench.data.images import ImageSplit
from ltbench.data.loader import Loaded
from ltbench.data.shards import reader
from ltbench.data.shards.foreign import index_tars
from ltbench.data.shards.reader import ShardSource
from ltbench.data.shards.remote import open_remote
from ltbench.data.shards.stream import stream_batches
from ltbench.errors import UserError
from ltbench.remote import http as transfer
from tests.data.shards import faults

N = faults.IMAGES  # 24 in three shards


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
    monkeypatch.setattr(reader, "PAUSE", 0.0)


@pytest.fixture
def split(made: Path) -> ImageSplit:
    return faults.split_of(ShardSource(made / "train"))  # type: ignore[no-any-return]


def epoch(split: ImageSplit, size: int = 8, number: int = 0, **options: Any) -> list[list[Loaded]]:
    return list(stream_batches(split, size, **{"seed": 1, "epoch": number, "key": 5, **options}))


def indices(steps: list[list[Loaded]]) -> list[int]:
    return [i for step in steps for micro in step for i in micro.index.tolist()]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("world", "workers", "accumulate"),
    [(1, 0, 1), (1, 3, 1), (2, 0, 2), (2, 2, 1), (2, 1, 4), (4, 1, 1), (8, 0, 1)],
)
def test_every_image_once_and_equal_steps(
    split: ImageSplit, world: int, workers: int, accumulate: int
) -> None:
    ranks = [
        epoch(split, 8, views=2, rank=r, world=world, workers=workers, accumulate=accumulate)
        for r in range(world)
    ]
    assert [len(steps) for steps in ranks] == [3] * world
    assert all(len(step) == accumulate for steps in ranks for step in steps)
    seen = [i for steps in ranks for i in indices(steps)]
    assert Counter(seen) == Counter(range(N))
    for step in range(3):
        micros = [micro for steps in ranks for micro in steps[step]]
        index = torch.cat([micro.index for micro in micros])
        positions = np.arange(8 * step, 8 * step + 8)
        wanted = split.load(index.numpy(), key=5, positions=positions, views=2)
        wanted = split.finish(wanted, key=5, positions=positions)
        for view in range(2):
            assert torch.equal(torch.cat([micro.views[view] for micro in micros]), wanted[view])
        labels = torch.cat([micro.labels for micro in micros])
        assert labels.tolist() == (index % 3).tolist()


def test_orders_of_epochs_and_seeds(split: ImageSplit) -> None:
    orders = [indices(epoch(split, number=e, seed=s)) for e, s in ((0, 1), (1, 1), (2, 1), (0, 2))]
    assert indices(epoch(split)) == orders[0]
    assert len({tuple(order) for order in orders}) == 4
    source = split.source
    assert isinstance(source, ShardSource)
    in_tars = np.lexsort((source.index["offset"], source.index["shard"])).tolist()
    assert in_tars not in orders
    unshuffled = indices(epoch(split, held=1))
    shards = source.index["shard"][unshuffled]
    assert np.count_nonzero(np.diff(shards)) == len(source.manifest.shards) - 1
    inside = source.index["offset"][unshuffled][shards == 1]
    assert np.all(np.diff(inside.astype(np.int64)) > 0)


@pytest.mark.parametrize(("last", "steps", "images"), [("keep", 3, N), ("drop", 2, 20)])
def test_the_last_batch(split: ImageSplit, last: str, steps: int, images: int) -> None:
    ranks = [epoch(split, 10, rank=r, world=2, workers=0, last=last) for r in range(2)]
    assert [len(one) for one in ranks] == [steps] * 2
    seen = [i for one in ranks for i in indices(one)]
    assert len(seen) == len(set(seen)) == images


def test_refusals(split: ImageSplit, made: Path) -> None:
    part = faults.split_of(ShardSource(made / "train", np.arange(9)))
    with pytest.raises(UserError, match="a part of a split"):
        epoch(part, 3)
    files = ImageSplit(FileSource(["a.jpg"], made), np.zeros(1), augment="inat", image_size=8)
    with pytest.raises(UserError, match="found image files"):
        epoch(files, 1)
    with pytest.raises(UserError, match="larger than the data set"):
        epoch(split, N + 1)


def test_an_unreadable_image_cannot_be_replaced(tmp_path: Path) -> None:
    root = faults.make(tmp_path, lambda i: b"text" if i == 7 else faults.content(i))
    source = ShardSource(root / "train")
    for unreadable, part in (("raise", r"c1/7\.jpg"), ("replace", "data.unreadable=raise")):
        split = ImageSplit(
            source, source.labels, augment="inat", image_size=8, unreadable=unreadable
        )
        with pytest.raises(UserError, match=part):
            epoch(split)


@pytest.fixture
def server(made: Path) -> Iterator[Any]:
    with faults.Server(made) as running:
        yield running


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_stream_keeps_nothing(server: Any, tmp_path: Path, workers: int) -> None:
    split = faults.split_of(ShardSource(open_remote(server.url)["train"]))
    server.fault(r"train-00001\.tar$", "cut", times=1, after=6000)
    steps = epoch(split, 6, workers=workers)
    assert sorted(indices(steps)) == list(range(N))
    assert not list((tmp_path / "cache").rglob("*.tar*"))
    ranges = [entry["Range"] for entry in server.log if "Range" in entry]
    starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in ranges]
    assert len(starts) == (1 if workers == 0 else len(starts)) > 0
    assert any(start % 512 for start in starts)  # the broken one goes on at its byte


def test_a_part_of_a_shard_is_asked_for(server: Any) -> None:
    split = faults.split_of(ShardSource(open_remote(server.url)["train"]))
    seen = []
    for rank in range(4):
        seen += indices(epoch(split, 8, rank=rank, world=4))
    assert sorted(seen) == list(range(N))
    starts = [entry["Range"] for entry in server.log if "Range" in entry]
    assert 1 <= len(starts) <= 3
    server.fault(r"\.tar$", "no ranges")
    assert sorted(i for r in range(4) for i in indices(epoch(split, 8, rank=r, world=4))) == (
        list(range(N))
    )


def test_a_cached_shard_is_not_fetched_for_a_stream(server: Any) -> None:
    source = ShardSource(open_remote(server.url)["train"])
    source.read(np.arange(N))
    before = len(server.log)
    assert sorted(indices(epoch(faults.split_of(source)))) == list(range(N))
    assert len(server.log) == before


def test_a_remote_shard_that_is_gone(server: Any) -> None:
    split = faults.split_of(ShardSource(open_remote(server.url)["train"]))
    server.fault(r"train-00001\.tar$", "status", status=404)
    with pytest.raises(UserError, match=r"train-00001\.tar` cannot be fetched: HTTP 404"):
        epoch(split)


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        *((one, 0) for one in ("image", "header", "member border", "inside", "zeroed")),
        *((one, 0) for one in ("missing", "swapped")),
        ("member border", 2),
        ("missing", 2),
    ],
)
def test_damage_is_an_error(tmp_path: Path, damage: str, workers: int) -> None:
    source = ShardSource(faults.make(tmp_path) / "train")
    shard = source.folder / source.manifest.shards[1].name
    data = bytearray(shard.read_bytes())
    third = np.sort(source.index["offset"][source.index["shard"] == 1])[2]
    image = int(np.flatnonzero((source.index["shard"] == 1) & (source.index["offset"] == third))[0])
    if damage == "image":
        data[third + 50] ^= 1
    elif damage == "header":
        data[third - 512 + 100] ^= 1  # its checksum is then wrong: tar readers stop there
    elif damage == "member border":
        del data[third - 1536 :]
    elif damage == "inside":
        del data[third + 100 :]
    elif damage == "zeroed":
        data[third - 1536 : third] = bytes(1536)  # looks like the end of the archive
    else:
        other = source.folder / source.manifest.shards[0].name
        data = bytearray(other.read_bytes())
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(data)
    with pytest.raises(UserError) as caught:
        epoch(faults.split_of(source), workers=workers, held=1)
    text = str(caught.value)
    assert str(shard) in text
    assert "\n" not in text
    assert "copy" in text
    if damage not in ("missing", "swapped"):
        assert f"c{image % 3}/{image}.jpg" in text


def test_tars_made_elsewhere(tmp_path: Path) -> None:
    """Members in another order, and others beside image and label."""
    tars = []
    for t in range(3):
        tars.append(tmp_path / f"some {t}.tar")
        with tarfile.open(tars[-1], "w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(8 * t, 8 * t + 8):
                for ending, data in (
                    ("jpg", faults.content(i)),
                    ("cls", str(i % 3).encode()),
                    ("json", json.dumps({"i": i}).encode()),
                ):
                    member = tarfile.TarInfo(f"{'é' * 70}/{i}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    index_tars(tars, tmp_path / "out", workers=1)
    split = faults.split_of(ShardSource(tmp_path / "out" / "train"))
    for world in (1, 4):
        seen = [i for r in range(world) for i in indices(epoch(split, 8, rank=r, world=world))]
        assert sorted(seen) == list(range(N))


class Deadly(ImageSplit):
    def load(self, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_an_error(split: ImageSplit) -> None:
    deadly = faults.split_of(split.source, kind=Deadly)
    with pytest.raises(UserError, match="data worker died"):
        epoch(deadly, workers=1)


@pytest.mark.slow
def test_spawned_workers(split: ImageSplit) -> None:
    assert indices(epoch(split, workers=2, start_method="spawn")) == (
        indices(epoch(split, workers=2, start_method="fork"))
    )


def sums(table: dict[str, Counter[str]]) -> Counter[str]:
    return sum(table.values(), Counter[str]())


def test_no_damage_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "CLEAN", faults.make(tmp_path / "clean") / "train")
    root = faults.make(tmp_path / "data")
    table = faults.shard_damage(root, 8)
    total = sums(table)
    assert sum(total.values()) == 9 * 8
    assert total["silent"] == total["other"] == 0
    for name, tally in table.items():
        assert tally["caught"] > 0, name
    # That the count can fail: without the checksum, flipped bits pass.
    monkeypatch.setattr(reader._Files, "fill", lambda *_: True)
    assert sums(faults.shard_damage(root, 8))["silent"] > 0


def test_odd_images_and_killed_workers(tmp_path: Path, made: Path) -> None:
    table = faults.odd_images(tmp_path) | faults.killed_workers(made)
    caught = {name for name, tally in table.items() if tally == Counter(caught=2)}
    right = {name for name, tally in table.items() if tally == Counter(right=2)}
    assert right == {"image: PNG named jpg", "image: CMYK", "image: grey"}
    assert caught == set(table) - right


@pytest.mark.slow
def test_all_faults() -> None:
    command = [sys.executable, faults.__file__, "--full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total = done.stdout.splitlines()
    assert total.split()[0] == "all"
    assert int(total.split()[1]) > 1800
    assert total.split()[-2:] == ["0", "0"]

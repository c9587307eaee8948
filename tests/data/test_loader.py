from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltbench.data.files import FileSource
from ltbench.data.images import ImageSplit
from ltbench.data.loader import Loaded, Loader, batches, eval_batches, steps_per_epoch
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits, keyed_permutation

N, BATCH = 33, 12  # two full steps and one of 9


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> ImageSplit:
    root = tmp_path_factory.mktemp("images")
    for i in range(N):
        pixels = keyed_bits(i, np.arange(20 * 24 * 3)).reshape(20, 24, 3).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    return images([f"{i}.png" for i in range(N)], np.arange(N) % 5, root)


def images(paths: list[str], labels: np.ndarray, root: Path | str) -> ImageSplit:
    return ImageSplit(FileSource(paths, root), labels, augment="imagenet", image_size=8)


def whole(steps: list[list[Loaded]]) -> list[torch.Tensor]:
    """One tensor per step, from its micro-batches in order."""
    return [torch.cat([torch.stack(m.views, 1) for m in step]) for step in steps]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_change_no_bit(split: ImageSplit, world: int, workers: int) -> None:
    order = keyed_permutation(3, N)
    expected = whole(list(batches(split, order, BATCH, key=5, views=2)))
    ranks = [
        list(batches(split, order, BATCH, key=5, views=2, rank=r, world=world, workers=workers))
        for r in range(world)
    ]
    together = [[micro for part in step for micro in part] for step in zip(*ranks, strict=True)]
    assert len(together) == 3
    for got, want in zip(whole(together), expected, strict=True):
        assert torch.equal(got, want)
    index = torch.cat([m.index for step in together for m in step])
    assert index.tolist() == order.tolist()
    labels = torch.cat([m.labels for step in together for m in step])
    assert labels.tolist() == (order % 5).tolist()


def test_views_epochs_and_repeats_of_an_image_differ(split: ImageSplit) -> None:
    order = np.zeros(4, dtype=np.int64)
    (step,) = batches(split, order, 4, key=1, views=2)
    a, b = step[0].views
    assert not torch.equal(a, b)
    assert not torch.equal(a[0], a[1])
    (other,) = batches(split, order, 4, key=2)
    assert not torch.equal(other[0].views[0], a)


def test_global_random_state_is_neither_read_nor_moved(split: ImageSplit) -> None:
    order = np.arange(N)
    first = whole(list(batches(split, order, BATCH, key=0)))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = whole(list(batches(split, order, BATCH, key=0)))
    list(batches(split, order, BATCH, key=0, workers=1, start=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_processes_start_before_threads_that_a_fork_would_lose(
    split: ImageSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr(
        ImageSplit,
        "prefetch",
        lambda self, order: begun.append((len(multiprocessing.active_children()), order.tolist())),
    )
    before = len(multiprocessing.active_children())
    steps = batches(split, np.arange(N), BATCH, key=0, workers=2, start=1)
    next(steps)
    assert begun == [(before + 2, list(range(BATCH, N)))]


def test_start_resumes_inside_an_epoch_without_loading(split: ImageSplit) -> None:
    order = keyed_permutation(1, N)
    unbroken = whole(list(batches(split, order, BATCH, key=9)))
    loaded: list[int] = []

    class Spy:
        labels = split.labels
        in_memory = True

        def __len__(self) -> int:
            return len(split)

        def load(self, indices: np.ndarray, **options: object) -> tuple[torch.Tensor, ...]:
            loaded.extend(indices.tolist())
            return split.load(indices, **options)  # type: ignore[arg-type]

        finish = split.finish

        def fingerprint(self) -> str:
            return ""

    rest = whole(list(batches(Spy(), order, BATCH, key=9, start=1)))  # type: ignore[arg-type]
    assert all(torch.equal(x, y) for x, y in zip(rest, unbroken[1:], strict=True))
    assert loaded == order[BATCH:].tolist()


def test_accumulation_cuts_the_same_global_batch(split: ImageSplit) -> None:
    order = keyed_permutation(2, N)
    steps = list(batches(split, order, BATCH, key=4, accumulate=3, rank=1, world=2))
    sizes = [[len(micro.labels) for micro in step] for step in steps]
    assert sizes == [[2, 2, 2], [2, 2, 2], [1, 1, 1]]  # 9 images over 6 parts: 2 2 2 | 1 1 1
    assert torch.cat([m.index for m in steps[0]]).tolist() == order[6:12].tolist()


@pytest.mark.parametrize(
    ("n", "options", "steps"),
    [
        (33, {}, 3),
        (33, {"last": "drop"}, 2),
        (36, {}, 3),
        (25, {}, 3),
        (25, {"world": 2}, 2),
        (26, {"world": 2}, 3),
        (27, {"world": 2, "accumulate": 2}, 2),
        (28, {"world": 2, "accumulate": 2}, 3),
    ],
)
def test_steps(split: ImageSplit, n: int, options: dict[str, object], steps: int) -> None:
    assert steps_per_epoch(n, BATCH, **options) == steps  # type: ignore[arg-type]
    order = np.arange(n) % N
    found = list(batches(split, order, BATCH, key=None, **options))  # type: ignore[arg-type]
    assert len(found) == steps
    assert all(len(micro.labels) for step in found for micro in step)


def test_batches_that_cannot_be_cut(split: ImageSplit) -> None:
    with pytest.raises(UserError, match="larger than the data set"):
        batches(split, np.arange(N), N + 1, key=0)
    with pytest.raises(UserError, match="multiple of ranks"):
        batches(split, np.arange(N), 32, key=0, world=3)
    with pytest.raises(UserError, match="positive"):
        steps_per_epoch(10, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_sees_every_image_once(split: ImageSplit, world: int) -> None:
    parts = [list(eval_batches(split, 4, rank=r, world=world)) for r in range(world)]
    index = torch.cat([batch.index for part in parts for batch in part])
    assert index.tolist() == list(range(N))
    sizes = [sum(len(batch.labels) for batch in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_images(split: ImageSplit) -> None:
    two = images(["0.png", "1.png"], np.array([0, 1]), split.source.root)
    assert [len(list(eval_batches(two, 4, rank=r, world=3))) for r in range(3)] == [1, 1, 0]


def drain(iterator: Iterator[object]) -> None:
    for _ in iterator:
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_with_one_line(
    split: ImageSplit, tmp_path: Path, workers: int
) -> None:
    good = (Path(split.source.root) / "0.png").read_bytes()
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    broken = images(["good.png", "cut.png"] * 4, np.zeros(8), tmp_path)
    with pytest.raises(UserError) as caught:
        drain(batches(broken, np.arange(8), 2, key=0, workers=workers))
    assert "cut.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cut\.png"):
        drain(eval_batches(broken, 4, workers=workers))


class Deadly(ImageSplit):
    def load(self, *args: object, **options: object) -> tuple[torch.Tensor, ...]:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_an_error_and_not_a_hang(split: ImageSplit) -> None:
    source = FileSource(["0.png"] * 4, split.source.root)
    deadly = Deadly(source, np.zeros(4), augment="plain", image_size=8)
    with pytest.raises(UserError, match="data worker"):
        drain(eval_batches(deadly, 2, workers=1))


def test_processes_end_at_once_with_a_loader_in_a_cycle(split: ImageSplit) -> None:
    loader = Loader(split, workers=2)
    next(loader.eval_batches(BATCH))
    loader.me = loader
    begun = time.monotonic()
    del loader
    gc.collect()
    assert time.monotonic() - begun < 4  # torch's own wait is 5 s a process


def test_an_unreadable_image_is_replaced_and_written_down(
    split: ImageSplit, tmp_path: Path
) -> None:
    good = (Path(split.source.root) / "0.png").read_bytes()
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(good[:-40] if i == 2 else good)
    labels = np.array([0, 1] * 4)
    source = FileSource([f"{i}.png" for i in range(8)], tmp_path)
    broken = ImageSplit(source, labels, augment="plain", image_size=8, unreadable="replace")
    loader = Loader(broken, workers=1, quarantine=tmp_path / "bad.txt")
    with pytest.warns(UserWarning, match=r"2\.png"):
        steps = [step for key in range(2) for step in loader.batches(np.arange(8), 4, key=key)]
    seen = torch.cat([micro.labels for step in steps for micro in step])
    assert seen.tolist() == [*labels.tolist(), *labels.tolist()]
    assert (tmp_path / "bad.txt").read_text().count("\n") == 1
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 8 images cannot be read"):  # noqa: SIM117
        with pytest.warns(UserWarning, match="png"):
            list(loader.batches(np.arange(8), 4, key=0))

"""Images in memory, cut and normalised on a device: the bits of the host, and no waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltbench.data import memory
from ltbench.data.loader import Loader, eval_batches
from ltbench.data.memory import MemorySplit, ResidentSplit
from ltbench.seeding import keyed_bits, keyed_permutation

STATS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
N = 37
IMAGES = keyed_bits(0, np.arange(N * 12 * 16 * 3)).reshape(N, 12, 16, 3).astype(np.uint8)
CPU = torch.device("cpu")
INDICES, POSITIONS = keyed_permutation(1, N), np.arange(100, 100 + N)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def split(images: np.ndarray = IMAGES, **options) -> MemorySplit:
    return MemorySplit(images, np.arange(len(images)) % 5, **STATS, **options)


def finished(data, key, views=2):
    where = {"key": key, "positions": POSITIONS}
    return data.finish(data.load(INDICES, **where, views=views), **where)


@pytest.mark.parametrize("key", [None, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"augment": "none"},
        {},
        {"flip": False},
        {"pad": 0},
        {"pad": 3, "augment_views": ["none", "standard"]},
        {"augment_views": ["sim", "strong"]},
        {"augment": "strong"},
        {"augment": "cutout"},
        {"augment": "sim", "augment_views": ["autoaugment"]},
        {"augment": "rotate", "augment_views": ["sim_hue"]},
    ],
    ids=str,
)
def test_the_device_shows_the_bits_of_the_host(options, key):
    host = split(**options)
    expected, found = finished(host, key, 3), finished(host.resident(CPU), key, 3)
    assert len(found) == 3
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_enlarged_images_too():
    host = split(np.ascontiguousarray(IMAGES[:, :, :12]), image_size=18)
    (got,), (want,) = finished(host.resident(CPU), 3, 1), finished(host, 3, 1)
    assert got.shape == (N, 3, 18, 18)
    assert torch.equal(got, want)


def test_only_what_was_drawn_is_moved_unless_the_set_is_too_large(monkeypatch):
    def moved(key, **options):
        views = split(**options).resident(CPU).load(INDICES, key=key, positions=POSITIONS, views=2)
        return [(view.dtype, tuple(view.shape)) for view in views]

    drawn, pixels = (torch.int64, (N, 4)), (torch.uint8, (N, 12, 16, 3))
    strong, sim = (torch.int64, (N, 8)), (torch.float64, (N, 40))
    assert moved(1) == moved(1, augment="none") == [drawn, drawn]
    assert moved(1, augment_views=["strong"]) == [drawn, strong]
    assert moved(1, augment="sim") == [sim, sim]
    assert moved(None, augment="strong") == [drawn, drawn]
    monkeypatch.setattr(memory, "RESIDENT", 1000)  # bytes
    assert moved(1) == moved(None) == moved(1, augment="sim") == [pixels, pixels]
    for options in ({}, {"augment": "strong"}):
        (got, _), (want, _) = (
            finished(split(**options).resident(CPU), 1),
            finished(split(**options), 1),
        )
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_loaders_make_the_same_batches(layout):
    host, order = split(), keyed_permutation(2, N)
    options = {"key": 4, "views": 2, "accumulate": 2, "world": 2, "rank": 1, "start": 1}
    pairs = zip(
        Loader(host, layout=layout).batches(order, 8, **options),
        Loader(host.resident(CPU), layout=layout).batches(order, 8, **options),
        strict=True,
    )
    for want, got in pairs:
        for a, b in zip(want, got, strict=True):
            assert all(map(torch.equal, a.views, b.views))
            assert all(view.is_contiguous(memory_format=layout) for view in b.views)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.index, b.index)
    whole = torch.cat([batch.views[0] for batch in eval_batches(host.resident(CPU), 10)])
    (expected,) = host.load(np.arange(N), key=None, positions=np.arange(N))
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("views", [1, 4])
def test_nothing_on_the_device_is_looked_at_by_the_host(views):
    """Tensors on the device "meta" have shapes only: whoever asks for a value gets an error."""
    host = split(augment_views=["strong", "sim", "rotate"])
    loader = Loader(host, device="meta", layout=torch.channels_last)
    assert isinstance(loader.split, ResidentSplit)
    assert len(loader.split) == N
    steps = list(loader.batches(np.arange(N), 8, key=1, views=views))
    assert [len(step[0].labels) for step in steps] == [8, 8, 8, 8, 5]
    for (step,) in steps:
        assert len(step.views) == views
        for view in step.views:
            assert view.device.type == "meta"
            assert view.dtype == torch.float32
            assert view.is_contiguous(memory_format=torch.channels_last)


def test_the_bytes_are_put_on_a_device_once(monkeypatch):
    host = split()
    copies = []
    original = torch.Tensor.to

    def spy(self, *args, **options):
        if self.dtype == torch.uint8 and self.numel() == host._padded.size:
            copies.append(args)
        return original(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", spy)
    for _ in range(3):
        loader = Loader(host, device="meta")
        list(loader.batches(np.arange(N), 8, key=1))
        list(loader.eval_batches(8))
    assert len(copies) == 1
    assert host.resident(CPU).fingerprint() == host.fingerprint()


def test_on_the_cpu_nothing_changes():
    host = split()
    assert Loader(host).split is host


@gpu
def test_a_gpu_shows_the_bits_of_the_host_and_never_waits():
    host, order = split(augment_views=["strong", "sim", "rotate"]), keyed_permutation(2, N)
    loader = Loader(host, device="cuda", layout=torch.channels_last)
    list(loader.batches(order, 8, key=4, views=4))  # puts the bytes there
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = list(loader.batches(order, 8, key=4, views=4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (want,), (got,) in zip(Loader(host).batches(order, 8, key=4, views=4), steps, strict=True):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(want.views, got.views, strict=True))
        assert torch.equal(want.labels, got.labels.cpu())

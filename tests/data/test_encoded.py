"""`data.decode=cuda`: all but nvJPEG itself, for which torchvision decodes on the CPU."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_jpeg

import ltbench
from ltbench.config.validation import build_options
from ltbench.data import encoded, nvjpeg
from ltbench.data.encoded import EncodedSplit
from ltbench.data.files import FileSource, ImageOptions
from ltbench.data.images import ImageSplit
from ltbench.data.loader import Loader, batches, eval_batches
from ltbench.data.pipelines import BATCHED, statistics
from ltbench.data.prepare import prepare
from ltbench.data.shards.dataset import Shards
from ltbench.data.strengths import Strengths
from ltbench.errors import UserError
from ltbench.train.feed import Feed, open_loader

PHOTOS = load_sample_images().images
N, SIZE, BATCH = 24, 32, 10
ORDER = np.arange(N)[::-1].copy()
AT = np.arange(N) + 100
CPU = torch.device("cpu")
PNG, CMYK, GREY, PROGRESSIVE, RGB, NO_END = range(6)  # images that are not plain JPEGs


def photo(number: int) -> bytes:
    x, y = 20 * number, 7 * number
    image = Image.fromarray(PHOTOS[number % 2]).crop((x, y, x + 90 + number, y + 120))
    mode = {CMYK: "CMYK", GREY: "L"}.get(number, "RGB")
    more: dict[str, Any] = {PROGRESSIVE: {"progressive": True}, RGB: {"keep_rgb": True}}
    file, kind = io.BytesIO(), "PNG" if number == PNG else "JPEG"
    image.convert(mode).save(file, kind, **more.get(number, {}))
    return file.getvalue() + (b"more" if number == NO_END else b"")


FILES = [photo(number) for number in range(N)]


class Decoder:
    """torchvision's decoder on the CPU in the place of nvJPEG, which refuses what it is set to."""

    def __init__(self) -> None:
        self.refused: set[bytes] = set()
        self.calls: list[int] = []  # images of each
        self.end = -1  # calls until an interrupt

    def __call__(self, files: Any, device: torch.device) -> list[torch.Tensor]:
        if len(self.calls) == self.end:
            raise KeyboardInterrupt
        self.calls.append(len(files))
        if any(file.numpy().tobytes() in self.refused for file in files):
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 4")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return [one.to(device) for one in decode_jpeg(list(files), mode=ImageReadMode.RGB)]


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    made = Decoder()
    monkeypatch.setattr(nvjpeg, "nvjpeg", made)
    monkeypatch.setattr(nvjpeg, "check_nvjpeg", lambda device: None)
    return made


def pair(folder: Path, files: list[bytes] = FILES, **options: Any) -> tuple[Any, Any]:
    """The usual split of some files, and one that decodes them on the device."""
    for number, content in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(content)
    paths = [f"{number}.jpg" for number in range(len(files))]
    options = {"augment": "imagenet", "image_size": SIZE, **options}
    of = FileSource(paths, folder, empty=True), np.arange(len(files)) % 3
    return ImageSplit(*of, **options), EncodedSplit(*of, **options)


def both(splits: tuple[Any, Any], indices: np.ndarray = ORDER, **options: Any) -> Any:
    """Bytes of some images before the flips, made by both splits."""
    usual, ours = splits
    options = {"key": 5, "positions": AT[: len(indices)], **options}
    made = ours.load_encoded(indices, **options)
    return usual.load(indices, **options), ours.receive(made, CPU, indices=indices, **options)


def levels(usual: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    assert usual.shape == ours.shape
    assert usual.dtype == ours.dtype == torch.uint8
    return (usual.int() - ours.int()).abs()


# Pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augment", "interpolation"), [*((name, "bilinear") for name in BATCHED), ("crop", "bicubic")]
)
def test_crops_are_the_usual_ones_to_a_grey_level(
    augment: Any, interpolation: Any, decoder: Decoder, tmp_path: Path
) -> None:
    splits = pair(tmp_path, augment=augment, interpolation=interpolation)
    for key in (5, None):
        usual, ours = both(splits, key=key, views=2)
        for first, second in zip(usual, ours, strict=True):
            apart = levels(first, second)
            # Bytes are rounded, and overshoots of bicubic cut off, between columns and rows too.
            assert apart.max() <= (1 if interpolation == "bilinear" else 4)
            assert apart.float().mean() < (0.2 if interpolation == "bilinear" else 0.4)
    assert decoder.calls == [N - 4] * 2
    usual, ours = both(splits, views=2, positions=AT + 1)
    if augment != "plain":
        assert levels(both(splits)[0][0], ours[0]).float().mean() > 5  # others would be seen


def test_flips_and_colours_are_the_usual_ones(decoder: Decoder, tmp_path: Path) -> None:
    splits = pair(tmp_path, augment="inat")
    usual, ours = (next(batches(split, ORDER, N, key=5, views=2))[0] for split in splits)
    assert torch.equal(usual.labels, ours.labels)
    assert torch.equal(usual.index, ours.index)
    std = torch.tensor(statistics("inat")[1]).view(3, 1, 1)
    for first, second in zip(usual.views, ours.views, strict=True):
        assert ((first - second) * std * 255).abs().max() < 1.01
    jittered = pair(tmp_path, augment="imagenet")[1]
    made = jittered.load_encoded(ORDER, key=5, positions=AT)
    crops = jittered.receive(made, CPU, indices=ORDER, key=5, positions=AT)
    assert torch.equal(
        jittered.finish(crops, key=5, positions=AT)[0],
        pair(tmp_path)[0].finish(crops, key=5, positions=AT)[0],
    )


def test_what_nvjpeg_does_not_take_is_decoded_as_usual(decoder: Decoder, tmp_path: Path) -> None:
    splits = pair(tmp_path)
    as_usual = np.array([PNG, CMYK, RGB, NO_END])
    for key in (5, None):
        usual, ours = both(splits, as_usual, key=key)
        assert torch.equal(usual[0], ours[0])
    assert decoder.calls == []
    large = pair(tmp_path, image_size=3)  # sides of 120 are more than 32 * 3
    assert all(map(torch.equal, *both(large, views=2)))
    assert decoder.calls == []
    decoder.refused = {FILES[GREY], FILES[20]}
    usual, ours = both(splits, views=2)
    for row in (N - 1 - GREY, N - 1 - 20):
        assert all(torch.equal(a[row], b[row]) for a, b in zip(usual, ours, strict=True))
    assert not torch.equal(usual[0], ours[0])
    assert levels(usual[1], ours[1]).max() <= 1
    assert decoder.calls[0] == N - 4
    assert len(decoder.calls) < N - 4  # halves, not one by one


def test_large_images_are_decoded_in_portions(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = pair(tmp_path)
    whole = both(splits)[1]
    monkeypatch.setattr(encoded, "AT_ONCE", 100_000)
    assert torch.equal(both(splits)[1][0], whole[0])
    assert len(decoder.calls) > 5
    assert sum(decoder.calls[1:]) == N - 4


def test_pixels_of_photographs(decoder: Decoder, shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "caltech101_short96.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][::60]
        files = [archive.read(name) for name in names]
    splits = pair(tmp_path, files, augment="crop", image_size=64)
    rows = np.arange(len(files))
    for key in (1, None):
        usual, ours = both(splits, rows, key=key, positions=rows)
        apart = levels(usual[0], ours[0])
        assert apart.max() <= 1
        assert apart.float().mean() < 0.2
    assert decoder.calls == [len(files)] * 2


# Loaders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_workers_and_starts_change_no_bit(
    workers: int, decoder: Decoder, tmp_path: Path
) -> None:
    split = pair(tmp_path)[1]
    options: dict[str, Any] = {"key": 5, "views": 2, "workers": workers}
    steps = list(batches(split, ORDER, BATCH, **{**options, "workers": 0}))
    assert [len(step[0].labels) for step in steps] == [10, 10, 4]
    shares = [list(batches(split, ORDER, BATCH, rank=r, world=2, **options)) for r in range(2)]
    rest = list(batches(split, ORDER, BATCH, start=1, **options))
    for whole, *ranks in zip(steps, *shares, strict=True):
        for view in range(2):
            parts = torch.cat([rank[0].views[view] for rank in ranks])
            assert torch.equal(parts, whole[0].views[view])
    for whole, again in zip(steps[1:], rest, strict=True):
        assert torch.equal(whole[0].index, again[0].index)
        assert all(map(torch.equal, whole[0].views, again[0].views))
    seen = list(eval_batches(split, 7, workers=workers))
    assert torch.cat([one.index for one in seen]).tolist() == list(range(N))


@pytest.mark.parametrize("stream", [False, True])
def test_shards(stream: bool, decoder: Decoder, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in range(3):
            folder = tmp_path / "images" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(label, N, 3):
                (folder / f"{number:02d}.{'png' if number == PNG else 'jpg'}").write_bytes(
                    FILES[number]
                )
    prepare("folder", tmp_path / "shards", root=str(tmp_path / "images"))
    options = {"root": str(tmp_path / "shards"), "image_size": SIZE, "augment": "crop"}
    found = []
    for decode in ("fast", "cuda"):
        data = Shards(stream=stream, decode=decode, **options).load()
        loader = open_loader(data.train, workers=1)
        steps = list(loader.batches(np.arange(N), 8, key=3, views=2))
        found.append([steps, list(loader.eval_batches(9))])
    assert isinstance(data.train, EncodedSplit)
    std = torch.tensor(statistics("crop")[1]).view(3, 1, 1)
    for usual, ours in zip(*([*(s[0] for s in f[0]), *f[1]] for f in found), strict=True):
        assert torch.equal(usual.index, ours.index)
        assert torch.equal(usual.labels, ours.labels)
        for first, second in zip(usual.views, ours.views, strict=True):
            assert ((first - second) * std * 255).abs().max() < 1.01
    assert sum(decoder.calls) == (N - 4) * 2


# Broken files --------------------------------------------------------------------------------


def damaged(data: bytes) -> bytes:
    """A JPEG with a header and an end, whose data are damaged."""
    middle = len(data) // 2
    return data[:middle] + bytes(200) + data[middle + 200 :]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "broken", [b"", b"no image", FILES[9][:900], FILES[9][:100], damaged(FILES[9])]
)
def test_a_broken_file_is_the_usual_error(
    broken: bytes, workers: int, decoder: Decoder, tmp_path: Path
) -> None:
    decoder.refused = {broken}
    files = [broken if number == 9 else content for number, content in enumerate(FILES)]
    messages = []
    for split in pair(tmp_path, files):
        for key in (5, None):
            with pytest.raises(UserError) as caught:
                list(batches(split, ORDER, N, key=key, workers=workers))
            messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert "9.jpg" in messages[0]


@pytest.mark.parametrize("broken", [FILES[9][:900], damaged(FILES[9])])
def test_the_usual_image_stands_in(broken: bytes, decoder: Decoder, tmp_path: Path) -> None:
    decoder.refused = {broken}
    files = [broken if number == 9 else content for number, content in enumerate(FILES)]
    usual, ours = pair(tmp_path, files, unreadable="replace")
    found = []
    for split in (usual, ours):
        loader = Loader(split, workers=1, quarantine=tmp_path / f"{type(split).__name__}.txt")
        with pytest.warns(UserWarning, match=r"9\.jpg"):
            steps = [step[0] for key in (1, 2) for step in loader.batches(ORDER, N, key=key)]
        found.append(steps)
    row = N - 1 - 9
    for first, second in zip(*found, strict=True):
        assert torch.equal(first.views[0][row], second.views[0][row])
    texts = [(tmp_path / f"{name}.txt").read_text() for name in ("ImageSplit", "EncodedSplit")]
    assert texts[0] == texts[1]
    assert texts[0].count("\n") == 1


def test_a_full_gpu_is_no_broken_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(files: Any, device: torch.device) -> None:
        raise RuntimeError("Error while decoding JPEG images: CUDA out of memory.")

    monkeypatch.setattr(nvjpeg, "nvjpeg", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        both(pair(tmp_path))


# Recipes -------------------------------------------------------------------------------------


def recipe(root: Path, out: Path, decode: str = "cuda", workers: int = 1) -> Any:
    data = "{name: folder, image_size: 32, augment: crop, test_per_class: 2, decode: %s}"
    words = [
        *(f"data={data % decode}",),
        *("backbone=resnet20_cifar", "stages.0.epochs=2", "stages.0.batch_size=8"),
        *("stages.0.optim.lr=0.01", "run.save_minutes=null", "run.save_steps=1"),
        *("run.device=cpu", f"run.workers={workers}", "run.threads=1"),
    ]
    return ltbench.get_recipe("ce_cifar10", *words, f"data.root={root}", f"out={out}")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for number, content in enumerate(FILES):
        folder = tmp_path / "classes" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        kind = "png" if number == PNG else "jpg"
        (folder / f"{number:02d}.{kind}").write_bytes(content)
    return tmp_path / "classes"


def test_a_run_resumes_inside_an_epoch_and_its_record_names_the_decoder(
    decoder: Decoder, classes: Path, tmp_path: Path
) -> None:
    whole = ltbench.run(recipe(classes, tmp_path / "whole"))
    assert whole.record.execution.jpeg_decoder == "nvjpeg"
    assert whole.record.recipe.resolved["data"]["decode"] == "cuda"
    decoder.end = len(decoder.calls) + 4  # the second step of the second epoch
    with pytest.raises(KeyboardInterrupt):
        ltbench.run(recipe(classes, tmp_path / "broken"))
    saved = sorted(path.name for path in (tmp_path / "broken" / "checkpoints").iterdir())
    assert saved[-1].startswith("s0-e0001-t000001")
    decoder.end = -1
    again = ltbench.run(recipe(classes, tmp_path / "broken"))
    assert again.record.metrics == whole.record.metrics
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def fed(root: Path) -> list[list[torch.Tensor]]:
    """This rank's two views and labels in each step of an epoch, as training gets them."""
    method: Any = SimpleNamespace(
        strengths=lambda: None, streams_for=lambda config: {}, config=None, views=2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvjpeg, "nvjpeg", Decoder())
        patch.setattr(nvjpeg, "check_nvjpeg", lambda device: None)
        one = recipe(root, root.parent / "unused", workers=0)
        feed = Feed(one, one.data.config.load(), CPU)
        steps = [step[0] for step in feed.batches(method, 0, 1)]
    return [[*step.views, step.labels] for step in steps]


def test_two_ranks_share_the_batches_of_one(classes: Path, two_processes: Any) -> None:
    whole, (first, second) = fed(classes), two_processes.call(fed, classes)
    assert len(whole) == len(first) == len(second) > 1
    for step, *ranks in zip(whole, first, second, strict=True):
        assert all(map(torch.equal, step, map(torch.cat, zip(*ranks, strict=True))))


def test_other_records_do_not_name_a_decoder(classes: Path, tmp_path: Path) -> None:
    result = ltbench.run(recipe(classes, tmp_path / "run", "fast"))
    assert "jpeg_decoder" not in result.record.model_dump()["execution"]


def test_another_device_is_refused(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.decode=cuda decodes .* found device cpu; set data"):
        ltbench.run(recipe(classes, tmp_path / "run"))
    assert not list(tmp_path.glob("run/checkpoints/*"))
    for reason in (RuntimeError("not compiled with nvJPEG support"), ImportError("no decode_jpeg")):
        nvjpeg._missing.cache_clear()
        with pytest.MonkeyPatch.context() as patch:

            def missing(*args: Any, error: Exception = reason) -> None:
                raise error

            patch.setattr(nvjpeg, "nvjpeg", missing)
            with pytest.raises(UserError, match=f"{reason}.*install its CUDA build, or set"):
                nvjpeg.check_nvjpeg(torch.device("cuda"))
    nvjpeg._missing.cache_clear()


def test_where_it_does_not_apply() -> None:
    with pytest.raises(UserError, match=r"decode`: unknown key"):
        build_options("DATASETS", "cifar10_lt", {"decode": "cuda"})
    for options in ({"augment": "rand"}, {"augment_views": ("sim",)}):
        with pytest.raises(ValueError, match="one by one, so it cannot run with decode cuda"):
            ImageOptions(decode="cuda", **options)


@pytest.mark.usefixtures("decoder")
def test_strengths_by_class_are_refused(tmp_path: Path) -> None:
    split = pair(tmp_path)[1]
    strengths = Strengths(np.array([1, 2, 3]))
    with pytest.raises(UserError, match=r"strength by class; set data.decode=fast"):
        batches(split, ORDER, N, key=5, strengths=strengths)


def test_direct_access_and_five_crops_decode_on_the_cpu(tmp_path: Path) -> None:
    usual, ours = pair(tmp_path)
    where: dict[str, Any] = {"key": None, "positions": AT}
    for first, second in ((usual, ours), (usual.five_crops(8), ours.five_crops(8))):
        made = [split.load(ORDER, **where) for split in (first, second)]
        assert all(map(torch.equal, *made))
        Loader(second.five_crops(8) if second is ours else second)
    part = ours.subset(np.array([3, 9]))
    assert isinstance(part, EncodedSplit)
    assert len(part) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_is_close_to_the_cpu(tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    nvjpeg.check_nvjpeg(device)
    usual, ours = pair(tmp_path)
    for key in (5, None):
        where: dict[str, Any] = {"key": key, "positions": AT}
        made = ours.load_encoded(ORDER, **where)
        found = ours.receive(made, device, indices=ORDER, **where)
        apart = levels(usual.load(ORDER, **where)[0], found[0].cpu()).float()
        assert apart.mean() < 2

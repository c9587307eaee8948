"""`data.stream=true` in a recipe: it trains, and refuses what a stream cannot do in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltbench
from ltbench.data.prepare import prepare
from ltbench.data.shards.dataset import Shards
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits
from ltbench.train.feed import open_loader

WORDS = [
    "data={name: shards, image_size: 32, augment: plain, stream: true}",
    "backbone=resnet20_cifar",
    "stages.0.epochs=2",
    "stages.0.batch_size=8",
    "stages.0.optim.lr=0.01",
    "run.save_minutes=null",
    "run.device=cpu",
    "run.workers=1",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for part, counts in (("train", (14, 6, 3)), ("test", (3, 3, 3))):
        for label, count in enumerate(counts):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                bits = keyed_bits(100 * label + number, np.arange(40 * 40 * 3))
                pixels = (bits % 256).astype(np.uint8).reshape(40, 40, 3)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    out = tmp_path_factory.mktemp("shards")
    prepare("folder", out, root=str(root))
    return out


def recipe(shards: Path, out: Path, *more: str) -> object:
    words = dict(word.split("=", 1) for word in (*WORDS, *more))
    return ltbench.get_recipe(
        "ce_cifar10", *(f"{k}={v}" for k, v in words.items()), f"data.root={shards}",
        f"out={out}",
    )  # fmt: skip


def test_a_stream_trains_a_recipe(shards: Path, tmp_path: Path) -> None:
    result = ltbench.run(recipe(shards, tmp_path / "run"))
    assert sum(result.record.metrics.total) == 9


def test_a_streamed_epoch_has_every_image_once(shards: Path) -> None:
    data = Shards(root=str(shards), image_size=32, augment="plain", stream=True).load()
    loader = open_loader(data.train, workers=1)
    seen = [
        torch.cat([micro.index for step in steps for micro in step]).tolist()
        for steps in (list(loader.batches(np.arange(23), 8, key=key)) for key in (1, 2))
    ]
    assert [sorted(epoch) for epoch in seen] == [list(range(23))] * 2
    assert seen[0] != seen[1]
    assert sum(len(batch.labels) for batch in loader.eval_batches(4)) == 23
    with pytest.raises(UserError, match="inside an epoch"):
        loader.batches(np.arange(23), 8, key=1, start=1)
    with pytest.raises(UserError, match="the sampler chooses other images"):
        loader.batches(np.zeros(23, dtype=np.int64), 8, key=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.0.sampler=class_aware"], "instance sampling only"),
        (["run.save_steps=5"], "set run.save_steps=null"),
        (["run.save_minutes=5"], "set run.save_minutes=null"),
        (["data.unreadable=replace"], "set it to raise"),
        (["data.imbalance_ratio=2"], "pack the thinned set"),
    ],
)
def test_what_a_stream_cannot_do(words: list[str], said: str, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        recipe(shards, tmp_path / "run", *words)
    assert str(caught.value).count("\n") == 0


def test_image_files_cannot_be_streamed(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(12):
            Image.new("RGB", (8, 8)).save(tmp_path / label / f"{number}.png")
    with pytest.raises(UserError, match="ltbench data prepare"):
        ltbench.get_recipe(
            "ce", f"data.root={tmp_path}", "data.stream=true", "run.save_minutes=null"
        ).data.config.load()

"""The images of a CIFAR-10-LT subset in one small file: lossless sheets of tiles, a class each."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ltbench.data.frozen_lists import read_frozen

COLUMNS, SIDE = 25, 32
LIMIT = 40 * 10**6  # bytes of a file that is easily taken along


def pack(source: Path, out: Path, ratio: int = 100) -> int:
    """Write the training images of one imbalance ratio and the whole test set; return the bytes.

    Args:
        source: zip of sheets, as ``unpack`` reads them, with at least these images.
        out: zip of the same form.
        ratio: imbalance ratio of the subset; smaller ratios need larger files.
    """
    frozen = read_frozen("cifar10")
    kept = {
        "train": frozen.indices("seed0", "exp", ratio),
        "test": np.arange(len(frozen.test_labels)),
    }
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        new.writestr("classes.csv", old.read("classes.csv"))
        for split, wanted in kept.items():
            tiles = [["tile", "class", "official_index"]]
            for name, index, images in _classes(old, split):
                here = np.isin(index, wanted)
                new.writestr(f"{split}/{name}.webp", _sheet(images[here]))
                tiles += [[str(t), name, str(i)] for t, i in enumerate(index[here].tolist())]
            missing = len(wanted) - (len(tiles) - 1)
            if missing:
                raise SystemExit(f"{source} lacks {missing} {split} images of ratio {ratio}")
            text = io.StringIO()
            csv.writer(text).writerows(tiles)
            new.writestr(f"{split}_tiles.csv", text.getvalue(), zipfile.ZIP_DEFLATED)
    return out.stat().st_size


def unpack(file: Path, folder: Path) -> Path:
    """Write the arrays that ``data.root`` reads, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as sheets:
        names = _names(sheets)
        for split in ("train", "test"):
            parts = list(_classes(sheets, split))
            labels = [np.full(len(index), names.index(name)) for name, index, _ in parts]
            np.save(folder / f"{split}_labels.npy", np.concatenate(labels))
            np.save(folder / f"{split}_index.npy", np.concatenate([p[1] for p in parts]))
            np.save(folder / f"{split}_images.npy", np.concatenate([p[2] for p in parts]))
    return folder


def _names(sheets: zipfile.ZipFile) -> list[str]:
    return [row["name"] for row in _rows(sheets, "classes.csv")]


def _classes(sheets: zipfile.ZipFile, split: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, official positions [n] and images [n, 32, 32, 3] of each class."""
    found: dict[str, list[int]] = {name: [] for name in _names(sheets)}
    for row in _rows(sheets, f"{split}_tiles.csv"):
        found[row["class"]].append(int(row["official_index"]))
    return [
        (name, np.array(index), _tiles(sheets.read(f"{split}/{name}.webp"), len(index)))
        for name, index in found.items()
    ]


def _rows(sheets: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheets.read(name).decode())))


def _tiles(content: bytes, count: int) -> np.ndarray:
    sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return tiles[:count]


def _sheet(images: np.ndarray) -> bytes:
    rows = -(-len(images) // COLUMNS)
    tiles = np.zeros((rows * COLUMNS, SIDE, SIDE, 3), np.uint8)
    tiles[: len(images)] = images
    sheet = tiles.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2)
    out = io.BytesIO()
    Image.fromarray(sheet.reshape(rows * SIDE, COLUMNS * SIDE, 3)).save(
        out, "WEBP", lossless=True, quality=75, method=4
    )
    return out.getvalue()

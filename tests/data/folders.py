"""Folders of tiny images for the tests of their layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ltbench.data.base import Data
from ltbench.data.folder import Folder


def fill(root: Path, counts: dict[str, int]) -> Path:
    """Write tiny images: ``{"train/cat": 3}`` makes root/train/cat/000.png, ..."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (10, 8), (i, len(folder), 0)).save(root / folder / f"{i:03d}.png")
    return root


def load(root: Path, **options: Any) -> Data:
    return Folder(root=str(root), image_size=8, **options).load()

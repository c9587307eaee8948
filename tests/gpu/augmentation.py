"""Batches of images made on the pretended GPU: waits, kernels, and whether pixels are the CPU's."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltbench.data import nvjpeg
from ltbench.data.augment import draw, finish
from ltbench.data.encoded import EncodedSplit
from ltbench.data.files import FileSource
from ltbench.data.loader import Loader
from ltbench.data.memory import MemorySplit
from ltbench.data.pipelines import IMAGENET_STATS
from ltbench.seeding import keyed_bits
from tests.gpu.pretend import GPU, to_gpu

N, SIDE = 96, 16
PIXELS = keyed_bits(1, np.arange(N * SIDE * SIDE * 3)).astype(np.uint8).reshape(N, SIDE, SIDE, 3)
STATS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def of_files(gpu: GPU, augmented: bool, colours: bool) -> bool:
    """Finish a batch of decoded images; count the second time, when constants are there."""
    images = torch.from_numpy(PIXELS[:8]).permute(0, 3, 1, 2)
    draws = draw(1, np.arange(8)) if augmented else None
    there = to_gpu(images.clone())
    for _ in range(2):
        gpu.reset()
        made = finish(there, *IMAGENET_STATS, draws, colours=colours)
    row(f"files, {'augmented' if augmented else 'evaluation'}{', colours' * colours}", gpu)
    return torch.equal(made.cpu(), finish(images, *IMAGENET_STATS, draws, colours=colours))


def in_memory(gpu: GPU, augment: str) -> bool:
    """Load batches of a set in memory; count the second one."""
    split = MemorySplit(PIXELS, np.zeros(N), **STATS, augment=augment)
    loader = Loader(split, device="cuda", layout=torch.channels_last)
    batches = loader.batches(np.arange(N), 48, key=5)
    next(batches)
    gpu.reset()
    ((loaded,),) = list(batches)
    row(f"in memory, {augment}", gpu)
    where = {"key": 5, "positions": np.arange(48, 96)}
    (wanted,) = split.finish(split.load(np.arange(48, 96), **where), **where)
    return torch.equal(loaded.views[0].cpu(), wanted)


def encoded(gpu: GPU, augmented: bool) -> bool:
    """Cut a batch out of images decoded there and one, a PNG, that is not; count the second one."""

    def decoded(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        opened = [Image.open(io.BytesIO(file.numpy().tobytes())) for file in files]
        pixels = [torch.from_numpy(np.array(one)).permute(2, 0, 1).contiguous() for one in opened]
        return [to_gpu(one) for one in pixels] if device.type == "cuda" else pixels

    with tempfile.TemporaryDirectory() as folder, patch.object(nvjpeg, "nvjpeg", decoded):
        names = [f"{i}.{'png' if i == 5 else 'jpg'}" for i in range(8)]
        for i, name in enumerate(names):
            Image.fromarray(np.kron(PIXELS[i], np.ones((3, 4, 1), np.uint8))).save(
                Path(folder) / name
            )
        options = {"augment": "crop", "image_size": 24}
        split = EncodedSplit(FileSource(names, folder), np.zeros(8), **options)
        rows, key = np.arange(8), 5 if augmented else None
        with patch.object(nvjpeg, "check_nvjpeg"):
            loader = Loader(split, device="cuda")
        batches = loader.batches(np.arange(16) % 8, 8, key=key)
        next(batches)
        gpu.reset()
        ((loaded,),) = list(batches)
        row(f"encoded, {'augmented' if augmented else 'evaluation'}", gpu)
        where = {"key": key, "positions": rows + 8}
        made = split.load_encoded(rows, **where)
        images = split.receive(made, torch.device("cpu"), indices=rows, **where)
    return torch.equal(loaded.views[0].cpu(), split.finish(images, **where)[0])


def row(name: str, gpu: GPU) -> None:
    """Print what was counted."""
    print(
        json.dumps(
            {
                "case": name,
                "kernels": sum(gpu.kernels.values()),
                "waits": [[n, *what] for what, n in gpu.waits.items()],
                "errors": [[n, *what] for what, n in gpu.errors.items()],
            }
        )
    )


def main() -> None:
    """Print a line of JSON for each case, and one that says whether pixels are equal."""
    warnings.simplefilter("ignore")
    with GPU() as gpu:
        equal = [of_files(gpu, *case) for case in ((0, 0), (1, 0), (1, 1))]
        equal += [encoded(gpu, augmented) for augmented in (False, True)]
        equal += [
            in_memory(gpu, augment)
            for augment in ("standard", "rotate", "strong", "sim", "sim_hue")
        ]
    print(json.dumps({"equal": equal}))


if __name__ == "__main__":
    main()

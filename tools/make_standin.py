"""Draw a stand-in for a data set one does not have: images, and lists with the right counts.

The images are small JPEGs: with --photos tiles of real photographs, a few of them for each class,
cut anew for every image; without, a procedural pattern per class. With --files the many lines of a
list point to few files. It shows that a recipe runs and how fast, not what it would reach.

Usage:
  python tools/make_standin.py OUT --counts inat18 --photos caltech101.zip   # full size
  python tools/make_standin.py OUT --counts inat18 --files 1                 # small; data.verify=counts
  python tools/make_standin.py OUT --classes 20 --largest 100 --ratio 50
"""  # noqa: E501

from __future__ import annotations

import argparse
import io
import zipfile
from functools import partial
from itertools import cycle, islice
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from ltbench.data.longtail import class_profile
from ltbench.data.official import facts
from ltbench.data.official_sets import (
    ImageNetLT,
    INat18,
    ISICArchiveLT,
    PlacesLT,
    SemiAves,
    SemiFungi,
    SemiINat,
)
from ltbench.seeding import derive, keyed_bits, keyed_uniform

OFFICIAL = {
    config.registered: config
    for config in (ImageNetLT, PlacesLT, INat18, ISICArchiveLT, SemiAves, SemiFungi, SemiINat)
}


def draw(label: int, number: int, size: int) -> Image.Image:
    """Return image ``number`` of a class: its coloured grating, shifted and with noise."""
    of_class = keyed_uniform(derive(label, "class"), np.arange(8))
    of_image = keyed_uniform(derive(label, "image", number), np.arange(1 + size * size * 3))
    y, x = np.mgrid[:size, :size] / size
    angle, waves = np.pi * of_class[0], 1 + 5 * of_class[1]
    phase = waves * (x * np.cos(angle) + y * np.sin(angle)) + of_image[0]
    blend = (0.5 + 0.5 * np.sin(2 * np.pi * phase))[..., None]  # [size, size, 1]
    pixels = 255 * (blend * of_class[2:5] + (1 - blend) * of_class[5:8])
    pixels += 40 * (of_image[1:].reshape(size, size, 3) - 0.5)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def tile(photos: list[np.ndarray], label: int, number: int, size: int) -> Image.Image:
    """Return image ``number`` of a class: 2 x 2 cuts of the class's four photos, some mirrored."""
    of_class = keyed_bits(derive(label, "photos"), np.arange(4)) % np.uint64(len(photos))
    of_image = keyed_uniform(derive(label, "image", number), np.arange(12)).reshape(4, 3)
    high, wide = 3 * size // 8, size // 2
    pixels = np.empty((2 * high, 2 * wide, 3), np.uint8)
    for place, (photo, (top, left, flip)) in enumerate(zip(of_class, of_image, strict=True)):
        source = photos[int(photo)]
        y = int(top * (source.shape[0] - high))
        x = int(left * (source.shape[1] - wide))
        cut = source[y : y + high, x : x + wide]
        row, column = divmod(place, 2)
        target = pixels[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        target[:] = cut[:, ::-1] if flip < 0.5 else cut
    return Image.fromarray(pixels)


def read_photos(path: Path, size: int, most: int = 1000) -> list[np.ndarray]:
    """Return up to ``most`` photographs of a folder or zip file that are large enough to cut."""
    if path.is_dir():
        files = [(str(p), p.read_bytes) for p in sorted(path.rglob("*.jpg"))]
    else:
        archive = zipfile.ZipFile(path)
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        files = [(name, partial(archive.read, name)) for name in names]
    step = max(1, len(files) // most)
    photos = []
    for _, read in files[::step]:
        pixels = np.asarray(Image.open(io.BytesIO(read())).convert("RGB"))
        if pixels.shape[0] >= 3 * size // 8 and pixels.shape[1] >= size // 2:
            photos.append(pixels)
    if len(photos) < 4:
        raise SystemExit(f"{path}: found {len(photos)} photos of {size // 2} pixels, 4 are needed")
    return photos


PHOTOS: list[np.ndarray] = []  # of each process


def keep_photos(photos: list[np.ndarray]) -> None:
    """Hand the photos to a process once, not with every class."""
    PHOTOS[:] = photos


def write_class(out: Path, part: str, size: int, task: tuple[int, int, int]) -> list[str]:
    """Write the images of one class and return the lines of its list."""
    label, count, files = task
    folder = Path(part) / f"{label // 1000:02d}" / f"{label:05d}"
    (out / folder).mkdir(parents=True, exist_ok=True)
    paths = [(folder / f"{number}.jpg").as_posix() for number in range(min(count, files))]
    for number, path in enumerate(paths):
        number += 10**6 * (part != "train")
        image = tile(PHOTOS, label, number, size) if PHOTOS else draw(label, number, size)
        image.save(out / path, quality=80)
    return [f"{path} {label}\n" for path in islice(cycle(paths), count)]


def write_part(
    out: Path, part: str, name: str, counts: list[int], files: int, size: int, photos: list
) -> None:
    """Write at most ``files`` images per class, and a list with ``counts`` lines per class."""
    tasks = [(label, count, files or count) for label, count in enumerate(counts)]
    with Pool(initializer=keep_photos, initargs=(photos,)) as pool:
        lines = pool.map(partial(write_class, out, part, size), tasks, chunksize=64)
    (out / name).write_text("".join(line for some in lines for line in some), encoding="utf-8")


def main() -> None:
    """Read the command line and write the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", choices=sorted(OFFICIAL), help="take the counts of this one")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--largest", type=int, default=100, help="images of the largest class")
    parser.add_argument("--ratio", type=float, default=10.0, help="largest / smallest class")
    parser.add_argument("--test-per-class", type=int, default=5)
    parser.add_argument(
        "--files", type=int, default=0, help="most image files per class and part; 0: one a line"
    )
    parser.add_argument("--photos", type=Path, help="folder or zip of photographs to cut tiles of")
    parser.add_argument("--size", type=int, default=0, help="width; 96 of photos, else 32")
    args = parser.parse_args()
    size = args.size or (96 if args.photos else 32)
    photos = read_photos(args.photos, size) if args.photos else []
    if args.counts:
        known = facts(args.counts)
        config = OFFICIAL[args.counts]()
        names = {"train": config.train, "val": config.val, "test": config.test}
        lists = {
            str(names[part]): (part, list(np.broadcast_to(of["counts"], known["num_classes"])))
            for part, of in known["parts"].items()
        }
    else:
        counts = class_profile(args.largest, args.classes, args.ratio, "exp")
        lists = {
            "train.txt": ("train", list(counts)),
            "test.txt": ("test", [args.test_per_class] * args.classes),
        }
    for name, (part, counts) in lists.items():
        write_part(args.out, part, name, [int(count) for count in counts], args.files, size, photos)


if __name__ == "__main__":
    main()

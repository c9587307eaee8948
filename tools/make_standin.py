"""Draw a stand-in for a data set one does not have: images, and lists with the right counts.

The images are tiny procedural JPEGs, a pattern per class; the many lines of a list point to few
files. It shows that a recipe runs, not what it would reach.

Usage:
  python tools/make_standin.py OUT --counts inat18      # official counts; data.verify=counts
  python tools/make_standin.py OUT --classes 20 --largest 100 --ratio 50
"""

from __future__ import annotations

import argparse
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from ltbench.data.longtail import class_profile
from ltbench.data.official import ImageNetLT, INat18, PlacesLT, facts
from ltbench.seeding import derive, keyed_uniform

OFFICIAL = {config.registered: config for config in (ImageNetLT, PlacesLT, INat18)}


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


def write_part(out: Path, part: str, name: str, counts: list[int], files: int, size: int) -> None:
    """Write at most ``files`` images per class, and a list with ``counts`` lines per class."""
    lines = []
    for label, count in enumerate(counts):
        folder = Path(part) / f"{label:05d}"
        (out / folder).mkdir(parents=True, exist_ok=True)
        paths = [(folder / f"{number}.jpg").as_posix() for number in range(min(count, files))]
        for number, path in enumerate(paths):
            draw(label, number + 10**6 * (part != "train"), size).save(out / path, quality=80)
        lines += [f"{path} {label}\n" for path in islice(cycle(paths), count)]
    (out / name).write_text("".join(lines), encoding="utf-8")


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
    parser.add_argument("--files", type=int, default=1, help="image files per class and part")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    args = parser.parse_args()
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
        write_part(args.out, part, name, [int(count) for count in counts], args.files, args.size)


if __name__ == "__main__":
    main()

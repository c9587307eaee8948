"""Draw the image lists of CIFAR-10-LT and CIFAR-100-LT again, from the official label sequences.

    python tools/freeze_cifar_lt.py cifar10 SOURCE --check

SOURCE is a folder with the official binary version (data_batch_1.bin .. or train.bin,
test_batch.bin or test.bin, and the text file of class names), or a zip archive that holds
train_labels.txt, test_labels.txt (one label per line, official order) and classes.csv. With --check
the result is compared with the committed files; otherwise they are written.

The rule of `seed0` is the field's: legacy NumPy RandomState(0); class after class, shuffle the
official indices of the class and keep the first int(n_max * ratio ** (-c / (C - 1))). `draw1` and
`draw2` are the same with RandomState(1) and RandomState(2).
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save

from ltbench.data.frozen_lists import FOLDER, PROTOCOLS, RATIOS, list_hash
from ltbench.data.longtail import class_profile

Labels = tuple[np.ndarray, np.ndarray, list[str]]


def read_zip(path: Path) -> Labels:
    """Return train labels, test labels and class names of an archive of text files."""
    with zipfile.ZipFile(path) as archive:

        def labels(split: str) -> np.ndarray:
            return np.array(archive.read(f"{split}_labels.txt").split(), dtype=np.uint8)

        rows = list(csv.DictReader(io.StringIO(archive.read("classes.csv").decode())))
        names = [row.get("fine_name") or row["name"] for row in rows]
        return labels("train"), labels("test"), names


def read_binary(folder: Path, dataset: str) -> Labels:
    """Return train labels, test labels and class names of the official binary version."""
    if dataset == "cifar10":
        train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
        names, column, record = "batches.meta.txt", 0, 3073
    else:
        train, test = ["train.bin"], ["test.bin"]
        names, column, record = "fine_label_names.txt", 1, 3074

    def labels(files: list[str]) -> np.ndarray:
        data = np.concatenate([np.fromfile(folder / file, np.uint8) for file in files])
        return data.reshape(-1, record)[:, column].copy()

    return labels(train), labels(test), (folder / names).read_text().split()


def draw(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """Return the official indices of every class in the order drawn."""
    rng = np.random.RandomState(seed)
    shuffled = []
    for c in range(num_classes):
        mine = np.flatnonzero(labels == c)
        rng.shuffle(mine)
        shuffled.append(mine)
    return shuffled


def freeze(train: np.ndarray, test: np.ndarray, names: list[str]) -> tuple[bytes, str]:
    """Return the contents of the two committed files."""
    classes = len(names)
    n_max = len(train) // classes
    arrays = {"train_labels": train, "test_labels": test}
    hashes = {}
    for seed, protocol in enumerate(PROTOCOLS):
        order = draw(train, classes, seed)
        held = class_profile(n_max, classes, RATIOS[0])
        arrays[protocol] = np.concatenate(
            [mine[:n] for mine, n in zip(order, held, strict=True)]
        ).astype(np.uint16)
        for profile in ("exp", "step"):
            for ratio in RATIOS:
                counts = class_profile(n_max, classes, ratio, profile)
                kept = [mine[:n] for mine, n in zip(order, counts, strict=True)]
                key = f"{protocol}/{profile}/{ratio}"
                hashes[key] = list_hash(np.sort(np.concatenate(kept)))
    return save(arrays), json.dumps({"class_names": names, "sha256": hashes}, indent=1) + "\n"


@click.command(help=__doc__.split("\n")[0] if __doc__ else None)
@click.argument("dataset", type=click.Choice(["cifar10", "cifar100"]))
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--check", is_flag=True, help="Compare with the committed files, write nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
def main(dataset: str, source: Path, check: bool, out: Path) -> None:
    """Write or compare the frozen files of one data set."""
    labels = read_binary(source, dataset) if source.is_dir() else read_zip(source)
    arrays, facts = freeze(*labels)
    files = {f"{dataset}.safetensors": arrays, f"{dataset}.json": facts.encode()}
    for name, content in files.items():
        if not check:
            (out / name).write_bytes(content)
        elif (out / name).read_bytes() != content:
            raise click.ClickException(f"{out / name} differs from that of {source}")
        click.echo(f"{'same' if check else 'wrote'} {out / name}")


if __name__ == "__main__":
    main()

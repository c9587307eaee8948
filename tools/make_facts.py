"""Write ltbench/data/facts/*.json from the official lists and per-class counts.

Usage: python tools/make_facts.py LISTS [OUT]
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.data.listing import read_list
from ltbench.data.official import EDITIONS

OUT = Path(__file__).parent.parent / "ltbench" / "data" / "facts"

# data set: (per-class training counts, or nothing if they are those of the list, {part: list}); a
# part that is not here has no known hash
SOURCES = {
    "imagenet_lt": (
        "ImageNet_LT_train_counts.csv",
        {"val": "ImageNet_LT_val.txt.gz", "test": "ImageNet_LT_test.txt.gz"},
    ),
    "places_lt": (
        "Places_LT_train_counts.csv",
        {part: f"Places_LT_{part}.txt.gz" for part in ("train", "val", "test")},
    ),
    "inat18": ("iNaturalist18_train_counts.csv", {"test": "iNaturalist18_val.txt.gz"}),
    **{
        f"isic2019_lt_{ratio}": (
            "",
            {p: f"isic_lt/isic2019_lt8_{p}_{ratio}.txt.gz" for p in ("train", "val", "test")},
        )
        for ratio in EDITIONS["isic2019_lt"]
    },
    "isic_archive_lt": (
        "",
        {p: f"isic_lt/isic_archive_lt14_{p}.txt.gz" for p in ("train", "val", "test")},
    ),
    "semi_aves": (
        "",
        {
            "train": "ssl_evaluation/semi_aves_l_train.txt.gz",
            "val": "ssl_evaluation/semi_aves_val.txt.gz",
            "test": "ssl_evaluation/semi_aves_test.txt.gz",
        },
    ),
    "semi_fungi": (
        "",
        {
            "train": "ssl_evaluation/semi_fungi_l_train_val.txt.gz",
            "test": "ssl_evaluation/semi_fungi_test.txt.gz",
        },
    ),
    "semi_inat": (
        "",
        {
            "train": "ssl_evaluation/semi_inat_l_train.txt.gz",
            "test": "ssl_evaluation/semi_inat_val.txt.gz",
        },
    ),
}


def facts(lists: Path, counts_file: str, parts: dict[str, str]) -> dict[str, Any]:
    """Return the facts of one data set."""
    if counts_file:
        counts = read_counts(lists / counts_file)
    else:
        counts = np.bincount(read_list(lists / parts["train"]).labels).tolist()
    result: dict[str, Any] = {"train": {"lines": sum(counts), "counts": counts, "sha256": None}}
    for part, name in parts.items():
        listing = read_list(lists / name)
        found = np.bincount(listing.labels, minlength=len(counts)).tolist()
        if part == "train" and found != counts:
            raise SystemExit(f"{name} does not have the counts of {counts_file}")
        result[part] = {
            "lines": len(listing.labels),
            "counts": found[0] if len(set(found)) == 1 else found,
            "sha256": listing.sha256,
        }
    return {"num_classes": len(counts), "parts": result}


def read_counts(path: Path) -> list[int]:
    """Return the training images of each class from a table of class, name and images."""
    with path.open(encoding="utf-8") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    if [int(row[0]) for row in rows] != list(range(len(rows))):
        raise SystemExit(f"{path.name}: the classes are not 0, 1, 2, ...")
    return [int(row[2]) for row in rows]


def main(lists: str, out: str = str(OUT)) -> None:
    """Write one file per data set."""
    for name, (counts_file, parts) in SOURCES.items():
        text = json.dumps(facts(Path(lists), counts_file, parts), separators=(",", ":"))
        (Path(out) / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])

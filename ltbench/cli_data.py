"""The commands `ltbench data ...`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from ltbench.display import console
from ltbench.errors import UserError, did_you_mean

RECIPES = {"cifar10_lt": "cifar10", "cifar100_lt": "cifar100", "inat18": "inat"}  # ends of names


@click.group()
def data() -> None:
    """Pack a data set into shards, check it, look at it."""


@data.command()
@click.argument("words", nargs=-1, metavar="dataset=NAME root=IMAGES out=DIR [key=value ...]")
def prepare(words: tuple[str, ...]) -> None:
    """Check the images against their lists, then pack them into shards with an index.

    A packing that was killed goes on with the same command. Bytes are kept as they are, unless
    resize_short= is given; labels are never renumbered.

    \b
    Examples:
      ltbench data prepare dataset=inat18 root=IMAGES lists=DIR out=SHARDS
      ltbench data prepare dataset=imagenet_lt root=IMAGES lists=DIR out=SHARDS workers=16
      ltbench data prepare dataset=places_lt root=IMAGES lists=DIR out=SHARDS prefix='{"data_256/": "train/"}'
      ltbench data prepare dataset=folder root=MY_IMAGES out=SHARDS resize_short=320
      ltbench data prepare dataset=cifar10 root=DIR out=SHARDS
    \b
    Further keys: shard_mb=256 seed=0 workers=CORES, and the options of the data set
    """  # noqa: D301, E501
    from ltbench.data.prepare import Packing, prepare
    from ltbench.report import counting

    given = _words(words)
    dataset, out = _needed(given, "dataset"), Path(_needed(given, "out")).expanduser()
    dataset = {recipe: name for name, recipe in RECIPES.items()}.get(dataset, dataset)
    packing = Packing(
        shard_mb=_integer(given, "shard_mb", 256, 1, 1024),
        seed=_integer(given, "seed", 0, 0, 2**31),
        resize_short=_integer(given, "resize_short", 0, 8, 4096) or None,
        workers=_integer(given, "workers", os.cpu_count() or 1, 1, 1024),
    )
    root, lists = given.pop("root", None), given.pop("lists", None)
    with counting(console) as progress:
        done = prepare(
            dataset, out, root=root, lists=lists, options=given, packing=packing, progress=progress
        )
    for name, manifest in done.items():
        size = sum(shard.bytes for shard in manifest.shards)
        console.print(
            f"{name:<6} {manifest.samples:>9,} images  {manifest.num_classes:,} classes  "
            f"{len(manifest.shards):,} shards  {size / 2**20:,.0f} MiB  "
            f"{out / name / 'manifest.json'}"
        )
    console.print("\nnext:")
    console.print(f"  ltbench data check {out} level=crc")
    console.print(f"  ltbench data show {out}")
    own = dataset in ("folder", "list")
    name = "mislas data=shards" if own else f"mislas_plot_{RECIPES.get(dataset, dataset)}"
    console.print(f"  ltbench run recipe={name} data.root={out}")


@data.command()
@click.argument("words", nargs=-1, metavar="PATH [level=size|crc|sha256|decode] [workers=N]")
def check(words: tuple[str, ...]) -> None:
    """Verify shards: sizes and index, every image's checksum, whole tars, or that all decode.

    \b
    Examples:
      ltbench data check SHARDS
      ltbench data check SHARDS/train level=decode workers=8
    """  # noqa: D301
    from ltbench.data.shards.check import LEVELS, check
    from ltbench.report import counting

    path, given = _path(words)
    level = given.pop("level", "crc")
    workers = _integer(given, "workers", os.cpu_count() or 1, 1, 1024)
    _nothing_left(given, ("level", "workers"))
    if level not in LEVELS:
        raise UserError(
            f"level={level} is none of {', '.join(LEVELS)}{did_you_mean(level, LEVELS)}"
        )
    with counting(console) as progress:
        report = check(
            path, level, workers=workers, progress=lambda done, all_: progress(level, done, all_)
        )
    if report.problems:
        raise UserError("\n".join(report.problems))
    console.print(
        f"{path}: {report.images:,} images in {report.shards:,} shards, level {level}: ok"
    )


@data.command()
@click.argument("words", nargs=-1, metavar="TAR [TAR ...] out=DIR [split=train] [label=cls]")
def index(words: tuple[str, ...]) -> None:
    """Index webdataset tars made elsewhere, without copying them.

    \b
    Examples:
      ltbench data index tars/train-*.tar out=SHARDS split=train
      ltbench data index tars/val-*.tar out=SHARDS split=test label=json:label
    """  # noqa: D301
    from ltbench.data.shards.foreign import index_tars
    from ltbench.report import counting

    tars = [Path(word).expanduser() for word in words if "=" not in word]
    given = _words(word for word in words if "=" in word)
    out, split = Path(_needed(given, "out")).expanduser(), given.pop("split", "train")
    label = given.pop("label", "cls")
    _nothing_left(given, ("out", "split", "label"))
    if not tars:
        raise UserError("expected tars to index, found none: ltbench data index TAR ... out=DIR")
    with counting(console) as progress:
        manifest = index_tars(
            tars, out, split=split, label=label,
            progress=lambda done, all_: progress(split, done, all_),
        )  # fmt: skip
    console.print(
        f"{manifest.samples:,} images of {manifest.num_classes:,} classes in "
        f"{len(manifest.shards):,} tars: {out / split / 'manifest.json'}"
    )
    console.print(
        f"\nnext:\n  ltbench data show {out}\n  ltbench run recipe=ce data=shards data.root={out}"
    )


@data.command()
@click.argument("words", nargs=-1, metavar="PATH [out=FILE.png]")
def show(words: tuple[str, ...]) -> None:
    """Show the counts and shot groups of a prepared data set, and draw its long tail.

    \b
    Example:
      ltbench data show SHARDS out=tail.png
    """  # noqa: D301
    from ltbench.atomic import write_atomic
    from ltbench.data.shards.dataset import open_parts
    from ltbench.data.show import group_rows, part_rows, picture

    path, given = _path(words)
    out = Path(given.pop("out", "long_tail.png"))
    _nothing_left(given, ("out",))
    parts = open_parts(str(path))
    if parts is None:
        raise UserError(f"`{path}` holds no shards; make some with `ltbench data prepare`")
    train = parts["train"].manifest
    _print_rows(f"{train.dataset}, {train.num_classes:,} classes", part_rows(parts))
    _print_rows("shot groups of the training part", group_rows(train.class_counts))
    write_atomic(out, picture(train.dataset, train.class_counts))
    console.print(f"long tail   {out}")


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("part", "group") else "right")
    for row in rows:
        table.add_row(
            *(
                f"{v:,.5g}"
                if isinstance(v, float)
                else escape(f"{v:,}" if isinstance(v, int) else v)
                for v in row.values()
            )
        )
    console.print(table)


def _words(words: Any) -> dict[str, Any]:
    from ltbench.config import parse_word

    given: dict[str, Any] = {}
    for word in words:
        key, value = parse_word(word)
        if key in given:
            raise UserError(f"`{key}=` is given twice; give it once")
        given[key] = value
    return given


def _path(words: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    paths = [word for word in words if "=" not in word]
    if len(paths) != 1:
        raise UserError(f"expected one PATH, found {', '.join(paths) or 'none'}")
    return Path(paths[0]).expanduser(), _words(word for word in words if "=" in word)


def _needed(given: dict[str, Any], key: str) -> str:
    if not given.get(key):
        raise UserError(f"expected `{key}=...`, found {', '.join(given) or 'nothing'}")
    return str(given.pop(key))


def _integer(given: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = given.pop(key, default)
    if value != default and not (type(value) is int and low <= value <= high):
        raise UserError(f"`{key}` must be a whole number from {low} to {high}, found {value}")
    return int(value)


def _nothing_left(given: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        raise UserError(
            f"unknown word `{key}`{did_you_mean(key, known)}; known: {', '.join(known)}"
        )

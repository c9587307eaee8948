"""The commands `ltbench data ...`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any, Literal

import click
from pydantic import Field
from rich.markup import escape
from rich.table import Table

from ltbench.cli.command import Group, WordsCommand
from ltbench.cli.display import console, plain
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, REST, read_words
from ltbench.data import DATASETS
from ltbench.errors import UserError
from ltbench.machine import cores


class Prepare(Config):
    """Words of `ltbench data prepare`."""

    dataset: str = Field(description="name of the data set")
    out: Path = Field(description="folder of the shards")
    root: str | None = Field(None, description="folder of the images")
    lists: str | None = Field(None, description="folder of the lists, where it is not the root")
    shard_mb: int = Field(256, ge=1, le=1024, description="size of a shard in MiB")
    seed: int = Field(0, ge=0, le=2**31, description="seed of the order of images in the shards")
    resize_short: int | None = Field(
        None, ge=8, le=4096, description="short side in pixels to shrink images to"
    )
    workers: int = Field(default_factory=cores, ge=1, le=1024, description="processes")
    options: dict[str, Any] = Field(
        {}, json_schema_extra=REST, description="options of the data set"
    )


class Check(Config):
    """Words of `ltbench data check`."""

    path: Path = Field(json_schema_extra=PLAIN, description="folder of shards")
    level: Literal["size", "crc", "sha256", "decode"] = Field("crc", description="depth of check")
    workers: int = Field(default_factory=cores, ge=1, le=1024, description="processes")


class Index(Config):
    """Words of `ltbench data index`."""

    tars: tuple[Path, ...] = Field(json_schema_extra=PLAIN, description="tars to index")
    out: Path = Field(description="folder of the index")
    split: str = Field("train", description="part of the data set that they hold")
    label: str = Field("cls", description="member that holds the label, or json:KEY")


class Show(Config):
    """Words of `ltbench data show`."""

    path: Path = Field(json_schema_extra=PLAIN, description="folder of shards")
    out: Path = Field(Path("long_tail.png"), description="picture of the long tail")


class TextTable(Config):
    """Words of `ltbench data text-table`."""

    dataset: str = Field(description="name of the data set")
    out: Path = Field(description="file to write, ending in .safetensors")
    encoder: str = Field(
        "vit_base_patch16_clip_quickgelu_224.openai",
        description="image encoder of the recipe, by its name in timm",
    )
    prompt: str = Field("a photo of a {}.", description="sentence, with {} for the class name")
    names: Path | None = Field(
        None, description="file with one English name per line, in class order"
    )
    weights: str | None = Field(None, description="file of OpenCLIP's weights of the encoder")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    options: dict[str, Any] = Field(
        {}, json_schema_extra=REST, description="options of the data set, e.g. root=DIR"
    )


@click.group(cls=Group)
def data() -> None:
    """Pack a data set into shards, check it, look at it; text features of its classes."""


@data.command(cls=WordsCommand, options=Prepare)
@click.argument("words", nargs=-1, metavar="dataset=NAME root=IMAGES out=DIR [key=value ...]")
def prepare(words: tuple[str, ...]) -> None:
    """Check the images against their lists, then pack them into shards with an index.

    The same command continues an interrupted packing. Bytes are kept as they are, unless
    resize_short= is given; labels are never renumbered.

    \b
    Examples:
      ltbench data prepare dataset=inat18 root=IMAGES lists=DIR out=SHARDS
      ltbench data prepare dataset=imagenet_lt root=IMAGES lists=DIR out=SHARDS workers=16
      ltbench data prepare dataset=places_lt root=IMAGES lists=DIR out=SHARDS prefix='{"data_256/": "train/"}'
      ltbench data prepare dataset=folder root=MY_IMAGES out=SHARDS resize_short=320
      ltbench data prepare dataset=cifar10 root=DIR out=SHARDS
    """  # noqa: D301, E501
    given = read_words(words, Prepare)
    from ltbench.data.official import EDITIONS
    from ltbench.data.prepare import Packing, prepare
    from ltbench.train.progress import counting

    out = given.out
    names = {part.suffix: name for name, part in DATASETS.parts().items()}
    dataset = names.get(given.dataset, given.dataset)
    packing = Packing(
        shard_mb=given.shard_mb,
        seed=given.seed,
        resize_short=given.resize_short,
        workers=given.workers,
    )
    with counting(console) as progress:
        done = prepare(
            dataset,
            out,
            root=given.root,
            lists=given.lists,
            options=given.options,
            packing=packing,
            progress=progress,
        )
    for name, manifest in done.items():
        size = sum(shard.bytes for shard in manifest.shards)
        plain(
            f"{name:<6} {manifest.samples:>9,} images  {manifest.num_classes:,} classes  "
            f"{len(manifest.shards):,} shards  {size / 2**20:,.0f} MiB  "
            f"{out / name / 'manifest.json'}"
        )
    plain("\nnext:")
    plain(f"  ltbench data check {quote(str(out))} level=crc")
    plain(f"  ltbench data show {quote(str(out))}")
    suffix = DATASETS.facts(dataset).suffix
    name = f"mislas_plot_{suffix}" if suffix else "mislas data=shards"
    if dataset in EDITIONS and "imbalance_ratio" in given.options:
        name += f"_if{given.options['imbalance_ratio']}"
    plain(f"  ltbench run recipe={name} {quote(f'data.root={out}')}")


@data.command(cls=WordsCommand, options=Check)
@click.argument("words", nargs=-1, metavar="PATH [level=size|crc|sha256|decode] [workers=N]")
def check(words: tuple[str, ...]) -> None:
    """Verify shards: sizes and index, every image's checksum, whole tars, or that all decode.

    \b
    Examples:
      ltbench data check SHARDS
      ltbench data check SHARDS/train level=decode workers=8
    """  # noqa: D301
    given = read_words(words, Check)
    from ltbench.data.shards.check import check
    from ltbench.train.progress import counting

    path, level = given.path, given.level
    with counting(console) as progress:
        report = check(
            path,
            level,
            workers=given.workers,
            progress=lambda done, all_: progress(level, done, all_),
        )
    if report.problems:
        raise UserError("\n".join(report.problems))
    plain(f"{path}: {report.images:,} images in {report.shards:,} shards, level {level}: ok")


@data.command(cls=WordsCommand, options=Index)
@click.argument("words", nargs=-1, metavar="TAR [TAR ...] out=DIR [split=train] [label=cls]")
def index(words: tuple[str, ...]) -> None:
    """Index webdataset tars made elsewhere, without copying them.

    \b
    Examples:
      ltbench data index tars/train-*.tar out=SHARDS split=train
      ltbench data index tars/val-*.tar out=SHARDS split=test label=json:label
    """  # noqa: D301
    given = read_words(words, Index)
    from ltbench.data.shards.foreign import index_tars
    from ltbench.train.progress import counting

    out, split = given.out, given.split
    with counting(console) as progress:
        manifest = index_tars(
            given.tars,
            out,
            split=split,
            label=given.label,
            progress=lambda done, all_: progress(split, done, all_),
        )
    plain(
        f"{manifest.samples:,} images of {manifest.num_classes:,} classes in "
        f"{len(manifest.shards):,} tars: {out / split / 'manifest.json'}"
    )
    plain(f"\nnext:\n  ltbench data show {quote(str(out))}")
    plain(f"  ltbench run recipe=ce data=shards {quote(f'data.root={out}')}")


@data.command(cls=WordsCommand, options=Show)
@click.argument("words", nargs=-1, metavar="PATH [out=FILE.png]")
def show(words: tuple[str, ...]) -> None:
    """Show the counts and shot groups of a prepared data set, and draw its long tail.

    \b
    Example:
      ltbench data show SHARDS out=tail.png
    """  # noqa: D301
    given = read_words(words, Show)
    from ltbench.data.shards.dataset import open_parts
    from ltbench.data.show import group_rows, part_rows, picture
    from ltbench.files import write_atomic

    path, out = given.path, given.out
    parts = open_parts(str(path))
    if parts is None:
        raise UserError(f"`{path}` holds no shards; make some with `ltbench data prepare`")
    train = parts["train"].manifest
    _print_rows(f"{train.dataset}, {train.num_classes:,} classes", part_rows(parts))
    _print_rows("shot groups of the training part", group_rows(train.class_counts))
    write_atomic(out, picture(train.dataset, train.class_counts))
    plain(f"long tail   {out}")


@data.command("text-table", cls=WordsCommand, options=TextTable)
@click.argument("words", nargs=-1, metavar="dataset=NAME out=FILE [key=value ...]")
def text_table(words: tuple[str, ...]) -> None:
    """Write the text features of the class names, from which a classifier can begin (LIFT).

    The text encoder is OpenCLIP's: pip install 'ltbench[text]'. The file is small, has half
    precision, and says which classes, names and encoder it is of.

    \b
    Examples:
      ltbench data text-table dataset=cifar100 out=cifar100.safetensors
      ltbench data text-table dataset=imagenet_lt root=DIR names=names.txt out=imagenet.safetensors
      ltbench run recipe=lift_cifar100 data.root=DIR stages.0.method.init.file=cifar100.safetensors
    """  # noqa: D301
    given = read_words(words, TextTable)
    from ltbench.config.validation import build_options
    from ltbench.data.listing import read_names
    from ltbench.data.text_table import sentences, write_table
    from ltbench.distributed.device import pick_device
    from ltbench.models.text import text_features

    names_of = {part.suffix: name for name, part in DATASETS.parts().items()}
    dataset = names_of.get(given.dataset, given.dataset)
    config: Any = build_options("DATASETS", dataset, given.options)
    classes = config.named_classes()
    names = classes if given.names is None else read_names(given.names, len(classes))
    lines = sentences(names, given.prompt)
    device = str(pick_device(given.device))
    features = text_features(lines, given.encoder, weights=given.weights, device=device)
    digest = write_table(
        given.out, features, classes=classes, names=names, encoder=given.encoder,
        prompt=given.prompt,
    )  # fmt: skip
    count, width = features.shape
    plain(f"{given.out}: {count:,} classes, {width} numbers each, e.g. `{lines[0]}`")
    plain(f"encoder {given.encoder}, SHA-256 {digest[:12]}")
    plain(f"\nnext:\n  stages.0.method.init.file={quote(str(given.out))} for a recipe of LIFT")


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

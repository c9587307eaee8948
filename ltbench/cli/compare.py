"""The command `ltbench compare`."""

from __future__ import annotations

from pathlib import Path

import click
from pydantic import Field

from ltbench.cli.command import WordsCommand
from ltbench.cli.display import plain, prose
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, read_words


class Compare(Config):
    """Words of `ltbench compare`."""

    run: tuple[str, ...] = Field(
        json_schema_extra=PLAIN,
        description="folder of a run or a grid, record file, or NAME or NAME.SEED of a committed "
        "record; patterns too",
    )
    baseline: str = Field(description="name of a recipe among them, or runs")
    out: Path | None = Field(None, description="folder for compare.csv, .md, .tex, .json and .png")


@click.command(cls=WordsCommand, options=Compare)
@click.argument("words", nargs=-1, metavar="RUN... baseline=RECIPE|RUN [out=DIR]")
def compare(words: tuple[str, ...]) -> None:
    """Compare methods with a baseline by paired differences over seeds.

    Runs are paired by seed and must be on the same images. Each difference has a 95 % interval and
    a p value (paired t-test, Holm's correction for several methods), and the last lines say in
    words which differences the seeds resolve. One seed has an interval over test images if the
    predictions of both models lie in their folders (ltbench eval model=RUN out=RUN/eval).

    \b
    Examples:
      ltbench compare runs/GRID baseline=ce_cifar10 out=comparison
      ltbench compare "runs/crt_*/seed*" baseline=runs/ce_cifar10-1a2b3c4d
      ltbench compare ce_cifar100 crt_mixup_cifar100 baseline=ce_cifar100
    """  # noqa: D301
    given = read_words(words, Compare)
    from ltbench.records.compare import compare as compare_runs

    found = compare_runs(given.run, given.baseline)
    for line in repr(found).splitlines():
        prose(line)
    if given.out is not None:
        found.write(given.out)
        plain(f"\nwritten {given.out}/compare.csv, .md, .tex, .json, .png")

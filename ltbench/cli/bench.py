"""The commands `ltbench bench ...`."""

from __future__ import annotations

from pathlib import Path

import click

from ltbench.bench.words import Plot, Train, read_plot, read_train
from ltbench.cli.command import Group, WordsCommand
from ltbench.cli.display import console


@click.group(cls=Group)
def bench() -> None:
    """Measure speed, memory and exactness on this machine, as ratios from one run."""


@bench.command("plot", cls=WordsCommand, options=Plot)
@click.argument("words", nargs=-1, metavar="[what=...] [key=value ...]")
@click.option("--json", "as_json", type=click.Path(), help="Write the figures to this file.")
def bench_plot(words: tuple[str, ...], as_json: str | None) -> None:
    """Compare PLOT steps with plain ones, and fast class gradients with exact.

    \b
    what=steps       time of a step by pipeline: plain, sam, PLOT fast, certified, exact, with
                     torchjd's engine, and reference, the released algorithm
    what=memory      peak memory of a step
    what=traffic     bytes that ranks exchange
    what=agreement   the update against the exact one, at a checkpoint of a run (model=)
    \b
    Examples:
      ltbench bench plot
      ltbench bench plot what=steps classes=100 pipelines=plain,sam,fast
      ltbench bench plot what=steps,memory backbone=resnet50 pixels=112 batch=32 present=30
      ltbench bench plot what=agreement model=RUN/checkpoints/s0-e0010-t000000 data.root=DIR
    """  # noqa: D301
    given = read_plot(words)
    from ltbench.bench import report
    from ltbench.files import write_json

    figures = report.plot(given, console)
    if as_json:
        write_json(Path(as_json), figures)


@bench.command("train", cls=WordsCommand, options=Train)
@click.argument("words", nargs=-1, metavar="recipe=NAME [what=...] [key=value ...]")
@click.option("--profile", type=click.Path(), help="Write a Chrome trace of a few steps here.")
@click.option("--json", "as_json", type=click.Path(), help="Write the figures to this file.")
def bench_train(words: tuple[str, ...], profile: str | None, as_json: str | None) -> None:
    """Compare the training of a recipe with how the field's released codes would train it.

    \b
    what=speed       images/s, time of a step by phase, memory and load of both pipelines, which
                     take turns in one process, and their ratio
    what=agreement   how far the first steps differ, and the test accuracy of both (epochs=N)
    \b
    pipelines=fast,reference    fast is what `ltbench run` does; reference makes each image with
                                Pillow in loader processes, runs eager in single precision, reads
                                the loss in every step, and does PLOT with one backward pass per
                                class and SciPy's SLSQP
    \b
    Examples:
      ltbench bench train recipe=ce_cifar10 data.root=DIR
      ltbench bench train recipe=crt_mixup_plot_cifar100 data.root=DIR rounds=3 --profile t.json
      ltbench bench train recipe=quickstart stage=1 threads=2 pipelines=fast steps=20
      ltbench bench train recipe=ce_cifar10 data.root=DIR what=agreement epochs=10 seeds=3
    """  # noqa: D301
    trace = Path(profile) if profile else None
    given, recipe = read_train(words, trace)
    from ltbench.bench import train_report
    from ltbench.files import write_json

    figures = train_report.report(given, recipe, console, trace)
    if as_json:
        write_json(Path(as_json), figures)

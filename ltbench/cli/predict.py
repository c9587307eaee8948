"""The command `ltbench predict`."""

from __future__ import annotations

import time
from pathlib import Path

import click
from pydantic import Field

from ltbench.cli.command import OWN_PARTS, WordsCommand
from ltbench.cli.display import errors, say
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import read_words


class Predict(Config):
    """Words of `ltbench predict`."""

    model: str = Field(description="folder or file of a run, name of a model, or hf-hub:ORG/NAME")
    images: Path = Field(description="folder of images, image, or text file with a path a line")
    out: Path = Field(description="file to write, ending in .csv, .json or .parquet")
    topk: int = Field(5, ge=1, le=1_000_000, description="classes per image")
    seed: int = Field(0, ge=0, description="seed of a model that is given by its name")
    root: Path = Field(Path(), description="folder that the paths in a text file are relative to")
    batch_size: int = Field(250, ge=1, le=100_000, description="images per forward pass")
    plugins: tuple[str, ...] = OWN_PARTS
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int = Field(2, ge=0, le=1024, description="processes that decode images")


@click.command(cls=WordsCommand, options=Predict)
@click.argument("words", nargs=-1, metavar="model=PATH|NAME images=PATH out=FILE [key=value ...]")
def predict(words: tuple[str, ...]) -> None:
    """Classify images without labels with a trained model.

    The table has a row for each image: its path, then label, name and probability of the most
    probable classes. Images that cannot be read are listed at the end.

    \b
    Examples:
      ltbench predict model=RUN images=DIR out=predictions.csv
      ltbench predict model=quickstart images=digit.png out=digit.json topk=3
      ltbench predict model=hf-hub:ORG/NAME@COMMIT images=paths.txt out=predictions.parquet
    """  # noqa: D301
    given = read_words(words, Predict)
    from ltbench.evaluation.tables import encoded
    from ltbench.files import write_atomic
    from ltbench.hub.load import load
    from ltbench.hub.output import check_output
    from ltbench.hub.predict import is_predictions
    from ltbench.hub.predict import predict as predict_images
    from ltbench.train.progress import counting

    allowed = dict.fromkeys((".csv", ".json", ".parquet"), is_predictions)
    out = check_output(given.out, allowed, "a table of predictions")
    plugins.load_plugins(given.plugins)
    began = time.monotonic()
    model = load(given.model, seed=given.seed)
    with counting(errors) as progress:
        found = predict_images(
            model,
            given.images,
            topk=given.topk,
            batch_size=given.batch_size,
            device=given.device,
            workers=given.workers,
            unreadable="skip",
            root=given.root,
            progress=lambda done, total: progress("images", done, total),
        )
    write_atomic(out, encoded(found.frame(), out.suffix))
    for _, reason in found.unreadable:
        say(f"skipped: {reason}", err=True)
    count = len(found) + len(found.unreadable)
    skipped = f", {len(found.unreadable):,} skipped" if found.unreadable else ""
    images = "image" if count == 1 else "images"
    say(f"{count:,} {images}{skipped}, {time.monotonic() - began:.1f} s: {out}")

"""The command `ltbench export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from pydantic import Field

from ltbench.cli.command import OWN_PARTS, WordsCommand
from ltbench.cli.display import say
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import read_words


class Export(Config):
    """Words of `ltbench export`."""

    model: str = Field(description="folder or file of a run, name of a model, or hf-hub:ORG/NAME")
    out: Path = Field(description="file to write, ending in .onnx, .pt2 or .safetensors")
    format: Literal["onnx", "torch", "safetensors"] | None = Field(
        None,
        description="onnx, torch (a program of torch.export) or safetensors (a state dict); by "
        "default what the ending of out says",
    )
    plugins: tuple[str, ...] = OWN_PARTS
    seed: int = Field(0, ge=0, description="seed of a model that is given by its name")


@click.command(cls=WordsCommand, options=Export)
@click.argument("words", nargs=-1, metavar="model=PATH|NAME out=FILE [format=onnx|torch|...]")
def export(words: tuple[str, ...]) -> None:
    """Export a trained model for other programs, with its class names and preprocessing.

    The command compares the logits of the file with those of the model, and writes no file if
    they differ. ONNX needs pip install 'ltbench[export]'.

    \b
    Examples:
      ltbench export model=RUN out=model.onnx
      ltbench export model=quickstart out=quickstart.pt2
      ltbench export model=RUN format=safetensors out=weights.safetensors
    """  # noqa: D301
    given = read_words(words, Export)
    from ltbench.hub.formats import export_model
    from ltbench.hub.load import load_described

    plugins.load_plugins(given.plugins)
    method, facts = load_described(given.model, seed=given.seed)
    done = export_model(method, facts, given.out, given.format)
    say(f"{done.path}  {done.path.stat().st_size / 2**20:,.2f} MiB")
    say(
        f"logits of {done.images} images differ by at most {done.difference:.1e} (largest logit "
        f"{done.largest:.3g})"
    )

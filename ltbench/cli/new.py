"""The commands `ltbench new ...`."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path
from shlex import quote

import click
from pydantic import Field

from ltbench.cli.command import Group, WordsCommand
from ltbench.cli.display import say
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, read_words
from ltbench.errors import UserError, visible

METHOD = '''"""TITLE: say in a sentence what it does.

Train it:  ltbench run recipe=NAME.yaml
Test it:   pytest test_NAME.py
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ltbench.config import schema
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Method, Progress, Rows


class Options(schema.Config):
    """Options of TITLE: keys of `method` in a recipe, checked before anything runs."""

    strength: float = 0.5


@METHODS.register("NAME", title="TITLE")
class CLASS(Method):
    """Cross-entropy with a margin that grows for rare classes; replace it by your method.

    Reference: where it was published.
    Departures: what differs from there.
    """

    Config = Options
    config: Options

    # Further hooks, all optional: make_head (the classifier), prepare (mixing, once per step),
    # on_epoch, after_step, predict (images -> logits). See `ltbench.methods.base.Method`.

    def setup(self, previous: Method | None) -> None:
        """Compute what stays fixed in training.

        `self.info.class_counts` holds the training images of each class. `previous` is the method
        of the stage before, or None.
        """
        counts = torch.tensor(self.info.class_counts, dtype=torch.float32)
        margins = self.config.strength * (counts.max() / counts.clamp(min=1)).log()
        self.register_buffer("margins", margins, persistent=False)  # it follows from the counts

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss per image, not their mean.

        With one loss per image and its class, every update works (SAM, PLOT), on any number of
        processes. `at` holds the position in training: epoch, epochs, step, seed.
        """
        logits = self.predict(batch.views[0])  # [B, C]
        rows = cross_entropy(logits - self.margins, batch.labels, reduction="none")  # [B]
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
'''
RECIPE = """# TITLE on a long tail of scikit-learn's digits: seconds, no network.
# Your images: data: {name: folder, root: IMAGES}; CIFAR: data: {name: cifar10_lt, root: DIR}
description: TITLE on a long tail of digits
plugins: [NAME.py]  # relative to this file
data: {name: digits_lt, imbalance_ratio: 20}
backbone: {name: resnet20_cifar, args: {widths: [4, 8, 16]}}  # thin; without args the full width
stages:
  - method: {name: NAME, strength: 0.5}
    epochs: 1
    batch_size: 64
    optim: {lr: 0.1, weight_decay: 5.0e-4}
    # sampler: class_aware
    # update: {name: plot, epochs: 10}
"""
TEST = '''"""TITLE: its loss on a small batch, and a run of two steps."""

from pathlib import Path

import torch

import ltbench
from ltbench.data.base import DatasetInfo
from ltbench.methods.base import Batch, Progress
from ltbench.methods.build import build_method

RECIPE = Path(__file__).with_name("NAME.yaml")
COUNTS = (100, 20, 5)


def test_the_loss_has_one_finite_row_per_image_and_a_gradient():
    recipe = ltbench.get_recipe(str(RECIPE))
    info = DatasetInfo("toy", COUNTS, ("a", "b", "c"))
    method = build_method(recipe, 0, info)
    batch = Batch((torch.randn(6, 3, 16, 16),), torch.tensor([0, 0, 0, 1, 1, 2]), torch.arange(6))
    out = method.loss(batch, Progress(seed=0, stage=0, epoch=0, epochs=1, step=0))
    assert out.rows.shape == (6,)
    assert out.rows.isfinite().all()
    out.rows.mean().backward()
    assert all(p.grad is not None for p in method.head.parameters())


def test_it_trains_evaluates_and_loads(tmp_path):
    recipe = ltbench.get_recipe(str(RECIPE), run__max_steps=2, out=str(tmp_path / "run"))
    result = ltbench.run(recipe)
    assert 0 <= result.metrics.top1 <= 1
    model = ltbench.load(result.folder)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
'''
RESERVED = {"None", "True", "False", "Rows"}  # names of classes that would break the files


class NewMethod(Config):
    """Words of `ltbench new method`."""

    name: str = Field(json_schema_extra=PLAIN, description="name of the method, e.g. tail_margin")
    out: Path | None = Field(None, description="folder of the files; by default NAME")


@click.group(cls=Group)
def new() -> None:
    """Begin a method of your own, outside the package."""


@new.command(cls=WordsCommand, options=NewMethod)
@click.argument("words", nargs=-1, metavar="NAME [out=DIR]")
def method(words: tuple[str, ...]) -> None:
    """Write a commented method, a recipe and a test, which work as they are.

    \b
    Example:
      ltbench new method tail_margin
      pytest tail_margin
      ltbench run recipe=tail_margin/tail_margin.yaml
    """  # noqa: D301
    given = read_words(words, NewMethod)
    from ltbench.files import write_atomic
    from ltbench.methods import METHODS

    name, out = given.name, given.out or Path(given.name)
    if not re.fullmatch("[a-z][a-z0-9_]{0,59}", name):
        raise UserError(
            f"expected a NAME of lower-case letters, digits and `_`, found `{visible(name)}`"
        )
    title = name.replace("_", " ").title()
    values = {"NAME": name, "TITLE": title, "CLASS": title.replace(" ", "")}
    if keyword.iskeyword(name) or values["CLASS"] in RESERVED:
        raise UserError(f"`{name}` cannot be the name of a class in Python; take another name")
    if name in METHODS:
        raise UserError(f"method `{name}` exists, see `ltbench list methods`; take another name")
    texts = {f"{name}.py": METHOD, f"{name}.yaml": RECIPE, f"test_{name}.py": TEST}
    there = [file for file in texts if (out / file).exists() or (out / file).is_symlink()]
    if there:
        raise UserError(f"{out / there[0]} exists and is not replaced; pass another `out=`")
    known = None if name in sys.modules else importlib.util.find_spec(name)
    if name in sys.modules or (known is not None and known.origin is not None):
        raise UserError(f"{name}.py would hide Python's module `{name}`; take another name")
    if out.exists() and not out.is_dir():
        raise UserError(f"`out`: expected a folder, found the file {out}")
    out.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        for place, value in values.items():
            text = text.replace(place, value)
        write_atomic(out / file, text.encode())
        say(f"{out / file}")
    recipe = quote(f"recipe={out / name}.yaml")
    say(f"\nnext:\n  pytest {quote(str(out))}\n  ltbench run {recipe}")

"""The command `ltbench eval`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic import Field
from rich.markup import escape

from ltbench.cli.command import OWN_PARTS, WordsCommand
from ltbench.cli.display import console, errors, metrics_table
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import read_words

if TYPE_CHECKING:
    from torch import Tensor

    from ltbench.data.loader import Loaded


class Evaluate(Config):
    """Words of `ltbench eval`."""

    model: str = Field(description="folder or file of a run, name of a model, or hf-hub:ORG/NAME")
    seed: int = Field(0, ge=0, description="seed of a model that is given by its name")
    dataset: str | None = Field(None, description="another data set than the model's own")
    data: dict[str, Any] = Field({}, description="options of the data set, e.g. data.root=DIR")
    out: Path | None = Field(
        None, description="folder for predictions, results by class and the confusion matrix"
    )
    table: Literal["csv", "parquet"] = Field("csv", description="format of the predictions in out")
    encoder: str | None = Field(
        None, description="file of the encoder's weights, for adapters published apart from it"
    )
    crops: Literal["centre", "five"] = Field(
        "centre",
        description="five: a second evaluation with the mean of the logits of five crops, at the "
        "corners and in the centre",
    )
    expand: int = Field(
        24, ge=0, le=2048, description="pixels by which the short side is longer than five crops"
    )
    batch_size: int = Field(250, ge=1, le=100_000, description="images per forward pass")
    plugins: tuple[str, ...] = OWN_PARTS
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int = Field(2, ge=0, le=1024, description="processes that decode images")


@click.command("eval", cls=WordsCommand, options=Evaluate)
@click.argument("words", nargs=-1, metavar="model=PATH|NAME [out=DIR] [data.key=value ...]")
def eval_(words: tuple[str, ...]) -> None:
    """Evaluate a trained model on the test set of its own or another data set.

    With out=DIR it also writes a prediction for each image, the results of each class, and the
    confusion matrix as a table and a picture.

    \b
    Examples:
      ltbench eval model=runs/quickstart-1a2b3c4d/seed0 out=results
      ltbench eval model=RUN/model.safetensors data.root=DIR
      ltbench eval model=quickstart seed=0                      a trained model by its name
      ltbench eval model=RUN crops=five expand=24               with and without five crops
      ltbench eval model=hf-hub:ORG/NAME@COMMIT data.root=DIR
      ltbench eval model=RUN dataset=list data.root=DIR data.train=train.txt data.test=new.txt
    """  # noqa: D301
    given = read_words(words, Evaluate)
    from ltbench.config.validation import build_options
    from ltbench.evaluation.evaluate import evaluate
    from ltbench.evaluation.report import check_folder, write_report
    from ltbench.evaluation.summary import DERIVED, shot_line
    from ltbench.evaluation.tables import Outcomes
    from ltbench.hub.load import load_described
    from ltbench.methods.weights import check_classes
    from ltbench.records.validation import is_candidate
    from ltbench.train.progress import counting

    if given.out is not None:
        check_folder(given.out)
    plugins.load_plugins(given.plugins)
    method, facts = load_described(given.model, seed=given.seed, encoder=given.encoder)
    if (folder := Path(given.model)).is_dir() and is_candidate(folder):
        warnings.warn(
            f"{folder} was evaluated on validation images, to choose among several runs: results "
            "on test images must not decide that choice",
            stacklevel=1,
        )
    own = dict(facts["recipe"]["data"])
    name = given.dataset or own["name"]
    options = {k: v for k, v in own.items() if k != "name"} if name == own["name"] else {}
    config = build_options("DATASETS", name, {**options, **given.data})
    rule = facts["recipe"].get("shot_rule", "strict")
    data = config.load()  # type: ignore[attr-defined]
    check_classes(facts, data.info, given.model)
    title = f"{facts['recipe']['name']} on {name}"
    about: dict[str, Any] = {
        "model": given.model,
        "recipe": facts["recipe"]["name"],
        "dataset": name,
    }
    for expand in (None, given.expand) if given.crops == "five" else (None,):
        outcomes = Outcomes()  # with five crops those of the second evaluation
        with counting(errors) as progress:
            done = 0

            def each(loaded: Loaded, logits: Tensor, outcomes: Outcomes = outcomes) -> None:
                nonlocal done
                done += len(logits)
                progress("images", done, len(data.test))
                if given.out is not None:
                    outcomes(loaded, logits)

            metrics = evaluate(
                method, data, rule=rule, class_counts=facts["class_counts"], device=given.device,
                workers=given.workers, batch_size=given.batch_size, each=each, five_crops=expand,
            )  # fmt: skip
        if expand is not None:
            title += f", five crops (+{expand})"
        console.print(metrics_table(title, metrics))
        if given.crops == "five" and expand is None:
            about["centre_crop"] = {name: getattr(metrics, name) for name in DERIVED}
        elif given.crops == "five":
            about |= {"crops": "five", "expand": expand}
    console.print(f"{shot_line(metrics)}, by training images", soft_wrap=True)
    if given.out is not None:
        files = write_report(
            given.out, metrics, outcomes, data.test, method.class_names, about=about, title=title,
            table=given.table,
        )  # fmt: skip
        console.print(f"{escape(str(given.out))}: {', '.join(files)}", soft_wrap=True)

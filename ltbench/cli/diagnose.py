"""The commands `ltbench diagnose ...`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field
from rich.markup import escape

from ltbench.cli.command import OWN_PARTS, DefaultGroup, WordsCommand
from ltbench.cli.display import console, plain
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, REST, missing, read_words
from ltbench.diagnose import DIAGNOSTICS, ORDER, PAGE, WITH_CLAIMS
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.diagnose.base import Subject
    from ltbench.diagnose.report import Section


class Diagnose(Config):
    """Words of both commands."""

    what: tuple[str, ...] = Field(tuple(ORDER), description="diagnostics; `list` explains them")
    out: Path | None = Field(None, description="folder of the report; by default diagnose/NAME")
    plugins: tuple[str, ...] = OWN_PARTS
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    quiet: bool = Field(False, description="print the path of the report only")
    data: dict[str, Any] = Field({}, description="options of the data set, e.g. data.root=DIR")
    options: dict[str, Any] = Field(
        {}, json_schema_extra=REST, description="DIAGNOSTIC.OPTION=VALUE, e.g. hessian.batches=8"
    )


class Model(Diagnose):
    """Words of `ltbench diagnose`."""

    model: str | None = Field(None, description="folder, .safetensors file, or name of a model")
    run: Path | None = Field(None, description="folder of a run")


class Compare(Diagnose):
    """Words of `ltbench diagnose compare`."""

    models: tuple[str, ...] = Field(
        (), json_schema_extra=PLAIN, description="two models or more, as for model="
    )


class Claims(Diagnose):
    """Words of `ltbench diagnose claims`."""

    runs: tuple[str, ...] = Field(
        (), json_schema_extra=PLAIN, description="runs with PLOT, or the folder above their seeds"
    )
    baseline: tuple[str, ...] = Field(
        (), description="runs without it, of the same seeds, or the folder above them"
    )
    what: tuple[str, ...] = Field(
        tuple(name for name in ORDER if name in WITH_CLAIMS),
        description="diagnostics; `list` explains them",
    )


@click.group(cls=DefaultGroup, default="model")
def diagnose() -> None:
    """Look into trained models: class gradients, curvature, features, confidence.

    \b
    ltbench diagnose model=PATH|run=PATH [what=conflicts,norms,...] [out=DIR] [data.root=DIR]
    ltbench diagnose compare RUN RUN ... [what=...]
    ltbench diagnose claims RUN ... baseline=RUN,... [what=...]
    ltbench diagnose list
    \b
    Examples:
      ltbench diagnose run=runs/quickstart-1a2b3c4d/seed0
      ltbench diagnose run=RUN what=conflicts conflicts.batches=8 data.root=DIR out=report
      ltbench diagnose compare WITH_PLOT WITHOUT_PLOT what=conflicts,hessian,cca
      ltbench diagnose claims WITH_PLOT baseline=WITHOUT_PLOT     the paper's claims, over seeds
    \b
    A model is a run's folder, its model.safetensors, a folder that was published, or a name of
    the zoo. Tables (CSV, Parquet), figures (PNG, SVG) and report.html go to out=, by default
    diagnose/NAME. For the log of training itself: ltbench run ... diagnose.every=20
    """  # noqa: D301


@diagnose.command(cls=WordsCommand, options=Model)
@click.argument("words", nargs=-1, metavar="model=PATH|run=PATH [key=value ...]")
def model(words: tuple[str, ...]) -> None:
    """Look into one model; `ltbench diagnose model=PATH` is short for it."""
    given = read_words(words, Model, rest=DIAGNOSTICS.names())
    sources = [str(source) for source in (given.model, given.run) if source is not None]
    if len(sources) > 1:
        raise UserError("expected one of model= and run=, found both; leave one out")
    if not sources:
        raise UserError(missing("model", words).replace("`model=...`", "`model=...` or `run=...`"))
    if given.run is not None and not given.run.is_dir():
        raise UserError(f"`run`: expected the folder of a run, found {given.run}")
    _diagnose(sources, given)


@diagnose.command(cls=WordsCommand, options=Compare)
@click.argument("words", nargs=-1, metavar="RUN RUN ... [key=value ...]")
def compare(words: tuple[str, ...]) -> None:
    """Put several models side by side in the same figures."""
    given = read_words(words, Compare, rest=DIAGNOSTICS.names())
    if len(given.models) < 2:
        found = " ".join(given.models) or "none"
        raise UserError(f"`compare` needs two models or more, found {found}")
    _diagnose(given.models, given)


@diagnose.command(cls=WordsCommand, options=Claims)
@click.argument("words", nargs=-1, metavar="RUN ... baseline=RUN,... [key=value ...]")
def claims(words: tuple[str, ...]) -> None:
    """Test the PLOT paper's claims, one by one, on runs of the same seeds with and without it.

    \b
    Example:
      ltbench diagnose claims runs/crt_mixup_plot-1a2b3c4d baseline=runs/crt_mixup-5e6f7a8b
    \b
    Conflicts, similarity with the step, curvature, CCA and open-set scores, paired by seed. The
    log of training (diagnose.every=N in both) has the claims about PLOT's epochs; unknown images
    (openset.dataset=NAME openset.root=DIR) those about the open set. claims.md and claims.csv
    lie beside the report.
    """  # noqa: D301
    given = read_words(words, Claims, rest=DIAGNOSTICS.names())
    for name in ("runs", "baseline"):
        if not getattr(given, name):
            raise UserError(missing("RUN" if name == "runs" else name, words))
    unclaimed = [name for name in given.what if name in ORDER and name not in WITH_CLAIMS]
    if unclaimed:
        raise UserError(
            f"`what`: expected diagnostics with claims ({', '.join(WITH_CLAIMS)}), found "
            f"{unclaimed[0]}; `ltbench diagnose compare` shows it"
        )
    from ltbench.diagnose.claims import claims_markdown, claims_table, pair_seeds, weigh
    from ltbench.files import write_atomic

    ours, theirs = (_of_all_seeds(side) for side in (given.runs, given.baseline))
    subjects, out, sections = _diagnose(
        [*ours, *theirs], given, lambda s: pair_seeds(s[: len(ours)], s[len(ours) :])
    )
    pairs = pair_seeds(subjects[: len(ours)], subjects[len(ours) :])
    findings = weigh(sections, pairs)
    if not findings:
        raise UserError(f"no claim could be tested; {out / PAGE} has the reasons")
    text = claims_markdown(findings, subjects[0].recipe.name, subjects[-1].recipe.name)
    write_atomic(out / "claims.md", text.encode())
    write_atomic(out / "claims.csv", claims_table(findings).to_csv(index=False).encode())
    plain(text)
    plain(str(out / "claims.md"))


def _of_all_seeds(sources: Sequence[str]) -> list[str]:
    """Return models, folders above seeds replaced by the finished runs in them."""
    found: list[str] = []
    for source in sources:
        seeds = sorted(Path(source).glob("seed*/model.json"))
        found += [str(file.parent) for file in seeds] or [source]
    return found


@diagnose.command("list")
def list_() -> None:
    """List the diagnostics with their options."""
    for name in ORDER:
        cls = DIAGNOSTICS.get(name)
        console.print(f"[bold]{name}[/bold]  {escape(cls.title)}", soft_wrap=True)
        for key, field in cls.Options.model_fields.items():
            default = escape(repr(field.get_default(call_default_factory=True)))
            console.print(f"    {name}.{key}={default}", soft_wrap=True, highlight=False)


def _diagnose(
    sources: Sequence[str],
    given: Diagnose,
    check: Callable[[list[Subject]], object] = lambda subjects: None,
) -> tuple[list[Subject], Path, list[Section]]:
    options: dict[str, dict[str, Any]] = {}
    for key, value in given.options.items():
        name, _, option = key.partition(".")
        options.setdefault(name, {})[option] = value

    from ltbench.diagnose.progress import estimate_line, estimates, watching
    from ltbench.diagnose.run import choose, run
    from ltbench.diagnose.subject import open_subjects

    diagnostics = choose(list(dict.fromkeys(given.what)), options)
    plugins.load_plugins(given.plugins)
    subjects = open_subjects(sources, given.data, given.device)
    check(subjects)
    default = Path("diagnose") / "-and-".join(s.name.replace("/", "-") for s in subjects)
    out = given.out if given.out is not None else default
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script")  # torch uses its own
        if given.quiet:
            sections = run(diagnostics, subjects, out)
        else:
            plain(f"on {subjects[0].device}, timing a few passes; Ctrl-C keeps what is finished")
            plain(estimate_line(estimates(diagnostics, subjects)))
            with watching(console) as count:
                sections = run(diagnostics, subjects, out, plain, count)
    plain(str(out / PAGE))
    return subjects, out, sections

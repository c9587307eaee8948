"""The commands `ltbench diagnose ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from ltbench.display import console
from ltbench.errors import UserError, did_you_mean

KEYS = ("model", "run", "what", "out", "device")


class _WithDefault(click.Group):
    """Words that begin with no command belong to the command `model`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["model", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_WithDefault)
def diagnose() -> None:
    """Look into trained models: class gradients, curvature, features, confidence.

    \b
    ltbench diagnose model=PATH|run=PATH [what=conflicts,norms,...] [out=DIR] [data.root=DIR]
    ltbench diagnose compare RUN RUN ... [what=...]
    ltbench diagnose list
    \b
    Examples:
      ltbench diagnose run=runs/quickstart-1a2b3c4d/seed0
      ltbench diagnose run=RUN what=conflicts conflicts.batches=8 data.root=DIR out=report
      ltbench diagnose compare WITH_PLOT WITHOUT_PLOT what=conflicts,hessian,cca
    \b
    A model is a run's folder, its model.safetensors, a folder that was published, or a name of
    the zoo. Tables (CSV, Parquet), figures (PNG, SVG) and report.html go to out=, by default
    diagnose/NAME. For the log of training itself: ltbench run ... diagnose.every=20
    """  # noqa: D301


@diagnose.command("model")
@click.argument("words", nargs=-1, metavar="model=PATH|run=PATH [key=value ...]")
def model(words: tuple[str, ...]) -> None:
    """Look into one model: what `ltbench diagnose model=PATH` does."""
    _diagnose((), words)


@diagnose.command("compare")
@click.argument("words", nargs=-1, metavar="RUN RUN ... [key=value ...]")
def compare(words: tuple[str, ...]) -> None:
    """Put several models side by side in the same figures."""
    sources = [w for w in words if "=" not in w]
    if len(sources) < 2:
        raise UserError(f"`compare` needs two models or more, found {' '.join(sources) or 'none'}")
    _diagnose(sources, [w for w in words if "=" in w])


@diagnose.command("list")
def list_() -> None:
    """List the diagnostics with their options."""
    from ltbench.diagnose import DIAGNOSTICS, ORDER

    for name in ORDER:
        cls = DIAGNOSTICS.get(name)
        console.print(f"[bold]{name}[/bold]  {escape(cls.title)}", soft_wrap=True)
        for key, field in cls.Options.model_fields.items():
            default = escape(repr(field.get_default(call_default_factory=True)))
            console.print(f"    {name}.{key}={default}", soft_wrap=True, highlight=False)


def _diagnose(sources: Sequence[str], words: Sequence[str]) -> None:
    from ltbench.config import parse_word
    from ltbench.diagnose import DIAGNOSTICS, ORDER

    keys: dict[str, Any] = {}
    data: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for word in words:
        key, value = parse_word(word)
        first, dot, rest = key.partition(".")
        if not dot and key in KEYS:
            if key in keys:
                raise UserError(f"`{key}=` is given twice; give it once")
            keys[key] = value
        elif dot and first == "data":
            data[rest] = value
        elif dot and first in DIAGNOSTICS:
            options.setdefault(first, {})[rest] = value
        else:
            known = (*KEYS, "data", *DIAGNOSTICS.names())
            raise UserError(
                f"unknown word `{word}`{did_you_mean(first, known)}; expected one of "
                f"{', '.join(f'{k}=' for k in KEYS)}, data.KEY= or DIAGNOSTIC.OPTION="
            )
    given = [str(keys[k]) for k in ("model", "run") if keys.get(k) is not None]
    if sources and given:
        raise UserError("`compare` takes models as plain words; leave model= and run= out")
    if not sources and len(given) != 1:
        raise UserError(f"expected one of model= and run=, found {' '.join(words) or 'nothing'}")
    if keys.get("run") is not None and not Path(str(keys["run"])).is_dir():
        raise UserError(f"`run=` must be the folder of a run, found {keys['run']}")
    what = keys.get("what")
    names = [n for n in str(what).split(",") if n] if what is not None else [*ORDER]

    from ltbench.diagnose.run import PAGE, choose, run
    from ltbench.diagnose.subject import open_subjects

    diagnostics = choose(list(dict.fromkeys(names)), options)
    subjects = open_subjects([*sources, *given], data, str(keys.get("device") or "auto"))
    default = Path("diagnose") / "-and-".join(s.name.replace("/", "-") for s in subjects)
    out = Path(str(keys["out"])) if keys.get("out") is not None else default
    run(diagnostics, subjects, out, lambda line: console.print(escape(line), soft_wrap=True))
    console.print(f"{out / PAGE}", soft_wrap=True)

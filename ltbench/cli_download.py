"""The command `ltbench download`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from ltbench.display import console
from ltbench.errors import UserError, did_you_mean

WORDS = ("seed", "out")


@click.command()
@click.argument("words", nargs=-1, metavar="NAME|PATTERN|hf-hub:ORG/NAME[@REV] [key=value ...]")
def download(words: tuple[str, ...]) -> None:
    """Fetch trained models into the cache, or into a folder, and check their hashes.

    What was fetched once is loaded without a network. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE
    are respected; private models need `hf auth login`.

    \b
    Examples:
      ltbench download "*plot*cifar10*"
      ltbench download mislas_plot_cifar10 seed=0 out=models
      ltbench download hf-hub:my-lab/ce_cifar10-seed0@COMMIT
    \b
    Keys: seed=K (all by default), out=DIR (a folder per model in it)
    """  # noqa: D301
    from ltbench.hub import zoo

    what, seed, out = _parse(words)
    if what.startswith(zoo.HUB):
        if seed is not None:
            raise UserError(f"`seed=` goes with a name of the zoo, found {what}; leave it out")
        repo, revision = zoo.parse_address(what)
        target = out / repo.partition("/")[2] if out else None
        with _notes():
            place = zoo.fetch_repository(repo, revision, out=target, extra=True)
        _say(what, place)
        return
    chosen = _chosen(what, seed)
    for name, number, entry in chosen:
        target = out / f"{name}-seed{number}" if out else None
        with _notes():
            place = zoo.fetch(entry, out=target, extra=True)
        _say(f"{name} seed={number}", place)
    console.print(f"\nnext:\n  ltbench eval model={chosen[0][0]} seed={chosen[0][1]}")


def _chosen(pattern: str, seed: int | None) -> list[tuple[str, int, Any]]:
    from ltbench.hub import zoo

    index = zoo.read_index()
    found = [
        (name, number, entry)
        for name in zoo.names(pattern)
        for number, entry in sorted(index[name].items())
        if seed in (None, number)
    ]
    if not found:
        zoo.find(pattern, seed or 0)
        raise UserError(f"the zoo has nothing that matches `{pattern}`")
    return found


def _parse(words: tuple[str, ...]) -> tuple[str, int | None, Path | None]:
    from ltbench.cli import take

    named = [word for word in words if "=" not in word]
    if len(named) != 1:
        raise UserError(
            f"expected one name, pattern or hf-hub:org/name, found {', '.join(named) or 'none'}; "
            "`ltbench list models pretrained=true` shows the names"
        )
    seed, rest = take([word for word in words if "=" in word], "seed")
    out, rest = take(rest, "out")
    for word in rest:
        key = word.partition("=")[0]
        raise UserError(f"unknown word `{key}`{did_you_mean(key, WORDS)}; known: seed, out")
    if seed and not seed.isdecimal():
        raise UserError(f"`seed` must be a whole number from 0, found {seed}")
    return named[0], int(seed) if seed else None, Path(out).expanduser() if out else None


def _say(what: str, place: Path) -> None:
    from ltbench.hub.folder import WEIGHTS

    size = (place / WEIGHTS).stat().st_size / 2**20
    console.print(escape(f"{what}  {size:,.2f} MiB, hash checked: {place}"), soft_wrap=True)


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Print warnings, of stale answers for one, as plain lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for note in caught:
                click.echo(f"note: {note.message}", err=True)

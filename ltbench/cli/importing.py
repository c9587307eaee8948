"""The command `ltbench import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from pydantic import Field
from rich.markup import escape

from ltbench.cli.command import OWN_PARTS, WordsCommand
from ltbench.cli.display import console, errors, metrics_table
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import REST, read_words
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.importing.importer import Imported, Release


class Import(Config):
    """Words of `ltbench import`."""

    file: str | None = Field(None, description="checkpoint: a path, or an http(s) address")
    release: str | None = Field(
        None, description="a known release in its place, see `ltbench list releases`"
    )
    recipe: str | None = Field(None, description="recipe of the method that made it")
    out: Path = Field(description="folder to write; one that an import wrote is replaced")
    family: str = Field("auto", description="layout of the file, e.g. ldam, mislas, ride, bcl")
    classifier: Path | None = Field(
        None, description="second file with the classifier (second stage of GCL)"
    )
    classes: Literal["auto", "official", "by-count", "by-count-ascending"] = Field(
        "auto", description="order of the classes in the file"
    )
    scale: float | None = Field(
        None, gt=0, description="factor of a cosine classifier, which no file holds"
    )
    claimed: float | None = Field(
        None, ge=0, le=100, description="accuracy that the authors print, in percent"
    )
    chosen_on_test: Literal["auto", "yes", "no", "unknown"] = Field(
        "auto", description="the epoch was chosen on the test images"
    )
    source: str | None = Field(None, description="where it comes from, e.g. OWNER/NAME@COMMIT")
    licence: str | None = Field(None, description="licence of the weights, if one is stated")
    sha256: str | None = Field(None, description="expected hash of the file")
    seed: int = Field(0, ge=0, description="number that tells files of one recipe apart")
    plugins: tuple[str, ...] = OWN_PARTS
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int = Field(2, ge=0, le=1024, description="processes that decode images")
    batch_size: int = Field(250, ge=1, le=100_000, description="images per forward pass")
    words: tuple[str, ...] = Field((), json_schema_extra=REST, description="keys of the recipe")


@click.command("import", cls=WordsCommand, options=Import)
@click.argument("words", nargs=-1, metavar="file=PATH|URL recipe=NAME out=DIR [data.root=DIR] ...")
def import_(words: tuple[str, ...]) -> None:
    """Import a checkpoint that the authors of a method released, and evaluate it.

    Tensors, numbers and text are read; nothing in the file is executed. Widths, depth and experts
    follow from the shapes. Where data are given, the results are compared with the printed number,
    and the folder has a record of status `imported`; it loads like the folder of a run.

    \b
    Examples:
      ltbench list releases "bcl*"
      ltbench import release=bcl_cifar100_szu_t007_best data.root=DIR out=bcl
      ltbench import file=ckpt.best.pth.tar recipe=ldam_drw_cifar10 data.root=DIR out=ldam
      ltbench import file=model_best.pth.tar recipe=mislas_imagenet_lt claimed=52.7 out=mislas
      ltbench import file=STAGE1 classifier=STAGE2 recipe=gcl_cifar100 data.root=DIR out=gcl
    """  # noqa: D301
    given = read_words(words, Import)
    from ltbench.importing.importer import import_release
    from ltbench.importing.releases import find_release

    plugins.load_plugins(given.plugins)
    release = _release(given)
    done = import_release(
        release,
        given.out,
        device=given.device,
        workers=given.workers,
        batch_size=given.batch_size,
    )
    _show(done, release, "" if given.release is None else find_release(given.release).note)


def _release(given: Import) -> Release:
    """Return what to import, downloaded if need be.

    Raises:
        UserError: a word is missing, or the release has to be downloaded by hand.
    """
    from ltbench.config.files import get_recipe
    from ltbench.importing.importer import Release
    from ltbench.importing.releases import find_release
    from ltbench.remote.address import Address

    known = None if given.release is None else find_release(given.release)
    file, recipe = given.file, given.recipe or (known.recipe if known else None)
    if (file is None and known is None) or recipe is None:
        missing = "`recipe=NAME`" if file or known else "`file=PATH` or `release=NAME`"
        raise UserError(f"expected {missing}; see `ltbench import --help`")
    expected = given.sha256 or (known.sha256 if known else None) or ""
    if file is None and known is not None:
        if known.by_hand:
            raise UserError(
                f"{known.url} is a page for browsers: open it, save the file, and run this again "
                f"with file=PATH (release={given.release} still says the rest)"
            )
        file = known.url
    assert file is not None
    words = (*(known.words if known else ()), *given.words)
    source = given.source or (known.source if known else "")
    get_recipe(recipe, *words)  # its mistakes show before anything is fetched
    if "://" in file:
        source = source or Address(file).public
        path = _fetched(file, expected)
    else:
        path = Path(file)
    chosen = given.chosen_on_test
    if known is not None and chosen == "auto":
        chosen = known.chosen_on_test
    return Release(
        path=path,
        recipe=recipe,
        words=words,
        family=known.family if known and given.family == "auto" else given.family,
        classifier=given.classifier,
        classes=given.classes,
        scale=known.scale if known and given.scale is None else given.scale,
        claimed=known.claimed if known and given.claimed is None else given.claimed,
        chosen_on_test=chosen,
        source=source,
        licence=given.licence or (known.licence if known else ""),
        sha256=expected,
        seed=given.seed,
        name=given.release,
    )


def _fetched(url: str, sha256: str) -> Path:
    from ltbench.importing.releases import fetched
    from ltbench.train.progress import counting

    with counting(errors) as progress:
        return fetched(url, sha256, lambda n: progress("MiB", n >> 20, max(1, n >> 20)))


def _show(done: Imported, release: Release, note: str) -> None:
    """Print what was found and measured, and a note on a known release."""
    facts, network = done.facts, done.network
    options = "".join(f", {key} {value}" for key, value in network.args.items())
    scale = "" if facts.scale is None else f", cosine classifier of scale {facts.scale:g}"
    lines = [
        f"family   {facts.family}; classes in {facts.class_order} order",
        f"network  {network.name}{options}; method {type(done.method).__name__}{scale}",
        f"file     {facts.file}, SHA-256 {facts.sha256}",
        *(f"note     {said}" for said in (*done.notes, *([note] if note else []))),
    ]
    if done.stated:
        stated = ", ".join(f"{key} {value:g}" for key, value in done.stated.items())
        lines.append(f"stated   {stated} (in the file)")
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    if done.metrics is None:
        console.print("not evaluated, and no record: give data.root=DIR", soft_wrap=True)
    else:
        console.print(metrics_table(f"{release.recipe}, imported", done.metrics))
        _compare(done)
    console.print(f"\nnext:\n  ltbench eval model={escape(str(done.folder))}", soft_wrap=True)


def _compare(done: Imported) -> None:
    """Print how the result agrees with the printed one, and what the model was trained on."""
    facts = done.facts
    if facts.claimed is not None and done.off is not None:
        console.print(f"claimed  {facts.claimed:g} %: {done.off:+,} images here", soft_wrap=True)
    console.print(f"epoch    chosen on the test images: {facts.chosen_on_test}")
    seen = facts.training_images
    if seen is not None:
        console.print(
            f"images   {seen.verdict}: rarest {seen.classes} classes, "
            f"{100 * seen.inside_correct / seen.inside:.1f} % of {seen.inside:,} images inside, "
            f"{100 * seen.outside_correct / seen.outside:.1f} % of {seen.outside:,} outside",
            soft_wrap=True,
        )

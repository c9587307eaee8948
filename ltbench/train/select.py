"""Choice of a recipe's values on validation images; the test images are evaluated once for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ltbench.config.recipe import Choice, Recipe
from ltbench.config.selection import Select
from ltbench.data.base import Data
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.records.record import RECORD
from ltbench.records.validation import (
    CandidateFacts,
    SelectionFacts,
    Validation,
    write_selection,
)
from ltbench.train.folder import run_folder
from ltbench.train.grid import Cell, cells_of

RunCells = Callable[[Sequence[Cell]], list[Cell]]
EQUAL = 1e-12  # largest difference of scores that tie


@dataclass(frozen=True)
class Candidate:
    """Values that were tried.

    Args:
        cells: the runs, one for each seed.
        metric: measure on the validation images, see ``Select``.
    """

    cells: tuple[Cell, ...]
    metric: str

    @property
    def by_seed(self) -> tuple[float | None, ...]:
        """Result of each seed in [0, 1]; ``None`` if its loss diverged."""
        return tuple(
            None if c.validation is None else measure(c.validation.metrics, self.metric)
            for c in self.cells
        )

    @property
    def score(self) -> float | None:
        """Mean over the seeds; ``None`` if one of them diverged."""
        found = [value for value in self.by_seed if value is not None]
        return sum(found) / len(found) if len(found) == len(self.cells) else None

    def facts(self) -> CandidateFacts:
        """Return the candidate as records keep it."""
        return CandidateFacts(
            values=dict(self.cells[0].values),
            digest=self.cells[0].recipe.digest,
            score=self.score,
            by_seed=self.by_seed,
        )


@dataclass(frozen=True)
class Selection:
    """The choice for one recipe.

    Args:
        candidates: all that was tried.
        facts: how it was chosen.
        final: runs of the chosen values, evaluated on the test images, one for each seed.
    """

    candidates: tuple[Candidate, ...]
    facts: SelectionFacts
    final: tuple[Cell, ...]


def measure(metrics: Metrics, metric: str) -> float:
    """Return one measure of results, in [0, 1].

    Raises:
        UserError: a shot group has no validation images.
    """
    names = {"balanced": "mean_recall", "overall": "top1"}
    found: float | None = getattr(metrics, names.get(metric, metric))
    if found is None:
        raise UserError(
            f"`select.metric`: {metric} cannot decide, for no class of that shot group has "
            "validation images; choose balanced or overall"
        )
    return found


def check_split(cells: Sequence[Cell], options: Select) -> None:
    """Check before the first run that there are validation images to choose on.

    Raises:
        UserError: a data set has none, or they cannot be trained on with ``select.refit``.
    """
    checked: set[str] = set()
    for cell in cells:
        config = cell.recipe.data.config
        if getattr(config, "val_fraction", 0) or repr(config) in checked:
            continue
        if options.refit:
            raise UserError(
                "`select.refit` trains on training and validation images together, which needs "
                "data.val_fraction; leave it out for validation images of the data set's own"
            )
        checked.add(repr(config))
        if not _listed(config):
            data: Data = config.load()  # type: ignore[attr-defined]
            if data.val is None:
                raise UserError(
                    f"`select.metric`: {data.info.name} has no validation images, and a choice on "
                    "test images would make their results worthless; hold some of the training "
                    "images out with data.val_fraction=0.1"
                )


def select_from_grid(cells: Sequence[Cell], options: Select, run: RunCells) -> list[Selection]:
    """Run all values, choose those of each recipe, and evaluate the chosen ones on the test images.

    Args:
        cells: of every recipe, value and seed, with ``run.evaluate=val``.
        options: the measure.
        run: runs cells.

    Raises:
        UserError: a run failed for another reason than its values, or runs elsewhere.
    """
    check_split(cells, options)
    done = run(cells)
    check_finished(done)
    chosen = [
        choose(candidates(list(own), options), options, "grid")
        for _, own in groupby(done, key=lambda cell: cell.recipe.name)
    ]
    return finish(chosen, options, run)


def candidates(cells: Sequence[Cell], options: Select) -> list[Candidate]:
    """Return the finished cells of one recipe by their values, in their order."""
    by_digest: dict[str, list[Cell]] = {}
    for cell in cells:
        by_digest.setdefault(cell.recipe.digest, []).append(cell)
    return [Candidate(tuple(own), options.metric) for own in by_digest.values()]


def check_finished(cells: Sequence[Cell]) -> None:
    """Check that every run has finished, or failed because of its values.

    Raises:
        UserError: one has not; names each.
    """
    failed = [c for c in cells if c.outcome == "failed" and not c.diverged]
    if failed:
        lines = [f"{c.label}, seed {c.recipe.seed}: {c.problem}" for c in failed]
        raise UserError("\n".join([*lines, "nothing was selected: the runs above have failed"]))
    waiting = sum(c.validation is None and not c.diverged for c in cells)
    if waiting:
        raise UserError(
            f"nothing was selected yet: {waiting} of the runs have not finished here; the same "
            "command selects when they have"
        )


def choose(found: Sequence[Candidate], options: Select, search: str) -> Selection:
    """Choose the candidate with the best mean over the seeds; of those that tie, the first.

    Args:
        found: all candidates of one recipe.
        options: the measure.
        search: where the candidates come from.

    Raises:
        UserError: every candidate diverged, or they saw different validation images.
    """
    sign = -1 if options.metric == "ece" else 1
    scores = [None if c.score is None else sign * c.score for c in found]
    best = max((s for s in scores if s is not None), default=None)
    name = found[0].cells[0].recipe.name
    if best is None:
        raise UserError(f"{name}: nothing was selected: the loss of all candidates diverged")
    tied = [i for i, s in enumerate(scores) if s is not None and s >= best - EQUAL]
    seen = [c.validation for candidate in found for c in candidate.cells if c.validation]
    _check_same(name, seen)
    first = seen[0]
    fraction = first.dataset.manifest.get("val_fraction")
    facts = SelectionFacts(
        metric=options.metric,
        search=search,
        split_sha256=first.dataset.split,
        val_fraction=None if fraction is None else float(fraction),
        val_images=sum(first.metrics.total),
        seeds=tuple(c.recipe.seed for c in found[0].cells),
        candidates=tuple(c.facts() for c in found),
        chosen=tied[0],
        tied=len(tied),
        refit=options.refit,
    )
    final = [_final(cell, facts) for cell in found[tied[0]].cells]
    return Selection(tuple(found), facts, tuple(final))


def finish(chosen: Sequence[Selection], options: Select, run: RunCells) -> list[Selection]:
    """Evaluate chosen values on the test images, and return them with their records.

    Args:
        chosen: of each recipe.
        options: of the choice.
        run: runs cells.
    """
    from ltbench.distributed.launch import read_launch

    main_rank = read_launch().rank == 0
    for selection in chosen if main_rank else ():
        for cell in selection.final:
            folder = run_folder(cell.recipe)
            folder.mkdir(parents=True, exist_ok=True)
            write_selection(folder, selection.facts)
    done = run([cell for selection in chosen for cell in selection.final])
    done = [_recorded(cell, write=main_rank) for cell in done]
    results = []
    for selection in chosen:
        own, done = done[: len(selection.final)], done[len(selection.final) :]
        results.append(replace(selection, final=tuple(own)))
    return results


def _final(cell: Cell, facts: SelectionFacts) -> Cell:
    """Return the run that evaluates a chosen cell on the test images."""
    recipe = cell.recipe
    data, options = recipe.data, recipe.run.model_copy(update={"evaluate": "test"})
    if not facts.refit:
        recipe = recipe.model_copy(update={"run": options, "resume": "auto"})  # it was trained
        return Cell(recipe, values=cell.values, selected=facts)
    whole = data.config.model_copy(update={"val_fraction": 0.0})
    changed = {"run": options, "data": Choice(data.name, whole, data.plugin)}
    (again,) = cells_of(
        recipe.model_copy(update=changed), [recipe.seed], _out(recipe), dict(cell.values)
    )
    return replace(again, selected=facts)


def _out(recipe: Recipe) -> str | None:
    return None if recipe.out is None else str(run_folder(recipe).parent.parent)


def _recorded(cell: Cell, *, write: bool) -> Cell:
    """Return a cell whose record says how it was chosen, also where it was finished before."""
    record = cell.record
    if record is None or cell.selected is None or record.selected == cell.selected:
        return cell
    record = record.model_copy(update={"selected": cell.selected}).sealed()
    if write:
        record.save(run_folder(cell.recipe) / RECORD)
    return replace(cell, record=record)


def _check_same(name: str, seen: Sequence[Validation]) -> None:
    """Check that all candidates were judged on the same validation images."""
    splits = {(v.dataset.split, v.metrics.total) for v in seen}
    if len(splits) > 1:
        raise UserError(
            f"{name}: nothing was selected: the values change which images are used for "
            "validation, so their results cannot be compared; vary other keys"
        )


def _listed(config: object) -> bool:
    """Return whether a data set of lists names a validation list."""
    return isinstance(getattr(config, "val", None), str)

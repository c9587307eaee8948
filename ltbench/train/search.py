"""Search of values with Optuna, resumable, on validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.config.files import resolve
from ltbench.config.selection import Select
from ltbench.config.value_grid import Layer, Range, point, space, typed_text
from ltbench.digest import digest_of
from ltbench.errors import UserError, brief
from ltbench.seeding import derive
from ltbench.train.grid import Cell, cells_of
from ltbench.train.select import Candidate, Selection, check_finished, check_split, choose

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from ltbench.train.select import RunCells

JOURNAL = "optuna.journal"  # file beside the runs' folders; may hold several studies
VALIDATE = {"run.evaluate": "val"}


@dataclass(frozen=True)
class Search:
    """Values of one recipe to search.

    Args:
        name: of the recipe, or the path of its file.
        given: values by dotted key, with lists and ranges among them.
        seeds: each trial runs all of them.
        out: folder that the runs' folders go to; None for the default.
        options: measure, number of trials, and seed of the search.
    """

    name: str
    given: Sequence[Layer]
    seeds: Sequence[int]
    out: str | None
    options: Select

    def cells(self, values: Mapping[str, Any]) -> list[Cell]:
        """Return the runs of one trial."""
        at = point(self.given, values)
        recipe = resolve(self.name, [*at.given, VALIDATE])
        return cells_of(recipe, self.seeds, self.out, at.values)


def select_by_search(
    search: Search, run: RunCells, *, at_once: int = 1, say: Callable[[str], None] = lambda _: None
) -> Selection:
    """Run the trials of one recipe and choose among them; the test images are left alone.

    What a trial tries is a function of the seed of the search, its number and the results of the
    trials that were finished when it began. A killed search goes on with the trials that had begun.

    Args:
        search: values to search.
        run: runs cells.
        at_once: trials that begin together; a function of nothing but the command.
        say: prints a line after each trial.

    Raises:
        UserError: Optuna is not installed, no key has several values, or a run failed for another
            reason than its values.
    """
    total = search.options.trials or 0
    varied = space(search.name, search.given)
    check_split(corners(search), search.options)
    words = {key: {typed_text(v): v for v in values} for key, values in varied.items()
             if not isinstance(values, Range)}  # fmt: skip

    def runs(trial: FrozenTrial) -> list[Cell]:
        params = trial.params.items()
        return search.cells({k: words[k][v] if k in words else v for k, v in params})

    study = _open(search, varied)
    ended = [trial for trial in study.trials[:total] if trial.state.is_finished()]
    found = {t.number: _read_again(runs(t), t, search.options.metric, run) for t in ended}
    while len(found) < total:
        batch = [trial for trial in study.trials[:total] if trial.number not in found]
        if not batch:  # none that a killed search had begun
            batch = [_ask(study, search, varied) for _ in range(min(at_once, total - len(found)))]
        each = [runs(trial) for trial in batch]
        cells = run([cell for own in each for cell in own])
        check_finished(cells)
        for trial in batch:
            own, cells = cells[: len(search.seeds)], cells[len(search.seeds) :]
            candidate = found[trial.number] = Candidate(tuple(own), search.options.metric)
            _tell(study, trial, candidate)
            result = "diverged" if candidate.score is None else f"{100 * candidate.score:.2f} %"
            say(f"trial {trial.number + 1} of {total}: {own[0].label}: {result}")
    tried = [found[number] for number in sorted(found)]
    return choose(_distinct(tried), search.options, _described(search))


def corners(search: Search) -> list[Cell]:
    """Return runs with the ends of each range and each of several values, so that all are checked.

    Raises:
        UserError: one of them is not sound, or there is nothing to search.
    """
    varied = space(search.name, search.given)
    if not varied:
        raise UserError(
            f"{search.name}: `select.trials` needs a key to search, e.g. "
            "stages.0.optim.lr=log:0.01..0.5, or values with commas between"
        )
    ends = {key: [_number(v, v.low), _number(v, v.high)] if isinstance(v, Range) else v
            for key, v in varied.items()}  # fmt: skip
    first = {key: values[0] for key, values in ends.items()}
    return [
        search.cells({**first, key: value})[0] for key, values in ends.items() for value in values
    ]


def _number(values: Range, value: float) -> float:
    return int(value) if values.whole else value


def _read_again(cells: Sequence[Cell], trial: FrozenTrial, metric: str, run: RunCells) -> Candidate:
    """Return a trial that had ended; its runs are read, not repeated."""
    from optuna.trial import TrialState

    if trial.state == TrialState.FAIL:
        return Candidate(tuple(replace(c, outcome="failed", diverged=True) for c in cells), metric)
    done = run(cells)
    check_finished(done)
    return Candidate(tuple(done), metric)


def _distinct(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without those whose values had been tried before."""
    return list({c.cells[0].recipe.digest: c for c in reversed(found)}.values())[::-1]


def _described(search: Search) -> str:
    import optuna

    trials, seed = search.options.trials, search.options.seed
    return f"Optuna {optuna.__version__}, TPE, {trials} trials, seed {seed}"


def _open(search: Search, varied: Mapping[str, list[Any] | Range]) -> Study:
    """Open the study of a search, or begin it.

    Raises:
        UserError: Optuna is not installed, or the journal is damaged.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError(
            "`select.trials` searches with Optuna, which is not installed: pip install "
            "'ltbench[optuna]'; without select.trials all values of a grid are tried"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cell = corners(search)[0]
    told = {
        "recipe": cell.recipe.digest,
        "values": {
            key: [v.low, v.high, v.log] if isinstance(v, Range) else [typed_text(x) for x in v]
            for key, v in varied.items()
        },
        "seeds": list(search.seeds),
        "metric": search.options.metric,
        "seed": search.options.seed,
    }
    folder = Path(search.out or "runs")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            study_name=f"{cell.recipe.name}-{digest_of(told)[:8]}",
            direction="minimize" if search.options.metric == "ece" else "maximize",
            load_if_exists=True,
        )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{folder / JOURNAL} is damaged or cannot be written ({brief(str(error))}); delete it: "
            "finished runs are read again, not repeated"
        ) from error


def _ask(study: Study, search: Search, varied: Mapping[str, list[Any] | Range]) -> FrozenTrial:
    """Return a new trial with its values."""
    from optuna.samplers import TPESampler

    number = len(study.trials)
    seed = derive(search.options.seed, "trial", number) % 2**32
    study.sampler = TPESampler(seed=seed, constant_liar=True)  # as if the journal held its state
    study.ask({key: _distribution(values) for key, values in varied.items()})
    return study.trials[number]


def _distribution(values: list[Any] | Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution([typed_text(value) for value in values])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _tell(study: Study, trial: FrozenTrial, candidate: Candidate) -> None:
    from optuna.trial import TrialState

    if candidate.score is None:
        study.tell(trial.number, state=TrialState.FAIL)
    else:
        study.tell(trial.number, candidate.score)

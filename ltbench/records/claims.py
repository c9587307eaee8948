"""Checks of what a sound record claims: dates, derived fields, official counts, other records."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltbench.config.weights import public_source
from ltbench.errors import UserError
from ltbench.records.aggregate import RANKS, run_key, seed_group
from ltbench.records.record import Record

OFFICIAL = (
    *("imagenet_lt", "places_lt", "inat18", "isic2019_lt", "isic_archive_lt"),
    *("semi_aves", "semi_fungi", "semi_inat"),
)
TAILS = {  # classes, training images of the largest one before the tail is cut, test images of each
    "cifar10_lt": (10, 5000, 1000),
    "cifar100_lt": (100, 500, 100),
    "digits_lt": (10, 114, 60),
}
Counts = tuple[int, ...]


def check_date(record: Record) -> None:
    """Check that a record is not dated in the future; a day is left for time zones.

    Raises:
        UserError: it is.
    """
    last = datetime.datetime.now(datetime.timezone.utc).date() + datetime.timedelta(days=1)
    if record.date > last.isoformat():
        raise UserError(f"`date`: expected {last} at the latest, found {record.date}")


def check_derived(record: Record) -> None:
    """Check the fields that follow from the resolved recipe.

    Raises:
        UserError: names the first field that does not.
    """
    if record.origin == "paper":
        return
    if record.imported is not None:
        _check_imported(record)
        return
    resolved = record.recipe.resolved
    data, run = resolved.get("data", {}).get("name", ""), resolved.get("run", {})
    execution, cut = record.execution, bool(run.get("max_steps"))
    free = data == "shards" or "plugin" in resolved.get("data", {})  # they name themselves
    for what, found, expected in (
        ("epoch", record.epoch, last_epoch(resolved)),
        ("backbone_weights", _without_name(record.backbone_weights), initial_weights(resolved)),
        ("execution.precision", execution.precision, run.get("precision", execution.precision)),
        ("execution.per_rank_batch", execution.per_rank_batch, _batches(record)),
        ("`run.max_steps` in shortened", "run.max_steps" in record.shortened, cut),
        ("dataset.name", record.dataset.name, record.dataset.name if free else data),
    ):
        if found != expected:
            raise UserError(
                f"{what}: expected {expected}, which follows from recipe.resolved, found {found}"
            )


def _check_imported(record: Record) -> None:
    """Check the fields of an imported model that a run would have filled in.

    Raises:
        UserError: one is not empty, or the data set is not the recipe's.
    """
    data = record.recipe.resolved.get("data", {})
    named = record.dataset.name if "plugin" in data or data.get("name") == "shards" else None
    for what, found, expected in (
        ("epoch", record.epoch, None),
        ("backbone_weights", record.backbone_weights, None),
        ("selected", record.selected, None),
        ("dataset.name", record.dataset.name, named or data.get("name", "")),
    ):
        if found != expected:
            raise UserError(f"{what}: expected {expected} of an imported model, found {found}")


def _batches(record: Record) -> tuple[int | None, ...]:
    """Return the images of a step on each rank, by stage, as the resolved recipe says."""
    sizes = [stage.get("batch_size") for stage in record.recipe.resolved.get("stages", ())]
    return tuple(-(-n // record.execution.ranks[-1]) if n else None for n in sizes)


def check_counts(record: Record) -> None:
    """Check the images of each class against those of an official data set.

    Raises:
        UserError: they are others.
    """
    train, test = official_counts(record.dataset.name, record.recipe.resolved.get("data", {}))
    metrics = record.metrics
    for what, found, expected in (
        ("training images of each class", metrics.class_counts, train),
        ("test images of each class", metrics.total, test),
    ):
        if expected is not None and found != expected:
            raise UserError(
                f"{what}: {record.dataset.name} has {sum(expected):,} images in {len(expected):,} "
                f"classes, the record says {sum(found):,} in {len(found):,}, or divides them "
                "differently among the classes"
            )


def check_others(record: Record, others: Iterable[Record]) -> None:
    """Check a record against others: the counts of the same images, seeds of the same weights.

    Raises:
        UserError: it contradicts one of them.
    """
    for other in others:
        if other.run_id == record.run_id or other.status == "withdrawn":
            continue
        reason = contradiction(record, other)
        if reason:
            raise UserError(reason)


def contradiction(record: Record, other: Record) -> str:
    """Return the contradiction between two records, or nothing."""
    mine, theirs = record.dataset, other.dataset
    one, two, run = record.metrics, other.metrics, f"run {other.run_id[:12]}"
    if mine.train_sha256 == theirs.train_sha256 and one.class_counts != two.class_counts:
        return f"the training images have the hash of those of {run}, but other numbers by class"
    if mine.test_sha256 == theirs.test_sha256 and one.total != two.total:
        return f"the test images have the hash of those of {run}, but other numbers by class"
    shared = set(weight_fingerprints(record)).intersection(weight_fingerprints(other))
    if shared and record.seed != other.seed:
        return (
            f"seed {record.seed} has the weights or the exact results of seed {other.seed} ({run})"
        )
    if len(shared) == 2 and not _same_recipe(record, other):
        return (
            f"recipe {record.recipe.name} has the weights and the exact results of "
            f"{other.recipe.name} ({run})"
        )
    return ""


def check_rank(record: Record, others: Iterable[Record]) -> None:
    """Check that a record replaces no record of its seed whose status says more.

    Raises:
        UserError: it would.
    """
    for other in others:
        same = seed_group(other) == seed_group(record) and other.seed == record.seed
        if same and other.run_id != record.run_id and _rank(other) > _rank(record):
            raise UserError(
                f"run {other.run_id[:12]} of the same recipe, data and seed is {other.status}; a "
                f"record that is only {record.status} does not replace it"
            )


def choose(found: Sequence[tuple[str, Record]]) -> tuple[list[Record], list[str]]:
    """Return the records that can stand in one table, and a line for each of the others.

    Of records that exclude each other, the one with the better status is kept, then the earlier.

    Args:
        found: records, each with the name of its file for the lines.
    """
    order = sorted(range(len(found)), key=lambda i: _worth(found[i][1]))
    runs: dict[Any, int] = {}
    known: dict[Any, int] = {}  # weights or results: the record that has them
    kept, lines = set(), []
    for i in order:
        where, record = found[i]
        twin = runs.setdefault(run_key(record), i)
        if twin != i:
            lines.append(f"{where} repeats recipe, data, code and seed of {found[twin][0]}")
            continue
        own = weight_fingerprints(record) if record.status != "withdrawn" else ()
        both = [*own, own] if len(own) == 2 else own
        first = next((known[f] for f in own if f in known), i)
        renamed = known.get(own, i)
        if found[first][1].seed != record.seed:
            lines.append(
                f"{where} has the weights or the exact results of {found[first][0]} under "
                f"another seed, {record.seed}"
            )
        elif not _same_recipe(record, found[renamed][1]):
            lines.append(
                f"{where} has the weights and the exact results of {found[renamed][0]} under "
                f"another recipe, {record.recipe.name}"
            )
        else:
            known.update({f: i for f in both if f not in known})
            kept.add(i)
    return [found[i][1] for i in sorted(kept)], [f"{line}; left aside" for line in lines]


def weight_fingerprints(record: Record) -> tuple[tuple[Any, ...], ...]:
    """Return the fingerprints of a record's weights: their hash, and counts with bins."""
    m = record.metrics
    results = (record.origin, m.correct, m.total, m.bin_count, m.bin_confidence, m.bin_correct)
    weights = record.checkpoint
    return (results,) if weights is None else (results, ("sha256", weights.sha256))


def last_epoch(resolved: Mapping[str, Any]) -> int | None:
    """Return the epochs of all stages of a resolved recipe; None if `run.max_steps` cuts it."""
    if resolved.get("run", {}).get("max_steps"):
        return None
    return sum(stage.get("epochs") or 0 for stage in resolved.get("stages", ()))


def initial_weights(resolved: Mapping[str, Any], *, named: bool = False) -> str | None:
    """Return the source of a resolved recipe's initial weights; None is a random start.

    Args:
        resolved: the recipe.
        named: keep the name of the package that may follow the hash in brackets.
    """
    backbone = resolved.get("backbone", {})
    if backbone.get("weights") is not None:
        return str(backbone["weights"])
    if not backbone.get("pretrained"):
        return None
    source = public_source(str(backbone.get("name", "")))
    return source if named else _without_name(source)


def _without_name(weights: str | None) -> str | None:
    """Return a source of weights without the name that may follow its hash in brackets."""
    return None if weights is None else weights.partition(" (")[0]


def official_counts(name: str, data: Mapping[str, Any]) -> tuple[Counts | None, Counts | None]:
    """Return the training and test images of each class of an official data set.

    Args:
        name: registered name of the data set.
        data: its options in a resolved recipe.

    Returns:
        Two tuples [C]; ``None`` for those that are not known.
    """
    from ltbench.data.longtail import class_profile

    own = data.get("name") == name  # else the options are those of shards
    ratio, profile = data.get("imbalance_ratio"), data.get("profile", "exp")
    if name in OFFICIAL:
        from ltbench.data.official import EDITIONS, edition, facts

        if name in EDITIONS and not own:
            return None, None  # shards do not say which of the editions they hold
        known = facts(edition(name, data))
        train, test = (
            (n,) * known["num_classes"] if isinstance(n, int) else tuple(n)
            for n in (known["parts"][part]["counts"] for part in ("train", "test"))
        )
        return (_left(train, data) if own or ratio is None else None), test
    if name not in TAILS:
        return None, None
    classes, largest, each = TAILS[name]
    if not own or not isinstance(ratio, (int, float)) or profile not in ("exp", "step"):
        return None, (each,) * classes
    train = class_profile(largest, classes, max(ratio, 1), profile)
    return _left(train, data), (each,) * classes


def _left(counts: Counts, data: Mapping[str, Any]) -> Counts:
    """Return the training images of each class without those held out for validation."""
    from ltbench.data.val_split import held_out

    fraction = data.get("val_fraction")
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        return counts
    return tuple(count - held_out(count, fraction) for count in counts)


def _same_recipe(one: Record, other: Record) -> bool:
    """Return whether two recipes have one name or one digest; versions may change the digest."""
    return one.recipe.name == other.recipe.name or one.recipe.digest == other.recipe.digest


def _rank(record: Record) -> int:
    return RANKS.index(record.status) if record.status in RANKS else -1


def _worth(record: Record) -> tuple[int, str, str]:
    return (-_rank(record), record.date, record.run_id)

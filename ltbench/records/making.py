"""Record of what was run: the facts of its recipe, data, machine and weights."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ltbench.config import plugins
from ltbench.config.weights import public_source
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.machine import environment, gpu_name, gpu_numerics, peak_memory
from ltbench.records.parts import (
    CheckpointFacts,
    CodeFacts,
    DatasetFacts,
    ExecutionFacts,
    GpuNumerics,
    RecipeFacts,
)
from ltbench.records.record import Record
from ltbench.records.validation import SelectionFacts

if TYPE_CHECKING:
    from torch import device as Device

    from ltbench.config.recipe import Recipe
    from ltbench.data.base import Data


def make_record(
    recipe: Recipe,
    data: Data,
    metrics: Metrics,
    *,
    device: Device,
    worlds: Sequence[int],
    worlds_from: Sequence[str] = (),
    threads: Sequence[int] = (),
    seconds: float,
    weights: Path,
    weights_sha256: str,
    selected: SelectionFacts | None = None,
) -> Record:
    """Return the sealed record of a run that has just ended in this process.

    Args:
        recipe: what was run.
        data: what it was run on.
        metrics: of the last epoch on the test set.
        device: of this rank.
        worlds: number of ranks, one entry each time it changed.
        worlds_from: where each of these numbers took over.
        threads: number of CPU threads on rank 0, one entry each time it changed.
        seconds: wall time spent on the run.
        weights: the file of its final weights.
        weights_sha256: hash of that file.
        selected: how the recipe was chosen among others, if it was.
    """
    from ltbench.models.loading import describe_weights

    start = public_source(recipe.backbone.name) if recipe.backbone.pretrained else None
    if recipe.backbone.weights is not None:
        start = describe_weights(recipe.backbone.weights)  # a path says nothing elsewhere
    _, shortened = changes(recipe)
    return Record(
        recipe=recipe_facts(recipe),
        dataset=dataset_facts(data),
        code=CodeFacts(**environment()["code"]),
        seed=recipe.seed,
        selected=selected,
        epoch=None if recipe.run.max_steps else sum(s.epochs or 0 for s in recipe.stages),
        complete=not shortened,
        shortened=tuple(shortened),
        execution=execution_facts(
            recipe,
            device,
            seconds,
            precision=recipe.run.precision,
            ranks=tuple(worlds),
            ranks_from=tuple(worlds_from),
            threads=tuple(threads),
            per_rank_batch=tuple(
                -(-s.batch_size // worlds[-1]) if s.batch_size else None for s in recipe.stages
            ),
            jpeg_decoder=getattr(data.train, "decoded_by", None),
        ),
        metrics=metrics,
        checkpoint=checkpoint_facts(weights, weights_sha256),
        backbone_weights=start,
        date=today(),
    ).sealed()


def dataset_facts(data: Data) -> DatasetFacts:
    """Return name, hashes and manifest of a data set."""
    from ltbench.data.overlap import same_content

    return DatasetFacts(
        name=data.info.name,
        train_sha256=data.train.fingerprint(),
        test_sha256=data.test.fingerprint(),
        manifest={**data.manifest, **same_content(data)},
    )


def execution_facts(
    recipe: Recipe,
    device: Device,
    seconds: float,
    *,
    precision: str,
    ranks: tuple[int, ...] = (1,),
    ranks_from: tuple[str, ...] = (),
    threads: tuple[int, ...] = (),
    per_rank_batch: tuple[int | None, ...] = (),
    jpeg_decoder: Literal["nvjpeg"] | None = None,
) -> ExecutionFacts:
    """Return hardware, libraries and cost of what this process has just done.

    Args:
        recipe: what was run.
        device: of this rank.
        seconds: wall time spent.
        precision: of the computation.
        ranks: number of ranks, as in ``ExecutionFacts``.
        ranks_from: likewise.
        threads: likewise.
        per_rank_batch: likewise.
        jpeg_decoder: likewise.
    """
    around, numerics = environment(), gpu_numerics(device)
    return ExecutionFacts(
        device=device.type,
        cpu=around["cpu"],
        gpu=gpu_name(device),
        ranks=ranks,
        ranks_from=ranks_from,
        threads=threads,
        per_rank_batch=per_rank_batch,
        precision=precision,
        deterministic=recipe.run.deterministic,
        libraries={**around["libraries"], **plugins.versions(recipe.tree())},
        wall_seconds=round(seconds, 2),
        peak_memory_bytes=peak_memory(device),
        gpu_numerics=GpuNumerics(**numerics) if numerics else None,
        jpeg_decoder=jpeg_decoder,
    )


def checkpoint_facts(weights: Path, sha256: str) -> CheckpointFacts:
    """Return name, hash and size of a file of weights.

    Args:
        weights: the file.
        sha256: its hash.
    """
    return CheckpointFacts(file=weights.name, sha256=sha256, bytes=weights.stat().st_size)


def recipe_facts(recipe: Recipe) -> RecipeFacts:
    """Return name, digest and resolved values of a recipe."""
    return RecipeFacts(
        name=recipe.name,
        digest=recipe.digest,
        resolved=json.loads(json.dumps(recipe.tree(digest_only=True))),
        target=recipe.target.model_dump() if recipe.target else None,
        overrides=tuple(changes(recipe)[0]),
    )


def changes(
    recipe: Recipe, get: Callable[[str], Recipe] | None = None
) -> tuple[list[str], list[str]]:
    """Return the keys that differ from the recipe of this name, and those that shorten it.

    Args:
        recipe: compared with that of its name.
        get: returns a recipe by name; by default it is read anew.
    """
    from ltbench.config.files import get_recipe
    from ltbench.config.tree import leaves

    shortened = ["run.max_steps"] if recipe.run.max_steps else []
    try:
        if recipe.name.endswith((".yaml", ".yml")):  # a registered name, not a file near by
            return [], shortened
        named = (get or get_recipe)(recipe.name)
    except UserError:
        return [], shortened  # the user's own file: nothing to compare with
    ours, theirs = (dict(leaves(r.tree(digest_only=True))) for r in (recipe, named))
    paths = {k for k in ours.keys() | theirs.keys() if not k.endswith(".revision")}
    overrides = sorted(k for k in paths if ours.get(k) != theirs.get(k))
    if len(recipe.stages) < len(named.stages):
        shortened.append("stages")
    for i, (mine, full) in enumerate(zip(recipe.stages, named.stages, strict=False)):
        if (mine.epochs or 0) < (full.epochs or 0):
            shortened.append(f"stages.{i}.epochs")
    return overrides, shortened


def today() -> str:
    """Return the date in UTC, YYYY-MM-DD."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()

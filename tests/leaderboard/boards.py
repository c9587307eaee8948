"""A leaderboard with some of everything, for the tests of the page."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ltbench import get_recipe
from ltbench.digest import digest_of
from ltbench.evaluation.metrics import BINS, Metrics
from ltbench.leaderboard.page import build_page
from ltbench.records.making import changes
from ltbench.records.parts import CheckpointFacts, DatasetFacts, ExecutionFacts
from ltbench.records.record import Record
from tests.leaderboard.test_leaderboard import VERIFIED, record_of

HOSTILE = "</script><img src=x onerror=document.title='owned'>$a_b$"
PUBLISHED = {"repository": "org/mislas", "revision": "d" * 40}
COUNTS = (500, 60, 4)


def execution(hours: float, gpu: str | None = "Some GPU") -> ExecutionFacts:
    return ExecutionFacts(
        device="cuda",
        cpu="some processor",
        gpu=gpu,
        ranks=(2,),
        per_rank_batch=(64, 64),
        precision="bf16",
        deterministic=True,
        libraries={"torch": "2.14.0"},
        wall_seconds=3600 * hours,
        peak_memory_bytes=2**30,
    )


def result(correct: tuple[int, int, int], seed: int) -> Metrics:
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (300, 150 + 1e-9 * seed, sum(correct))  # no two seeds end alike
    return Metrics.from_counts(correct, [100, 100, 100], bins, COUNTS)


def run_of(name: str, correct: tuple[int, int, int], seed: int, *words: str, **more: Any) -> Record:
    hours = more.pop("hours", 0.5)
    base = {"metrics": result(correct, seed), "execution": execution(hours)}
    return record_of((1, 1, 1), seed, name, *words, **{**base, **more})


def some_of_everything() -> list[Record]:
    found = []
    for seed in range(3):
        weights = CheckpointFacts(
            file="model.safetensors", sha256="cab"[seed] * 64, bytes=2**20, **PUBLISHED
        )
        good = run_of("mislas_cifar10", (92, 70 + seed, 60), seed, checkpoint=weights)
        found.append(good.model_copy(update=VERIFIED))
        found.append(run_of("mislas_plot_cifar10", (93, 74 + seed, 66), seed, hours=0.75))
    found.append(run_of("ce_cifar10", (95, 50, 12), 0, hours=0.25, submitted_by=HOSTILE))
    cut = changes(get_recipe("gcl_cifar10", "epochs=20"))[1]
    short = {"shortened": tuple(cut), "hours": 0.05}
    found.append(run_of("gcl_cifar10", (80, 40, 20), 0, "epochs=20", **short))
    other = {
        "dataset": DatasetFacts(name="cifar100_lt", train_sha256="1" * 64, test_sha256="2" * 64)
    }
    found.append(run_of("ce_cifar100", (60, 40, 10), 0, notes=HOSTILE, date="2026-02-03", **other))
    printed = {"origin": "paper", "status": "paper", "citation": "Someone, Table 1"}
    found.append(run_of("ride_cifar10", (90, 80, 70), 0, checkpoint=None, **printed))
    gone = run_of("bbn_cifar10", (10, 10, 10), 0)
    found.append(gone.model_copy(update={"status": "withdrawn"}))
    strange = run_of("ce_cifar100", (50, 40, 30), 0, execution=execution(1, HOSTILE))
    resolved = strange.recipe.resolved
    resolved["backbone"]["name"] = f"{HOSTILE}|"
    facts = strange.recipe.model_copy(
        update={"name": "strange", "digest": digest_of(resolved), "resolved": resolved}
    )
    data = DatasetFacts(name="strange_data", train_sha256="e" * 64, test_sha256="f" * 64)
    found.append(strange.model_copy(update={"recipe": facts, "dataset": data}).sealed())
    return found


def write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        record.save(folder / f"{number}.json")
    return folder


@functools.cache
def page_text() -> str:
    """The page of some of everything; made once for all tests."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        return build_page(write(Path(folder), confirmed(some_of_everything(), patch)))


def confirmed(records: list[Record], patch: pytest.MonkeyPatch) -> list[Record]:
    """Note the verified and withdrawn ones of some records as such here."""
    marks = {r.run_id: r.verification.model_dump(mode="json") for r in records if r.verification}
    marks |= {r.run_id: "withdrawn" for r in records if r.status == "withdrawn"}
    patch.setattr("ltbench.records.store.verifications", lambda: marks)
    return records

"""Whole runs: a short recipe from data to record, and one that is interrupted and resumed."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ltbench
from gpu_sections.place import Place, Row
from ltbench.records.record import WEIGHTS
from ltbench.train.progress import NoProgress

LEAST = 0.9  # of the test images right; 0.944 +- 0.006 on the CPU
SHORT = (
    "stages.0.epochs=4",
    "stages.0.update.epochs=2",
    "stages.0.schedule.warmup=0",
    "stages.1.epochs=2",
    "run.save_steps=1",
)


def recipe(place: Place) -> Iterator[Row]:
    """Train the quickstart: two stages on the embedded digits, PLOT, evaluation, record."""
    for precision in ("fp32",) if place.small or not place.gpu else ("fp32", "bf16"):
        words = [f"run.precision={precision}", f"run.device={place.device}"]
        if place.small:
            words.append("run.max_steps=2")
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result = ltbench.run(ltbench.get_recipe("quickstart", *words, f"out={folder}/run"))
        top1 = result.metrics.top1
        numerics = result.record.execution.gpu_numerics
        yield {
            "what": f"quickstart on digits, {precision}",
            "ok": None if place.small else top1 >= LEAST,
            "top1": round(top1, 4),
            "s": round(time.monotonic() - start, 1),
            **({} if numerics is None else numerics.model_dump()),
        }


def resume(place: Place) -> Iterator[Row]:
    """Interrupt a deterministic run, resume it, and compare its weights with an unbroken one's."""
    last = 8 if place.small else 30  # step after which the run is interrupted
    short = (*SHORT, "run.max_steps=5") if place.small else SHORT

    def trained(folder: Path, deterministic: bool, stop: int | None = None) -> tuple[str, int]:
        counted = Counted(stop)
        made = ltbench.get_recipe(
            "quickstart",
            *short,
            f"run.device={place.device}",
            f"run.deterministic={str(deterministic).lower()}",
            f"out={folder}",
        )
        try:
            ltbench.run(made, reporter=counted)
        except Interrupted:
            return "", counted.steps
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(), counted.steps

    with tempfile.TemporaryDirectory() as kept:
        root = Path(kept)
        whole, steps = trained(root / "whole", True)
        trained(root / "broken", True, last)
        again, rest = trained(root / "broken", True)
        yield {
            "what": "interrupted and resumed, run.deterministic=true",
            "ok": whole == again and 0 < rest < steps,
            "weights": "equal bit for bit" if whole == again else "differ",
            "steps": steps,
            "after the interruption": rest,
        }
        if place.gpu and not place.late():
            found = {trained(root / name, False)[0] for name in ("once", "twice")}
            same = "equal bit for bit" if len(found) == 1 else "differ"
            yield {"what": "the same run twice, not deterministic", "ok": None, "weights": same}


class Interrupted(Exception):
    """The run is to end here, as if it had been killed."""


class Counted(NoProgress):
    """Counts steps, and interrupts after one of them."""

    def __init__(self, stop: int | None) -> None:
        self.steps, self.stop = 0, stop

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps == self.stop:
            raise Interrupted

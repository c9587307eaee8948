"""Runs with logs, whole and interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ltbench import get_recipe
from ltbench.train import run as runner
from ltbench.train.progress import NoProgress

WORDS = (
    *("data.image_size=8", "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}"),
    *("stages.0.epochs=2", "stages.1.epochs=1", "stages.0.update.epochs=1", "run.device=cpu"),
    *("run.threads=1", "run.save_steps=4", "run.log_every=2"),
)


class Stop(NoProgress):
    """Interrupts training at a step, after it is made and before it is logged."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, loss: Callable[[], float], images: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def train(out: Path, log: str, stops: tuple[int, ...] = (), more: tuple[str, ...] = ()) -> Path:
    """Train, interrupted after so many steps of each process, and return the folder of logs."""
    recipe = get_recipe("quickstart", *WORDS, *more, f"log={log}", f"out={out}")
    for at in stops:
        with pytest.raises(KeyboardInterrupt):
            runner.run(recipe, reporter=Stop(at))
    runner.run(recipe, reporter=NoProgress())
    return out / "logs"


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.train.curves._picture", lambda *_: b"")

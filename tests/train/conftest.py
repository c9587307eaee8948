from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ltbench import get_recipe, run

# A short two-stage recipe with mixing, PLOT and a class-aware second stage.
WORDS = [
    "backbone=resnet20_cifar",
    "stages.0.epochs=2",
    "stages.0.update.epochs=1",
    "stages.0.schedule.warmup=0",
    "stages.1.epochs=1",
    "run.device=cpu",
    "run.threads=1",
]


def weights(out: Path) -> dict:
    return load_file(out / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of `WORDS` from beginning to end; only to be read."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltbench.train.curves._picture", lambda *_: b"")
        run(get_recipe("quickstart", *WORDS, f"out={out}"))
    return out

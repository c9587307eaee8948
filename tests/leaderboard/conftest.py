from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltbench import get_recipe
from ltbench.hub.export import export
from ltbench.records.record import Record, record_text
from ltbench.records.sealing import checksums_of, run_id_of
from ltbench.train.run import run
from tests.hub.fixtures import hub

__all__ = ["hub"]

WORDS = [
    *("data=digits_lt", "data.image_size=8", "data.imbalance_ratio=10"),
    *("backbone=resnet20_cifar", "run.max_steps=10", "run.device=cpu", "run.threads=1"),
]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short run on the digits."""
    folder = tmp_path_factory.mktemp("run") / "seed0"
    run(get_recipe("ce", *WORDS, f"out={folder}"))
    return folder


@pytest.fixture(scope="session")
def publish_folder(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published of that run."""
    return export(finished_run, tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A leaderboard's folder of its own, without records."""
    return own_board(tmp_path / "leaderboard", monkeypatch)


def own_board(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Copy the leaderboard without records to a folder, and read all there from now on."""
    import ltbench.config.resources

    real = ltbench.config.resources.leaderboard_dir()
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns("records", "models", "zoo.json"))
    (folder / "records").mkdir()
    for name, module in list(sys.modules.items()):
        if name.startswith("ltbench.") and hasattr(module, "leaderboard_dir"):
            patch.setattr(module, "leaderboard_dir", lambda: folder)
    return folder


@pytest.fixture
def content(finished_run: Path) -> dict[str, Any]:
    """Parsed record of the run."""
    return json.loads((finished_run / "record.json").read_text())


@pytest.fixture
def seal() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Compute a record's hashes anew, as a forger would."""

    def sealed(content: dict[str, Any]) -> dict[str, Any]:
        content["checksums"] = checksums_of(content)
        content["run_id"] = run_id_of(content)
        return content

    return sealed


@pytest.fixture
def write(board: Path) -> Callable[[dict[str, Any]], Path]:
    """Put a record among those of the leaderboard."""

    def to_board(content: dict[str, Any]) -> Path:
        path = board / "records" / content["dataset"]["name"] / f"{content['run_id']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record_text(content))
        return path

    return to_board


@pytest.fixture
def confirmed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Record], Record]:
    """Note that a record was verified or withdrawn here."""
    marks: dict[str, Any] = {}
    monkeypatch.setattr("ltbench.records.store.verifications", lambda: marks)

    def note(record: Record) -> Record:
        checked = record.verification
        marks[record.run_id] = checked.model_dump(mode="json") if checked else record.status
        return record

    return note

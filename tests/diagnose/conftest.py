from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench.config.validation import build_recipe
from ltbench.diagnose.base import Subject
from ltbench.hub.load import load_described
from ltbench.records.record import Record
from ltbench.train.run import run
from tests.diagnose.tiny import tiny_tree

MakeSubject = Callable[..., Subject]


@pytest.fixture(scope="session")
def make_subject(tmp_path_factory: pytest.TempPathFactory) -> MakeSubject:
    """Train a tiny model with a method, once per session for the same arguments.

    ``make_subject("mixup", name="second", update="plot", seed=1, options={...})``: ``options`` are
    the method's, ``update`` is that of the first stage, other words replace top-level keys of the
    recipe (see ``tiny.py``).
    """
    done: dict[str, Path] = {}

    def make(method: str = "ce", *, name: str | None = None, **changes: Any) -> Subject:
        tree = tiny_tree(method, **changes)
        key = json.dumps(tree, sort_keys=True)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("runs") / method
            state = torch.get_rng_state()
            with pytest.MonkeyPatch.context() as quick:  # the curves take as long as the run
                quick.setattr("ltbench.train.curves._picture", lambda *_: b"")
                run(build_recipe({**tree, "out": str(done[key])}))
            torch.set_rng_state(state)
        folder = done[key]
        model, facts = load_described(folder)
        recipe = build_recipe(facts["recipe"])
        data = recipe.data.config.load()  # type: ignore[attr-defined]
        record = Record.load(folder / "record.json")
        return Subject(name or method, model, recipe, data, torch.device("cpu"), folder, record)

    return make


@pytest.fixture
def subject(make_subject: MakeSubject) -> Subject:
    """A tiny model trained with cross-entropy for three epochs on a long tail of digits."""
    return make_subject()

"""Data state of a checkpoint, compared on resume."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ltbench.config.recipe import Stage, dump
from ltbench.errors import UserError
from ltbench.train.checkpoint import Position

VERSION = 1
WHAT = {
    "version": "the format of the resume state",
    "data": "the training data",
    "seed": "the seed",
    "stage": "the stage",
    "epoch": "the epoch",
    "consumed": "the position in the epoch",
    "batch": "the global batch",
    "sampler": "the sampler",
    "last": "the rule for the last batch",
    "order": "the order of the epoch's images (labels or version of ltbench)",
}


def resume_state(
    position: Position, seed: int, fingerprint: str, stage: Stage | None, order: np.ndarray | None
) -> dict[str, Any]:
    """Return the state that must match on resume: plain data of less than 1 KB.

    It does not depend on the number of ranks or workers.

    Args:
        position: the next step.
        seed: seed of the run.
        fingerprint: fingerprint of the training split.
        stage: the stage of ``position``; ``None`` when all are done.
        order: image indices of its epoch, int64 [n]; ``None`` if the stage does not train.
    """
    state: dict[str, Any] = {"version": VERSION, "data": fingerprint, "seed": seed}
    state |= {"stage": position.stage, "epoch": position.epoch}
    if stage is not None and stage.training is not None and order is not None:
        size = stage.training.batch_size
        state |= {
            "consumed": min(position.step * size, len(order)),
            "batch": size,
            "sampler": dump(stage.sampler),
            "last": stage.last_batch,
            "order": hashlib.sha256(np.ascontiguousarray(order, "<i8").tobytes()).hexdigest(),
        }
    return state


def check_resume_state(saved: dict[str, Any], now: dict[str, Any], origin: str) -> None:
    """Check that training resumes with the data and image order of the checkpoint.

    Args:
        saved: resume state of the checkpoint.
        now: current ``resume_state`` at its position.
        origin: name of the checkpoint, for the message.

    Raises:
        UserError: they differ; names the first difference.
    """
    for key, what in WHAT.items():
        if saved.get(key) != now.get(key):
            raise UserError(
                f"{what} changed since {origin} was written: expected {_short(saved.get(key))}, "
                f"found {_short(now.get(key))}; undo the change, or pass another `out=` "
                "to start from scratch"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:32]}..."

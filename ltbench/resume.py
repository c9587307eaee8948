"""What a checkpoint says of the data it was trained on, so that a run goes on with the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ltbench.checkpoint import Position
from ltbench.errors import UserError
from ltbench.recipe import Stage, dump

VERSION = 1
WHAT = {
    "version": "the form of the resume state",
    "data": "the training data",
    "seed": "the seed",
    "stage": "the stage",
    "epoch": "the epoch",
    "consumed": "the place in the epoch",
    "batch": "the global batch",
    "sampler": "the sampler",
    "last": "the rule for the last batch",
    "order": "the order of the epoch's images (labels or version of ltbench)",
}


def resume_state(
    position: Position, seed: int, fingerprint: str, stage: Stage | None, order: np.ndarray | None
) -> dict[str, Any]:
    """Return what must be the same when training goes on: plain data of less than 1 KB.

    It does not depend on ranks or workers.

    Args:
        position: the next step to do.
        seed: of the run.
        fingerprint: of the training split.
        stage: the one that ``position`` is in; ``None`` when all are done.
        order: the indices that its epoch visits, int64 [n]; ``None`` if it does not train.
    """
    state: dict[str, Any] = {"version": VERSION, "data": fingerprint, "seed": seed}
    state |= {"stage": position.stage, "epoch": position.epoch}
    if stage is not None and order is not None:
        size = stage.batch_size or 1
        state |= {
            "consumed": min(position.step * size, len(order)),
            "batch": size,
            "sampler": dump(stage.sampler),
            "last": stage.last_batch,
            "order": hashlib.sha256(np.ascontiguousarray(order, "<i8").tobytes()).hexdigest(),
        }
    return state


def check_resume_state(saved: dict[str, Any], now: dict[str, Any], origin: str) -> None:
    """Refuse to go on with other data, or other images next, than the checkpoint was made for.

    Args:
        saved: what the checkpoint holds.
        now: what ``resume_state`` gives for its position.
        origin: the checkpoint, for the message.

    Raises:
        UserError: names the first thing that differs.
    """
    for key, what in WHAT.items():
        if saved.get(key) != now.get(key):
            raise UserError(
                f"{what} changed since {origin} was written: expected {_short(saved.get(key))}, "
                f"found {_short(now.get(key))}; put back what was changed, or pass another `out=` "
                "to start anew"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:32]}..."

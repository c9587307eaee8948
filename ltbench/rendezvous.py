"""How the ranks of one start of a job find each other, and nobody from an earlier start."""

from __future__ import annotations

import datetime
import hashlib
import time
import uuid
from typing import Any

import torch.distributed

td: Any = torch.distributed  # does not say for type checkers that it exports its stores
PAUSE = 0.05  # seconds between looks at the store


def meet(wait: datetime.timedelta) -> tuple[Any, int, int]:
    """Return a store that only the ranks of this start use, this rank, and the number of ranks.

    torchrun keeps one store over its restarts, in which a rank may read the address of one that
    was killed, and connect to nobody (pytorch issue 135712); nor is its count of restarts the
    same on all nodes. So each rank puts down a new mark, rank 0 lists the marks until every rank
    has found its own in the list, and the list's hash names this start.

    Args:
        wait: for the others.

    Raises:
        RuntimeError: they did not come.
    """
    base, rank, world = next(td.rendezvous("env://", timeout=wait))
    store = td.PrefixStore("ltbench", base)
    mark, end = uuid.uuid4().hex, time.monotonic() + wait.total_seconds()
    store.set(f"mark/{rank}", mark)
    while time.monotonic() < end:
        if rank == 0:
            marks = [_read(store, f"mark/{r}") for r in range(world)]
            listed = ",".join(marks)
            if all(marks) and listed != _read(store, "list"):
                store.set("list", listed)
        else:
            listed = _read(store, "list")
            marks = listed.split(",")
        name = hashlib.sha256(listed.encode()).hexdigest()[:16]
        if len(marks) == world and marks[rank] == mark:
            if rank > 0:
                store.set(f"seen/{rank}", name)
            elif all(_read(store, f"seen/{r}") == name for r in range(1, world)):
                store.set("start", name)
            if _read(store, "start") == name:
                return td.PrefixStore(name, base), rank, world
        time.sleep(PAUSE)
    raise RuntimeError(f"not all of {world} ranks came within {wait.total_seconds() / 60:g} min")


def _read(store: Any, key: str) -> str:
    value: bytes = store.get(key) if store.check([key]) else b""
    return value.decode()

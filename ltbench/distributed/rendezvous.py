"""Rendezvous of the ranks of one start of a job, safe against leftovers of earlier starts."""

from __future__ import annotations

import datetime
import hashlib
import time
import uuid
from typing import Any

import torch.distributed

td: Any = torch.distributed  # its stores are not exported for type checkers
POLL = 0.05  # seconds between polls of the store


def meet(wait: datetime.timedelta) -> tuple[Any, int, int]:
    """Return a store private to this start of the job, this rank, and the number of ranks.

    torchrun keeps one store across restarts, so a rank may read the address of a killed one and
    fail to connect (pytorch issue 135712); its restart count is not the same on all nodes either.
    Therefore each rank publishes a fresh token, rank 0 publishes the list of tokens until every
    rank finds its own in it, and the hash of that list becomes the prefix of the store.

    Args:
        wait: timeout.

    Raises:
        RuntimeError: not all ranks arrived in time.
    """
    base, rank, world = next(td.rendezvous("env://", timeout=wait))
    store = td.PrefixStore("ltbench", base)
    token, end = uuid.uuid4().hex, time.monotonic() + wait.total_seconds()
    store.set(f"token/{rank}", token)
    while time.monotonic() < end:
        if rank == 0:
            tokens = [_read(store, f"token/{r}") for r in range(world)]
            listed = ",".join(tokens)
            if all(tokens) and listed != _read(store, "list"):
                store.set("list", listed)
        else:
            listed = _read(store, "list")
            tokens = listed.split(",")
        name = hashlib.sha256(listed.encode()).hexdigest()[:16]
        if len(tokens) == world and tokens[rank] == token:
            if rank > 0:
                store.set(f"seen/{rank}", name)
            elif all(_read(store, f"seen/{r}") == name for r in range(1, world)):
                store.set("start", name)
            if _read(store, "start") == name:
                return td.PrefixStore(name, base), rank, world
        time.sleep(POLL)
    raise RuntimeError(f"not all {world} ranks joined within {wait.total_seconds() / 60:g} min")


def _read(store: Any, key: str) -> str:
    value: bytes = store.get(key) if store.check([key]) else b""
    return value.decode()

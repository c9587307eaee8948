"""Ranks of one start meet each other in a store that remembers earlier starts."""

from __future__ import annotations

import datetime
import threading

import pytest
import torch.distributed as td

from ltbench.distributed.rendezvous import meet

WORLD = 3


@pytest.fixture
def started(monkeypatch):
    """Start ranks on one lasting store and return what each of them got."""
    store = td.HashStore()
    own = threading.local()

    def rendezvous(url, timeout):
        assert url == "env://"
        yield store, own.rank, WORLD

    monkeypatch.setattr(td, "rendezvous", rendezvous)

    def start(ranks=range(WORLD), seconds=20.0):
        got, errors = {}, []

        def one(rank):
            own.rank = rank
            try:
                got[rank] = meet(datetime.timedelta(seconds=seconds))
            except RuntimeError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return got, errors

    return start


def assert_alone_together(got) -> None:
    """Each sees what the others put down, and nothing from an earlier start."""
    assert [got[rank][1:] for rank in range(WORLD)] == [(rank, WORLD) for rank in range(WORLD)]
    stores = [got[rank][0] for rank in range(WORLD)]
    assert not any(store.check([str(rank)]) for store in stores for rank in range(WORLD))
    for rank, store in enumerate(stores):
        store.set(str(rank), f"address {rank}")
    for store in stores:
        assert [store.get(str(r)).decode() for r in range(WORLD)] == [
            f"address {r}" for r in range(WORLD)
        ]


def test_all_ranks_meet_in_a_place_that_no_other_start_has_seen(started):
    for _ in range(4):
        got, errors = started()
        assert not errors
        assert_alone_together(got)


@pytest.mark.parametrize("came", [(0, 1), (1, 2), (0,)])
def test_marks_of_a_start_that_failed_half_way_are_not_taken_for_ours(came, started):
    for _ in range(2):
        _, errors = started(came, seconds=0.5)
        assert len(errors) == len(came)
        assert f"not all {WORLD} ranks joined" in errors[0]
        got, errors = started()
        assert not errors
        assert_alone_together(got)

"""Groups of ranks beside the one of all collectives."""

from __future__ import annotations

import datetime
import time

import torch
import torch.distributed as td

from ltbench.distributed import ranks


def waited() -> tuple[str, bool]:
    """Wait for rank 0 for longer than the timeout of collectives."""
    ranks._groups.clear()
    ranks._timeout[:] = [datetime.timedelta(seconds=1)]
    try:
        ranks.barrier()  # connects them
        found = ranks.on_main(lambda: time.sleep(2) or "done")
        return found, ranks._object_group() is not ranks.gradient_group() is not td.group.WORLD
    finally:
        ranks._groups.clear()
        ranks._timeout.clear()


def test_ranks_wait_longer_for_work_of_rank_0_than_for_a_collective(two_processes):
    assert two_processes.call(waited) == [("done", True)] * 2


def in_another_order() -> list[float]:
    """Begin a sum of gradients before another collective on one rank, and after it on the other."""
    gradient, other = torch.ones(3), torch.ones(3) * 10
    group = ranks.gradient_group()
    if ranks.rank() == 0:
        work = td.all_reduce(gradient, group=group, async_op=True)
        ranks.all_reduce_(other)
    else:
        ranks.all_reduce_(other)
        work = td.all_reduce(gradient, group=group, async_op=True)
    work.wait()
    return [*gradient.tolist(), *other.tolist()]


def test_gradient_sums_do_not_meet_other_collectives(two_processes):
    assert two_processes.call(in_another_order) == [[2.0] * 3 + [20.0] * 3] * 2

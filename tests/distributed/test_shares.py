"""Ranks share the work on what couples images: with few, uneven or no images on a rank."""

from __future__ import annotations

from dataclasses import replace

import torch
import toys
from toy_stages import ready

from ltbench.config import validation
from ltbench.distributed import ranks
from ltbench.methods.base import Batch
from ltbench.models.batchnorm import convert_sync_batchnorm
from ltbench.updates.base import StepRun

# A method, its further options, and images of each of two ranks.
CASES = [
    ("rsg", {"generate_from": 5}, (7, 6)),  # pairs of the same class, an odd number of images
    ("rsg", {}, (9, 0)),
    ("rsg", {}, (1, 8)),
    ("proco", {}, (2, 1)),  # fewer images than classes
    ("proco", {}, (6, 0)),
    ("lade", {}, (5, 0)),
    ("lade", {}, (1, 6)),
    ("dirmixe", {}, (4, 3)),
    ("cc_sam", {}, (5, 2)),
    ("bcl", {}, (5, 2)),
    ("gpaco", {}, (4, 3)),
    ("paco", {}, (4, 3)),
    ("m2m", {}, (7, 2)),
]


def gradients(cases: list, alone: bool) -> list[list[torch.Tensor | None]]:
    """Return the loss and the gradient of a step in each case, with images cut for the ranks."""
    found = []
    for name, options, cut in cases:
        sizes = (sum(cut),) if alone else cut
        method, _ = ready(name, norm=False)
        given = {**toys.OPTIONS.get(name, {}), **options}
        method.config = validation.build_options("METHODS", name, given)
        convert_sync_batchnorm(method.double())
        run = StepRun(method, torch.optim.SGD(method.parameters(), lr=0.1))
        x, y = toys.images(24)
        start = ranks.first_row(sizes)
        rows = torch.arange(start, start + sizes[ranks.rank()])
        batch = Batch((x[rows].double(),), y[rows], rows, sizes=sizes)
        batch = method.prepare(replace(toys.dressed(batch, method)), toys.at())
        loss, _ = run.backward([batch], toys.at())
        found.append([loss.detach(), *(p.grad for p in run.parameters)])
    return found


def check(found: list[list], alone: list[list]) -> None:
    for (name, *_), theirs, one in zip(CASES, found, alone, strict=True):
        assert sum(g is not None and bool(g.any()) for g in one) > 4, name
        for a, b in zip(one, theirs, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(
                    b, a, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_two_ranks_equal_one_process(two_processes):
    alone = gradients(CASES, True)
    for found in two_processes.call(gradients, CASES, False):
        check(found, alone)

"""Rows that ranks exchange: gathered, and fetched from the rank that has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from processes import Ranks
from torch.autograd import forward_ad

from ltbench.data.loader import batches
from ltbench.data.memory import MemorySplit
from ltbench.distributed import differentiable, ranks
from ltbench.methods import gcl, m2m
from ltbench.methods.base import Batch
from ltbench.seeding import keyed_bits, keyed_uniform_on_device
from ltbench.train.feed import step_sizes

CUTS = [(6, 6), (7, 5), (12, 0), (0, 12)]


def of(sizes: tuple[int, ...], known: bool = True) -> tuple[slice, Batch]:
    """The images of this rank when the ranks have so many."""
    x, y = toys.images(sum(sizes))
    start = sum(sizes[: ranks.rank()])
    own = slice(start, start + sizes[ranks.rank()])
    batch = Batch((x[own], 2 * x[own]), y[own], torch.arange(len(x))[own])
    return own, toys.replace(batch, sizes=sizes if known else ())


def prepared(name: str, sizes: tuple[int, ...], known: bool = True) -> tuple[slice, Batch]:
    own, batch = of(sizes, known)
    return own, toys.method(name).prepare(batch, toys.at(4))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("name", ["mixup", "gcl", "cc_sam"])
def test_ranks_mix_as_one_process_does(two_processes, name, sizes, known):
    _, whole = prepared(name, (12,))
    for own, part in two_processes.call(prepared, name, sizes, known):
        for mixed, all_mixed in zip(part.views, whole.views, strict=True):
            assert torch.equal(mixed, all_mixed[own])
        assert torch.equal(part.partner, whole.partner[own])
        assert part.lam == whole.lam
        for key, noise in part.extra.items():
            assert torch.equal(noise, whole.extra[key][own])


def exchanged(sizes: tuple[int, ...]) -> list[torch.Tensor]:
    start = ranks.first_row(sizes)
    own = torch.arange(start, start + sizes[ranks.rank()])
    rows = own[:, None] + torch.tensor([0.0, 0.5])
    total = sum(sizes)
    wanted = [torch.arange(3 * r, 0, -2) % total for r in range(len(sizes))]  # several times, none
    fetched = ranks.fetch_rows([rows, own], wanted, sizes)
    slope = rows.clone().requires_grad_()
    everyone = differentiable.all_gather(slope, sizes)
    (everyone * torch.arange(total)[:, None]).sum().backward()
    gathered = ranks.all_gather(rows, sizes), ranks.all_gather(rows), everyone.detach()
    return [wanted[ranks.rank()], *fetched, own, slope.grad, *gathered]


def check(found: list[list[torch.Tensor]], sizes: tuple[int, ...]) -> None:
    rows = torch.arange(sum(sizes))[:, None] + torch.tensor([0.0, 0.5])
    for wanted, fetched, places, own, slope, *gathered in found:
        assert torch.equal(fetched, rows[wanted])
        assert torch.equal(places, wanted)
        assert torch.equal(slope, len(sizes) * own[:, None].expand(-1, 2).float())
        for everyone in gathered:
            assert torch.equal(everyone, rows)


@pytest.mark.parametrize("sizes", CUTS)
def test_rows_come_from_the_rank_that_has_them(two_processes, sizes):
    check(two_processes.call(exchanged, sizes), sizes)
    check([exchanged((12,))], (12,))


def summed(sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Labels and rows of all ranks, sums and largest values, with gradients in both modes."""
    start = ranks.first_row(sizes)
    labels = torch.arange(start, start + sizes[ranks.rank()])
    rows = (labels[:, None] ** 2 * torch.tensor([1.0, -0.5])).double().requires_grad_()
    sent = differentiable.all_gather_labelled(labels, rows, sizes)
    both = [*sent, *ranks.all_gather_labelled(labels, [rows, rows[:, :1]], sizes)]
    total = differentiable.all_reduce(rows.sum(dim=0))
    largest = differentiable.from_largest(total + ranks.rank())
    (sent[1].sum() + (total**2).sum() + largest.sum()).backward()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(total.detach(), torch.ones(2).double())
        moved = differentiable.all_reduce(dual) - differentiable.from_largest(dual)
        tangent = forward_ad.unpack_dual(moved).tangent
    return [x.detach() for x in (*both, total, largest, rows.grad, tangent)]


@pytest.mark.parametrize("sizes", CUTS)
def test_sums_and_labels_of_ranks(two_processes, sizes):
    whole = torch.arange(12)
    rows = (whole[:, None] ** 2 * torch.tensor([1.0, -0.5])).double()
    for n, (labels, others, own, first, part, total, largest, slope, tangent) in zip(
        sizes, two_processes.call(summed, sizes), strict=True
    ):
        assert torch.equal(labels, whole)
        assert torch.equal(own, whole)
        for found, wanted in ((others, rows), (first, rows), (part, rows[:, :1])):
            assert torch.equal(found, wanted)
        assert torch.equal(total, rows.sum(dim=0))
        assert torch.equal(largest, total + 1)
        assert torch.equal(slope, (2 + 4 * total).expand(n, 2))  # the loss is that of two ranks
        assert torch.equal(tangent, torch.full((2,), 2.0).double())


@pytest.mark.slow
def test_rows_of_four_ranks():
    four = Ranks(4)
    for sizes in ((3, 3, 3, 3), (4, 3, 3, 3), (5, 0, 1, 2), (6, 0, 0, 5)):
        check(four.call(exchanged, sizes), sizes)
    four.end()


@pytest.mark.parametrize(
    ("n", "size", "world", "passes", "last"),
    [
        (50, 12, 2, 2, "keep"),
        (50, 12, 2, 2, "drop"),
        (51, 12, 4, 1, "keep"),
        (48, 12, 3, 1, "keep"),
    ],
)
def test_sizes_are_those_that_the_loader_cuts(n, size, world, passes, last):
    """Of 51 images the last three are too few for four ranks and join the step before."""
    images, labels = np.zeros((n, 4, 4, 3), dtype=np.uint8), np.zeros(n, dtype=np.int64)
    split = MemorySplit(images, labels, mean=(0.0,) * 3, std=(1.0,) * 3)
    cuts = {"world": world, "accumulate": passes}
    loaded = [
        list(batches(split, np.arange(n), size, key=None, rank=r, last=last, **cuts))
        for r in range(world)
    ]
    cut = [
        [tuple(len(of_rank[step][micro].labels) for of_rank in loaded) for micro in range(passes)]
        for step in range(len(loaded[0]))
    ]
    assert step_sizes(n, size, world, passes, last) == cut


def test_numbers_on_the_device_are_those_of_the_host():
    places = np.arange(3000)
    for key in (0, 7, 2**63 - 1):
        bits = keyed_bits(key, places) >> np.uint64(40)
        found = keyed_uniform_on_device(key, torch.arange(3000))
        assert torch.equal(found, torch.from_numpy(bits.astype(np.float32)) * 2.0**-24)


def test_m2m_noise_of_some_images_is_that_of_all():
    shape, kept = torch.Size((3, 4, 5)), [False, True, True, False, True]
    whole = torch.rand((5, *shape), generator=torch.Generator().manual_seed(3))
    found = m2m.uniform_rows(kept, shape, torch.Generator().manual_seed(3))
    assert torch.equal(found, whole[kept])
    places = torch.tensor([0, 7, 63])
    whole = m2m.uniform_on_device(9, torch.arange(64), shape, torch.device("cpu"))
    found = m2m.uniform_on_device(9, places, shape, torch.device("cpu"))
    assert torch.equal(found, whole[places])
    assert 0 <= whole.min() < whole.max() < 1
    assert len(whole.unique()) > 0.99 * whole.numel()
    assert whole.mean().item() == pytest.approx(0.5, abs=0.02)


def test_gcl_noise_of_a_device_is_that_of_the_place_in_the_batch():
    whole = gcl.noise_on_device(5, range(40), 40, 100, "cpu")
    for rows in (range(13), range(13, 40), range(7, 7)):
        part = gcl.noise_on_device(5, rows, 40, 100, "cpu")
        assert torch.equal(part, whole[:, rows.start : rows.stop])
    assert not torch.equal(whole[0], whole[1])
    many = gcl.noise_on_device(6, range(1000), 1000, 100, "cpu")
    assert 0 <= many.min() < many.max() == 1
    assert many.mean().item() == pytest.approx(np.sqrt(2 / np.pi) / 3, rel=0.005)
    assert (many < 1 / 3).double().mean().item() == pytest.approx(0.6827, abs=0.005)

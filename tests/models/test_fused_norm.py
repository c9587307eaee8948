"""Synchronised batch normalisation by a GPU's kernels, emulated, against the one in plain torch."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import emulated_norm
import torch

from ltbench.distributed import ranks
from ltbench.models import batchnorm
from ltbench.models.batchnorm import SyncBatchNorm2d, frozen_statistics

CASES = {  # shape after the batch, images of each rank, options
    "maps": ((3, 4, 5), (3, 5), {}),
    "channels last": ((3, 4, 5), (3, 5), {"layout": torch.channels_last}),
    "vectors": ((3,), (4, 7), {}),
    "rank 0 empty": ((3, 4, 5), (0, 5), {}),
    "rank 1 empty": ((3, 4, 5), (6, 0), {}),
    "no scale": ((3, 4, 5), (3, 5), {"affine": False}),
    "frozen scale": ((3, 4, 5), (3, 0), {"trained": False}),
    "frozen statistics": ((3, 4, 5), (2, 4), {"tracked": False}),
    "every batch counts alike": ((3, 4, 5), (2, 4), {"momentum": None}),
    "single": ((3, 4, 5), (2, 4), {"dtype": torch.float32}),
    "half": ((3, 4, 5), (2, 4), {"dtype": torch.bfloat16}),
    "half, frozen statistics": ((3, 4, 5), (2, 0), {"dtype": torch.bfloat16, "tracked": False}),
}


def normalise(fused: bool, shape, sizes, options) -> list[torch.Tensor | None]:
    """Return output, gradients, twice, and statistics of this rank after two batches."""
    affine, kind = options.get("affine", True), options.get("dtype", torch.float64)
    momentum = options.get("momentum", 0.1)
    layer = SyncBatchNorm2d(3, affine=affine, momentum=momentum)
    layer = layer.double() if kind == torch.float64 else layer
    start, found = ranks.first_row(sizes), []
    rows = slice(start, start + sizes[ranks.rank()])
    drawn = torch.Generator().manual_seed(3)
    if affine:
        with torch.no_grad():
            layer.weight.copy_(torch.rand(3, generator=drawn) + 0.5)
            layer.bias.copy_(torch.rand(3, generator=drawn))
        layer.requires_grad_(options.get("trained", True))
    with (
        patch.multiple(torch, **emulated_norm.OPERATIONS),
        patch.object(batchnorm, "fused", lambda x: fused),
        nullcontext() if options.get("tracked", True) else frozen_statistics(layer),
    ):
        for _ in range(2):
            x, slope = torch.randn(2, sum(sizes), *shape, generator=drawn, dtype=torch.float64)
            x = (x * 2 + 5)[rows].to(kind)
            if "layout" in options:
                x = x.contiguous(memory_format=options["layout"])
            x.requires_grad_()
            out = layer(x)
            assert out.dtype == kind
            inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
            for loss in ((out * slope[rows].to(kind)).sum(), (out**2 * slope[rows]).sum()):
                found += torch.autograd.grad(loss, inputs, retain_graph=True)
            found.append(out.detach())
    return [*found, *(b.clone() for b in layer.buffers())]


def both(cases: dict) -> dict[str, list]:
    return {name: [normalise(f, *case) for f in (True, False)] for name, case in cases.items()}


def test_kernels_are_wired_as_the_formula(two_processes):
    for found in two_processes.call(both, CASES):
        for name, (ours, plain) in found.items():
            half = CASES[name][2].get("dtype") == torch.bfloat16
            single = CASES[name][2].get("dtype") == torch.float32
            close = {"atol": 0.1, "rtol": 0.02} if half else {"atol": 1e-10, "rtol": 1e-10}
            close = {"atol": 1e-4, "rtol": 1e-4} if single else close
            for a, b in zip(ours, plain, strict=True):
                torch.testing.assert_close(a, b, **close, msg=lambda m, n=name: f"{n}: {m}")


def test_a_cpu_and_forward_mode_take_plain_torch():
    x = torch.ones(2, 3)
    assert not batchnorm.fused(x)
    there = torch.empty(2, 3, device="meta")
    with patch.object(torch.Tensor, "device", torch.device("cuda:0")):
        assert batchnorm.fused(there)
        with torch.autograd.forward_ad.dual_level():
            assert not batchnorm.fused(there)

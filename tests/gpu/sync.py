"""Synchronised batch normalisation on the pretended GPU, on one of eight ranks."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
import torch.distributed as td
from torch.autograd import forward_ad
from torch.testing._internal.distributed.fake_pg import FakeStore

from ltbench.models.batchnorm import SyncBatchNorm2d
from tests.gpu.pretend import GPU, to_gpu

make_dual: Any = forward_ad.make_dual  # untyped in torch


def row(name: str, gpu: GPU) -> None:
    """Print what was counted."""
    found = {
        "kernels": dict(gpu.kernels),
        "waits": [[n, *what] for what, n in gpu.waits.items()],
        "errors": [[n, *what] for what, n in gpu.errors.items()],
        "collectives": [kind for kind, *_ in gpu.collectives],
    }
    print(json.dumps({"case": name, **found}))


def main() -> None:
    """Print a line of JSON for the passes of a step, and for one in forward mode."""
    warnings.simplefilter("ignore")
    td.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    with GPU() as gpu:
        layer = SyncBatchNorm2d(6).to("cuda")
        x = to_gpu(torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last))
        for _ in range(2):
            gpu.reset()
            out = layer(x.detach().requires_grad_())
            out.backward(torch.ones_like(out))
        row("step", gpu)
        gpu.reset()
        with torch.no_grad(), forward_ad.dual_level():
            layer(make_dual(x, torch.ones_like(x)))
        row("forward mode", gpu)


if __name__ == "__main__":
    main()

"""Batch normalisation over ranks by torch's kernels for GPUs, those of ``nn.SyncBatchNorm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ltbench.distributed import ranks

NONE = 1e-30  # count of a rank without images: next to nothing, since the kernel divides by it


class FusedNorm(torch.autograd.Function):
    """Features [B, C, ...] normalised by the batches of all ranks; forward and reverse only.

    Unlike ``nn.SyncBatchNorm`` it makes the host wait nowhere: ranks without images stay in the
    table of statistics.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Return normalised features; running statistics, if any, are updated in place."""
        x, channels = dense(x), x.shape[1]
        if x.numel():
            mean, inverse = torch.batch_norm_stats(x, eps)
            count = mean.new_full((1,), x.numel() // channels)
        else:
            kind = torch.float64 if x.dtype == torch.float64 else torch.float32
            mean = x.new_zeros(channels, dtype=kind)
            inverse, count = torch.ones_like(mean), mean.new_full((1,), NONE)
        own = torch.cat([mean, inverse, count])
        table = ranks.all_gather(own[None], (1,) * ranks.world())  # [ranks, 2C + 1]
        counts = table[:, -1].contiguous()
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            mean,  # only its type is read
            table[:, :channels],
            table[:, channels:-1],
            running_mean,
            running_var,
            momentum,
            eps,
            counts if running_mean is None else counts.to(running_mean.dtype),
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts.int())
        if not x.numel():
            return torch.empty_like(x)
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, scale and shift; those of the last two of this rank."""
        x, weight, mean, inverse, counts = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        grad, of_weight, of_bias = dense(grads[0]), None, None
        sums = mean.new_zeros(2 * len(mean))
        if x.numel():
            first, second, of_weight, of_bias = torch.batch_norm_backward_reduce(
                grad, x, mean, inverse, weight, *wanted
            )
            sums = torch.cat([first, second]) if wanted[0] else sums
        elif weight is not None:
            of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        of_x = torch.empty_like(grad) if wanted[0] else None
        if wanted[0]:
            first, second = torch.split(ranks.all_reduce_(sums), len(mean))
            if x.numel():
                scale = None if weight is None else weight.to(mean.dtype)
                of_x = torch.batch_norm_backward_elemt(
                    grad, x, mean, inverse, scale, first.contiguous(), second.contiguous(), counts
                )
        of_weight = of_weight if wanted[1] else None
        of_bias = of_bias if wanted[2] else None
        return of_x, of_weight, of_bias, None, None, None, None


def dense(x: Tensor) -> Tensor:
    """Return features in a layout that the kernels take: channels last, or contiguous."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim())
    return x if last and x.is_contiguous(memory_format=last) else x.contiguous()

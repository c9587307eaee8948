"""CUDA's operations behind ``nn.SyncBatchNorm``, on CPU tensors, with their types and formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _over(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def _dims(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    assert x.numel()
    wide = _wide(x)
    var = wide.var(_dims(x), unbiased=False)
    return wide.mean(_dims(x)), (var + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    like: Tensor,
    means: Tensor,
    inverses: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    kind = like.dtype if running_mean is None else running_mean.dtype
    assert counts.dtype == kind, "the kernel checks the type of counts"
    assert means.dtype == inverses.dtype == _wide(torch.empty(0, dtype=kind)).dtype
    mean, squares, n = torch.zeros_like(means[0]), torch.zeros_like(means[0]), 0
    for m, inverse, count in zip(means, inverses, counts, strict=True):
        factor = 1 / (n + count)
        squares += (inverse**-2 - eps) * count + (mean - m) ** 2 * n * count * factor
        mean = n * factor * mean + count * factor * m
        n = int(n + count)  # the kernel counts in integers
    if running_mean is not None and running_var is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        running_var.copy_((1 - momentum) * running_var + momentum * squares / (n - 1))
    return mean, (squares / n + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    out = (_wide(x) - _over(mean, x)) * _over(inverse, x)
    out = out if weight is None else out * _over(weight, x)
    return (out if bias is None else out + _over(bias, x)).to(x.dtype)


def batch_norm_backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    of_input: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor | None, ...]:
    assert x.numel()
    first = _wide(grad).sum(_dims(x))
    second = (_wide(grad) * (_wide(x) - _over(mean, x))).sum(_dims(x))
    scale, shift = (second * inverse, first.clone()) if weight is not None else (None, None)
    return (
        *((first, second) if of_input else (None, None)),
        scale if of_weight else None,
        shift if of_bias else None,
    )


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    first: Tensor,
    second: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32
    assert counts.is_contiguous()
    n = counts.sum()
    slope = inverse if weight is None else inverse * weight
    along = inverse**2 * second / n
    centred = _wide(grad) - _over(first / n, x) - (_wide(x) - _over(mean, x)) * _over(along, x)
    return (centred * _over(slope, x)).to(x.dtype)


OPERATIONS: dict[str, Any] = {
    f.__name__: f
    for f in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    )
}

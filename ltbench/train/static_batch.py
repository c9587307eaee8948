"""A batch in memory that stays where it is, filled anew in each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ltbench.methods.base import Batch


class StaticBatch:
    """Copy of a batch, which later batches of the same shapes are written into.

    The weight ``lam`` of mixed images becomes a scalar tensor, in float64 as Python's numbers are.

    Args:
        batch: the first batch.
    """

    def __init__(self, batch: Batch) -> None:
        self._form = form_of(batch)
        self.batch = _copied(batch)

    def fits(self, batch: Batch) -> bool:
        """Return whether a batch has the same tensors, with the same shapes and layouts."""
        return form_of(batch) == self._form

    def fill(self, batch: Batch) -> None:
        """Write the contents of a batch that fits."""
        groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for own, new in zip(_tensors(self.batch), _tensors(batch), strict=True):
            mine, given = groups.setdefault((own.dtype, own.device), ([], []))
            mine.append(own)
            given.append(new)
        for mine, given in groups.values():
            torch._foreach_copy_(mine, given)
        for own_part, part in zip(_parts(self.batch), _parts(batch), strict=True):
            assert isinstance(own_part.lam, Tensor)
            if isinstance(part.lam, Tensor):
                own_part.lam.copy_(part.lam)
            else:
                own_part.lam.fill_(part.lam)


def form_of(batch: Batch) -> list[Any]:
    """Return all of a batch that is no content of a tensor, but for the weight ``lam``."""
    facts: list[Any] = [
        (len(part.views), part.partner is None, tuple(part.extra), tuple(part.streams), part.sizes)
        for part in _parts(batch)
    ]
    return facts + [(t.shape, t.stride(), t.dtype, t.device) for t in _tensors(batch)]


def _parts(batch: Batch) -> Iterator[Batch]:
    """Yield a batch and those of its streams."""
    yield batch
    for stream in batch.streams.values():
        yield from _parts(stream)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for part in _parts(batch):
        yield from (*part.views, part.labels, part.index, *part.extra.values())
        if part.partner is not None:
            yield part.partner


def _copied(batch: Batch) -> Batch:
    lam = batch.lam.item() if isinstance(batch.lam, Tensor) else batch.lam
    return replace(
        batch,
        views=tuple(view.clone() for view in batch.views),
        labels=batch.labels.clone(),
        index=batch.index.clone(),
        partner=None if batch.partner is None else batch.partner.clone(),
        lam=torch.full((), lam, dtype=torch.float64, device=batch.labels.device),
        streams={name: _copied(stream) for name, stream in batch.streams.items()},
        extra={name: values.clone() for name, values in batch.extra.items()},
    )

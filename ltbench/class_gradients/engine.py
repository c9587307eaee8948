"""Class gradients of one batch: their Gram matrix, exactly or fast, and any mixture of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ltbench import dist
from ltbench.backbones.batchnorm import frozen_statistics
from ltbench.class_gradients.layers import Backward, ClassRows, rule_of
from ltbench.class_gradients.recorder import Call, Recorder

make_dual: Any = forward_ad.make_dual  # untyped in torch
unpack_dual: Any = forward_ad.unpack_dual

LOG = logging.getLogger(__name__)
COLUMNS = 64  # of a weight that `fast` looks at: more change the direction by less than 0.1 %
HELD = 256 * 2**20  # bytes of class gradients that are held at once

Loss = tuple[Tensor, Tensor | None]  # rows [N], and a scalar that belongs to no row


@dataclass
class Pass:
    """The loss rows of one micro-batch on this rank, and the objective that each belongs to.

    Objective k's gradient is ``sum_{i: place_i = k} weight_i grad(rows_i)`` over all passes and
    ranks.

    Args:
        forward: returns the rows [N], and what belongs to no row, with their graph; it may be
            called several times and returns the same each time.
        place: objective of each row [N], in [0, K]; K is none.
        weight: weight of each row [N].
        rest: weight of each row in the ordinary loss [N]; rows without objective enter mixtures
            with it.
        share: weight of the scalar.
        loss: what ``forward`` returned, where it has been called already.
    """

    forward: Callable[[], Loss]
    place: Tensor
    weight: Tensor
    rest: Tensor
    share: float = 1.0
    loss: Loss | None = None

    def mixture(self, v: Tensor) -> Tensor:
        """Return the weight of each row in a mixture ``v`` [K] of objectives and what is left."""
        return torch.where(self.place < len(v), self.objectives(v), self.rest)

    def objectives(self, v: Tensor) -> Tensor:
        """Return the weight of each row in a mixture ``v`` [K] of objectives alone."""
        inside = self.weight * v.to(self.weight)[self.place.clamp(max=len(v) - 1)]
        return torch.where(self.place < len(v), inside, 0.0)


@dataclass
class Gram:
    """What a fast look at the class gradients tells about their inner products.

    Args:
        products: inner products of the approximate gradients [K, K], in float64.
        with_sum: inner product of each with the exact sum of all [K], in float64.
        square: squared length of that sum, in float64.
    """

    products: Tensor
    with_sum: Tensor
    square: Tensor


class Engine:
    """Finds inner products and mixtures of the class gradients of a part of a network.

    ``exact`` runs one backward pass per objective. ``survey`` runs one in all, in which batch
    normalisation takes its statistics as constants, so that samples are independent; a layer's
    own normalisation is then put right, and only some columns of each weight are looked at. What
    is left out is how samples reach each other through the statistics of later layers.

    Args:
        model: the network, or a module that holds it.
        part: parameters to differentiate, P numbers in all.
        columns: of each weight that ``survey`` looks at; ``None`` is all.
    """

    def __init__(
        self, model: nn.Module, part: Iterable[nn.Parameter], columns: int | None = COLUMNS
    ) -> None:
        self.model, self.part, self.columns = model, list(part), columns
        self._recorder = Recorder(model, self.part)
        self._place = {id(p): i for i, p in enumerate(self.part)}
        self.problem: str | None = None  # why `survey` cannot be used; None is not known yet

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, one forward pass runs whose loss goes into a `Pass` for ``survey``."""
        if self.problem:
            yield
        else:
            with self._recorder.recording():
                yield

    def works(self, one: Pass) -> bool:
        """Whether ``survey`` can be used: checked once, for all ranks.

        It cannot where a layer of the part has no rule, or rows and samples are not one to one;
        the log then says so.
        """
        if self.problem is None:
            with self._loaded(one) as loss:
                found = self._unknown() or self._dependent(loss[0])
            flag = torch.tensor(float(bool(found)), device=self.part[0].device)
            if dist.sum_(flag) > 0:
                found = found or "another rank has a reason"
                LOG.warning("class gradients by one backward pass per class: %s", found)
            self.problem = found
        return not self.problem

    def survey(
        self,
        passes: Sequence[Pass],
        size: int,
        weights: Callable[[Pass], Tensor],
        parameters: list[nn.Parameter],
    ) -> tuple[list[Tensor], list[ClassRows]]:
        """Return an exact gradient and approximate class gradients, from one forward pass each.

        Args:
            passes: the micro-batches of this rank.
            size: objectives K; rows of none make one more.
            weights: of each row of a pass, in the exact gradient.
            parameters: of the exact gradient.

        Returns:
            The gradient over all ranks; the class gradients, of this rank alone.
        """
        total: list[Tensor] = []
        sampled: list[ClassRows] = []
        for one in passes:
            with self._loaded(one) as loss:
                if parameters:
                    found = _gradients(loss, parameters, weights(one), one.share)
                    total = list(torch._foreach_add(total, found)) if total else found
                rows = self._sample(one, loss[0], size)
            if sampled:
                torch._foreach_add_([r.rows for r in sampled], [r.rows for r in rows])
            sampled = sampled or rows
        dist.sum_gradients(total)
        return total, sampled

    def _sample(self, one: Pass, rows: Tensor, size: int) -> list[ClassRows]:
        gradients = self._independent(rows, one.mixture(one.weight.new_ones(size)))
        backward = Backward(gradients, one.place, size + 1, self._limit(size + 1))
        found: dict[int, ClassRows] = {}
        for call in gradients:
            rule = rule_of(call.module) if call.module in self._recorder.owners else None
            for new in rule(call, backward) if rule else ():
                i = self._place.get(id(new.parameter))
                if i in found:
                    found[i].rows += new.rows
                elif i is not None:
                    found[i] = new
        return [found[i] for i in sorted(found)]

    @contextmanager
    def _loaded(self, one: Pass) -> Iterator[Loss]:
        """Inside, a pass has been recorded; a graph made for this is dropped afterwards."""
        if one.loss is not None:
            yield one.loss
        else:
            with self.recording():
                loss = one.forward()
            yield loss

    def gram(self, sampled: Sequence[ClassRows], total: Sequence[Tensor]) -> Gram:
        """Return inner products of sampled class gradients, over ranks.

        Args:
            sampled: from ``survey``, summed over ranks here, in place.
            total: exact gradient of the sum of all objectives, by parameter of the part.
        """
        dist.sum_gradients([r.rows for r in sampled])
        size = len(sampled[0].rows)
        products = total[0].new_zeros((size, size), dtype=torch.float64)
        with_sum = torch.zeros_like(products[0])
        for r in sampled:
            along = r.pick(total[self._place[id(r.parameter)]]).to(r.rows.dtype)
            products += r.scale * (r.rows @ r.rows.T)
            with_sum += r.scale * (r.rows @ along)
        return Gram(products, with_sum, squared_length(total))

    def exact(self, passes: Sequence[Pass], size: int) -> Tensor:
        """Return inner products [K, K] from one backward pass per objective, in float64.

        At most ``HELD`` bytes of class gradients are held; a larger part is done in pieces, with
        as many times the passes.
        """
        gram = self.part[0].new_zeros((size, size), dtype=torch.float64)
        alone = dist.world() == 1
        for group in self._groups(size):
            table = [p.new_zeros((size, *p.shape)) for p in group]
            for one in passes:
                loss = one.forward() if one.loss is None else one.loss
                # Ranks go through the same list: synchronised statistics meet in each pass.
                here = torch.unique(one.place).tolist() if alone else range(size)
                for k in here:
                    if k < size:
                        chosen = torch.where(one.place == k, one.weight, 0.0)
                        found = _gradients(loss, group, chosen, None)
                        torch._foreach_add_([t[k] for t in table], found)
            dist.sum_gradients(table)
            for t in table:
                for block in torch.split(t.flatten(1), 2**16, dim=1):
                    double = block.double()
                    gram += double @ double.T
        return gram

    def gradient(
        self,
        passes: Sequence[Pass],
        weights: Callable[[Pass], Tensor],
        parameters: list[nn.Parameter] | None = None,
        *,
        scalar: bool = True,
    ) -> list[Tensor]:
        """Return the exact gradient of weighted rows over all passes and ranks.

        Args:
            passes: the micro-batches of this rank.
            weights: returns the weight of each row of a pass.
            parameters: with respect to which; by default the part.
            scalar: whether what belongs to no row is added.
        """
        wanted = self.part if parameters is None else parameters
        out: list[Tensor] = []
        for one in passes:
            share = one.share if scalar else None
            loss = one.forward() if one.loss is None else one.loss
            found = _gradients(loss, wanted, weights(one), share)
            out = list(torch._foreach_add(out, found)) if out else found
        dist.sum_gradients(out)
        return out

    def slopes(self, passes: Sequence[Pass], size: int, direction: Sequence[Tensor]) -> Tensor:
        """Return ``g_k . direction`` [K] exactly and in float64, from one forward-mode pass."""
        out = self.part[0].new_zeros(size + 1, dtype=torch.float64)
        tangents = {id(p): d for p, d in zip(self.part, direction, strict=True)}
        owners = [
            (module._parameters, name, p)
            for module in self._recorder.owners
            for name, p in module._parameters.items()
            if p is not None and id(p) in tangents
        ]
        for one in passes:
            with torch.no_grad(), forward_ad.dual_level(), frozen_statistics(self.model):
                try:
                    for home, name, p in owners:
                        home[name] = make_dual(p.detach(), tangents[id(p)].to(p.dtype))
                    tangent = unpack_dual(one.forward()[0]).tangent
                finally:
                    for home, name, p in owners:
                        home[name] = p
                if tangent is not None:
                    out.index_add_(0, one.place, (tangent * one.weight).double())
        return dist.sum_(out)[:size]

    def _limit(self, size: int) -> int | None:
        """Return how many columns of a weight there is room for."""
        limit = self.columns
        while limit is not None and limit > 1:
            entries = sum(
                p.numel() if p.dim() < 2 else min(p.numel(), len(p) * limit) for p in self.part
            )
            if size * entries * self.part[0].element_size() <= HELD:
                break
            limit //= 2
        return limit

    def _unknown(self) -> str:
        for module, name in self._recorder.owners.items():
            if rule_of(module) is None:
                return f"no rule for {name} ({type(module).__name__})"
        return self._recorder.problem

    def _dependent(self, rows: Tensor) -> str:
        """Return why rows and samples are not one to one: half of the rows must reach half."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        half = torch.zeros_like(rows).index_fill_(0, order[: len(rows) // 2].to(rows.device), 1.0)
        for call, z in self._independent(rows, half).items():
            if len(z) != len(rows) or len(call.x) != len(rows):
                return f"{call.name} sees {len(call.x)} samples, the loss has {len(rows)} rows"
            if z[half == 0].any():
                return f"rows of the loss depend on each other's samples at {call.name}"
        return ""

    def _independent(self, rows: Tensor, weights: Tensor) -> dict[Call, Tensor]:
        """Differentiate with batch statistics as constants, by what left each recorded layer."""
        seen = self._recorder.calls
        own = [i for i, call in enumerate(seen) if call.module in self._recorder.owners]
        calls = seen[own[0] :] if own else []  # what ran before the part does not matter
        with self._recorder.constant_statistics():
            found = torch.autograd.grad(
                rows, [c.output for c in calls], weights, retain_graph=True, allow_unused=True
            )
        return {
            c: z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
            for c, z in zip(calls, found, strict=True)
            if z is not None
        }

    def _groups(self, size: int) -> list[list[nn.Parameter]]:
        """Cut the part into runs of parameters whose class gradients fit."""
        groups: list[list[nn.Parameter]] = [[]]
        room = HELD
        for p in self.part:
            if groups[-1] and room < size * p.nbytes:
                groups.append([])
                room = HELD
            groups[-1].append(p)
            room -= size * p.nbytes
        return groups


def squared_length(gradient: Sequence[Tensor]) -> Tensor:
    """Return the squared Euclidean length of a gradient, summed over parameters in float64."""
    norms = torch._foreach_norm(list(gradient))
    return torch.stack(list(norms)).double().square().sum()


def _gradients(
    loss: Loss, wanted: list[nn.Parameter], weights: Tensor, share: float | None
) -> list[Tensor]:
    values, cotangents = [loss[0]], [weights.to(loss[0].dtype)]
    if share is not None and loss[1] is not None:
        values.append(loss[1])
        cotangents.append(torch.full_like(loss[1], share))
    found = torch.autograd.grad(values, wanted, cotangents, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]

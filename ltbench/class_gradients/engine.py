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
from ltbench.class_gradients.layers import Backward, ClassRows, no_rows, rule_of
from ltbench.class_gradients.recorder import Call, Recorder
from ltbench.gradients import Gradient, added, held

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
        self._told = ""

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
                found = self._recorder.problem or self._unknown() or self._dependent(loss[0])
            flag = torch.tensor(float(bool(found)), device=self.part[0].device)
            if dist.sum_(flag) > 0:
                found = found or "another rank has a reason"
                if found != self._told:
                    LOG.warning("class gradients by one backward pass per class: %s", found)
                self._told = found
            self.problem = found
        return not self.problem

    def check_again(self) -> None:
        """Forget whether ``survey`` can be used: the loss may have changed."""
        self.problem = None

    def survey(
        self,
        passes: Sequence[Pass],
        size: int,
        parameters: list[nn.Parameter],
        *,
        together: bool,
    ) -> tuple[dist.GradientSum, Tensor]:
        """Return an ordinary gradient and how objectives agree, from one forward pass each.

        Args:
            passes: the micro-batches of this rank.
            size: objectives K; rows of none make one more.
            parameters: of the ordinary gradient.
            together: whether the objectives add up to the ordinary loss, in every row's weight.

        Returns:
            The ordinary gradient, its sum over ranks still under way; and inner products
            [K + 2, K + 2] in float64 of the approximate gradients of K objectives and of the rows
            of none, and of the exact gradient of their sum.
        """
        ordinary: Gradient = [None] * len(parameters)
        sampled: dict[int, ClassRows] = {}
        for one in passes:
            own, found = self.sampled(one, size, parameters, together=together)
            ordinary = added(ordinary, own)
            new = {self._place[id(r.parameter)]: r for r in found}
            both = [i for i in new if i in sampled]
            if both:
                torch._foreach_add_([sampled[i].rows for i in both], [new[i].rows for i in both])
            sampled = new | sampled
        summing = dist.GradientSum(ordinary, parameters)
        rows = self._on_all_ranks(sampled, size + 2)
        dist.sum_each(r.rows for r in rows)
        products = self.part[0].new_zeros((size + 2, size + 2), dtype=torch.float64)
        for r in rows:
            products += r.scale * (r.rows @ r.rows.T)
        return summing, products

    def _on_all_ranks(self, sampled: dict[int, ClassRows], size: int) -> list[ClassRows]:
        """Return gradients in the order of the part; of all of it, where other ranks have some."""
        if dist.world() == 1:
            return [sampled[i] for i in sorted(sampled)]
        owners = {id(p): m for m in self._recorder.owners for p in m._parameters.values()}
        limit = self._limit(size)
        return [
            sampled[i] if i in sampled else no_rows(owners[id(p)], p, limit, size)
            for i, p in enumerate(self.part)
        ]

    def sampled(
        self, one: Pass, size: int, parameters: list[nn.Parameter], *, together: bool
    ) -> tuple[Gradient, list[ClassRows]]:
        """Return what ``survey`` makes of one pass on this rank: the gradients themselves.

        Returns:
            The ordinary gradient; and for each parameter of the part, in the columns looked at,
            gradients of K objectives, of the rows of none and of the exact sum [K + 2, n].
        """
        with self._loaded(one) as loss:
            mixed = one.mixture(one.weight.new_ones(size))
            outputs = [call.output for call in self._calls()]
            wanted = [*parameters, *(outputs if together else ())]
            found = _gradients(loss, wanted, one.rest, one.share)
            own = found[: len(parameters)]
            whole = found[len(parameters) :] if together else _gradients(loss, outputs, mixed)
            with self._recorder.constant_statistics():
                alone = _gradients(loss, outputs, mixed)
            return own, self._rows(alone, whole, one.place, size + 1)

    @contextmanager
    def _loaded(self, one: Pass) -> Iterator[Loss]:
        """Inside, a pass has been recorded; a graph made for this is dropped afterwards."""
        if one.loss is not None:
            yield one.loss
        else:
            with self.recording():
                loss = one.forward()
            yield loss

    def forget(self) -> None:
        """Drop the recorded pass, which keeps the graph and the features of its layers alive."""
        self._recorder.calls = []

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
                        found = _gradients(loss, group, chosen)
                        reached = [t[k] for t, g in zip(table, found, strict=True) if g is not None]
                        if reached:
                            torch._foreach_add_(reached, held(found))
            dist.sum_each(table)
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
    ) -> Gradient:
        """Return the exact gradient of weighted rows over all passes and ranks.

        It has ``None`` for a parameter that no pass of any rank reaches.

        Args:
            passes: the micro-batches of this rank.
            weights: returns the weight of each row of a pass.
            parameters: with respect to which; by default the part.
            scalar: whether what belongs to no row is added.
        """
        wanted = self.part if parameters is None else parameters
        out: Gradient = [None] * len(wanted)
        for one in passes:
            share = one.share if scalar else None
            loss = one.forward() if one.loss is None else one.loss
            out = added(out, _gradients(loss, wanted, weights(one), share))
        return dist.GradientSum(out, wanted).wait()

    def slopes(
        self, passes: Sequence[Pass], size: int, direction: Sequence[Tensor | None]
    ) -> Tensor:
        """Return ``g_k . direction`` [K] exactly and in float64, from one forward-mode pass."""
        out = self.part[0].new_zeros(size + 1, dtype=torch.float64)
        pairs = zip(self.part, direction, strict=True)
        tangents = {id(p): d for p, d in pairs if d is not None}
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
        held = size * self.part[0].element_size()
        while limit is not None and limit > 1 and held * self._entries(limit) > HELD:
            limit //= 2
        return limit

    def entries(self, size: int) -> int:
        """Return how many numbers of each class gradient ``survey`` looks at, of ``size`` rows."""
        return self._entries(self._limit(size))

    def _entries(self, limit: int | None) -> int:
        columns = [
            p.numel() if p.dim() < 2 or limit is None else len(p) * min(p.shape[1], limit)
            for p in self.part
        ]
        return sum(columns)

    def _unknown(self) -> str:
        for module, name in self._recorder.owners.items():
            if rule_of(module) is None:
                return f"no rule for {name} ({type(module).__name__})"
        return ""

    def _dependent(self, rows: Tensor) -> str:
        """Return why rows and samples are not one to one: half of the rows must reach half."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        half = torch.zeros_like(rows).index_fill_(0, order[: len(rows) // 2].to(rows.device), 1.0)
        with self._recorder.constant_statistics():
            found = _gradients((rows, None), [call.output for call in self._calls()], half)
        for call, z in self._by_call(found).items():
            if len(z) != len(rows) or len(call.x) != len(rows):
                return f"{call.name} sees {len(call.x)} samples, the loss has {len(rows)} rows"
            if z[half == 0].any():
                return f"rows of the loss depend on each other's samples at {call.name}"
        return ""

    @torch.no_grad()
    def _rows(
        self,
        alone: Sequence[Tensor | None],
        whole: Sequence[Tensor | None],
        place: Tensor,
        size: int,
    ) -> list[ClassRows]:
        """Return approximate gradients of each objective, and in a last row the exact sum.

        Args:
            alone: gradient of what left each call, with batch statistics as constants.
            whole: the same from an ordinary backward pass.
            place: objective of each sample [B].
            size: objectives.
        """
        limit = self._limit(size + 1)
        by_class = Backward(self._by_call(alone), limit, place, size)
        ordinary = Backward(self._by_call(whole), limit)
        found: dict[int, ClassRows] = {}
        for call in by_class.gradients:
            rule = rule_of(call.module) if call.module in self._recorder.owners else None
            if rule is None:
                continue
            for new, total in zip(rule(call, by_class), rule(call, ordinary), strict=True):
                i = self._place.get(id(new.parameter))
                new.rows = torch.cat([new.rows, total.rows])
                if i in found:
                    found[i].rows += new.rows
                elif i is not None:
                    found[i] = new
        return [found[i] for i in sorted(found)]

    def _calls(self) -> list[Call]:
        """Return the recorded calls, from the first that belongs to the part."""
        seen = self._recorder.calls
        own = [i for i, call in enumerate(seen) if call.module in self._recorder.owners]
        return seen[own[0] :] if own else []

    def _by_call(self, gradients: Sequence[Tensor | None]) -> dict[Call, Tensor]:
        return {
            call: z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
            for call, z in zip(self._calls(), gradients, strict=True)
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


def _gradients(
    loss: Loss, wanted: Sequence[Any], weights: Tensor, share: float | None = None
) -> list[Tensor | None]:
    """Return the gradient of weighted rows, and of a share of the scalar; the graph stays."""
    if not wanted:
        return []
    values, cotangents = [loss[0]], [weights.to(loss[0].dtype)]
    if share is not None and loss[1] is not None:
        values.append(loss[1])
        cotangents.append(torch.full_like(loss[1], share))
    return list(
        torch.autograd.grad(values, wanted, cotangents, retain_graph=True, allow_unused=True)
    )

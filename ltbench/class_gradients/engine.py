"""Class gradients of one batch: Gram matrix (exact or fast) and gradients of mixtures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ltbench.class_gradients.layers import Backward, ClassRows, alike, rule_of, zero_rows
from ltbench.class_gradients.layout import Layout
from ltbench.class_gradients.recorder import Call, Recorder, measure_together
from ltbench.distributed import ranks
from ltbench.gradients import Gradient, added, held
from ltbench.models.batchnorm import frozen_statistics

make_dual: Any = forward_ad.make_dual  # untyped in torch
unpack_dual: Any = forward_ad.unpack_dual

LOG = logging.getLogger(__name__)
COLUMNS = 64  # sampled per weight by `fast`: more change the direction by less than 0.1 %
HELD = 256 * 2**20  # bytes of class gradients in memory at once
SMALL = 4 * 2**20  # bytes of inputs and outputs up to which alike layers are computed together

Loss = tuple[Tensor, Tensor | None]  # rows [N], and a scalar that belongs to no row


@dataclass
class Pass:
    """Loss rows of one micro-batch on this rank, and the objective of each.

    Objective k's gradient is ``sum_{i: place_i = k} weight_i grad(rows_i)`` over all passes and
    ranks.

    Args:
        forward: returns the rows [N] and the scalar that belongs to no row, with their graph; may
            be called several times and must return the same each time.
        place: objective of each row [N], in [0, K]; K is none.
        weight: weight of each row [N] in its objective.
        rest: weight of each row [N] in the ordinary loss; that of rows without objective in
            mixtures.
        share: weight of the scalar.
        loss: result of ``forward``, if it has been called already.
        images: number of images of which each has rows of its own, if several: row i belongs to
            image i modulo ``images``.
    """

    forward: Callable[[], Loss]
    place: Tensor
    weight: Tensor
    rest: Tensor
    share: float = 1.0
    loss: Loss | None = None
    images: int | None = None

    def mixture(self, v: Tensor) -> Tensor:
        """Return the weight of each row in a mixture ``v`` [K] of objectives and all other rows."""
        return torch.where(self.place < len(v), self._weighted(v), self.rest)

    def objectives(self, v: Tensor) -> Tensor:
        """Return the weight of each row in a mixture ``v`` [K] of objectives only."""
        return torch.where(self.place < len(v), self._weighted(v), 0.0)

    def everything(self, size: int) -> Tensor:
        """Return the weight of each row in the sum of all K objectives and all other rows."""
        return torch.where(self.place < size, self.weight, self.rest)

    def _weighted(self, v: Tensor) -> Tensor:
        return self.weight * v.to(self.weight)[self.place.clamp(max=len(v) - 1)]


class Engine:
    """Computes inner products and mixtures of class gradients with respect to part of a network.

    ``exact`` runs one backward pass per objective. ``fast`` runs a single one, with the statistics
    of batch normalisation as constants, so that samples are independent; the effect of the
    normalisation directly after a layer is then added back, and only a sample of the columns of
    each weight is used. It neglects how samples affect each other through the statistics of later
    layers. An image may have several rows, and several samples in a layer: views, one batch after
    another, or consecutive windows.

    Args:
        model: the network, or a module that contains it.
        part: parameters to differentiate with respect to.
        columns: number of columns of each weight sampled by ``fast``; ``None`` is all.
    """

    def __init__(
        self, model: nn.Module, part: Iterable[nn.Parameter], columns: int | None = COLUMNS
    ) -> None:
        self.model, self.part, self.columns = model, list(part), columns
        self._recorder = Recorder(model, self.part)
        self._place = {id(p): i for i, p in enumerate(self.part)}
        self.problem: str | None = None  # why `fast` is not supported; None is not yet checked
        self._layout = Layout()  # of rows and samples by image
        self._warned = ""
        self.grouped = self.part[0].device.type != "cpu" if self.part else False  # alike layers

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass inside, whose loss then goes into a `Pass` for ``fast``."""
        if self.problem:
            yield
        else:
            with self._recorder.recording():
                yield

    def supports_fast(self, one: Pass) -> bool:
        """Return True if ``fast`` is supported; checked once, for all ranks.

        It is not if a layer of the part has no rule, or if loss rows of an image depend on other
        images; the reason is logged.
        """
        if self.problem is None:
            with self._recorded(one) as loss:
                found = self._recorder.problem or self._unknown() or self._unseen(loss)
                alone = partial(self._alone, (loss[0], None))
                layout = Layout(found) if found else Layout.of(one.place, one.images, alone)
            self._layout = layout.agreed(one.place)
            found = self._layout.problem
            if found and found != self._warned:
                LOG.warning("fast class gradients not supported, using exact ones: %s", found)
            self._warned = found or self._warned
            self.problem = found
        return not self.problem

    def reset(self) -> None:
        """Check anew whether ``fast`` is supported, after the loss may have changed."""
        self.problem = None

    def fast(
        self,
        passes: Sequence[Pass],
        size: int,
        parameters: list[nn.Parameter],
        *,
        additive: bool,
    ) -> tuple[ranks.GradientSum, Tensor]:
        """Return an ordinary gradient and approximate inner products of class gradients.

        Each micro-batch takes one forward pass.

        Args:
            passes: the micro-batches of this rank.
            size: number of objectives K; the rows of none make one more.
            parameters: of the ordinary gradient.
            additive: whether the objectives add up to the ordinary loss, in every row's weight.

        Returns:
            The ordinary gradient, its sum over ranks still pending; and inner products
            [K + 2, K + 2] in float64 of the approximate gradients of K objectives and of the rows
            of none, and of the exact gradient of their sum.
        """
        ordinary: Gradient = [None] * len(parameters)
        sampled: dict[int, ClassRows] = {}
        for one in passes:
            own, found = self.sampled(one, size, parameters, additive=additive)
            ordinary = added(ordinary, own)
            new = {self._place[id(r.parameter)]: r for r in found}
            both = [i for i in new if i in sampled]
            if both:
                torch._foreach_add_([sampled[i].rows for i in both], [new[i].rows for i in both])
            sampled = new | sampled
        summing = ranks.GradientSum(ordinary, parameters)
        rows = self._on_all_ranks(sampled, size + 2)
        ranks.all_reduce_each_(r.rows for r in rows)
        products = self.part[0].new_zeros((size + 2, size + 2), dtype=torch.float64)
        wide: dict[Any, list[ClassRows]] = {}
        for i, r in enumerate(rows):
            wide.setdefault(r.scale if self.grouped else i, []).append(r)
        for alike_rows in wide.values():
            table = joined([r.rows for r in alike_rows])
            products += alike_rows[0].scale * (table @ table.T)
        return summing, products

    def _on_all_ranks(self, sampled: dict[int, ClassRows], size: int) -> list[ClassRows]:
        """Return gradients in the order of the part; with several ranks, zeros for missing ones."""
        if ranks.world() == 1:
            return [sampled[i] for i in sorted(sampled)]
        owners = {id(p): m for m in self._recorder.owners for p in m._parameters.values()}
        limit = self._limit(size)
        return [
            sampled[i] if i in sampled else zero_rows(owners[id(p)], p, limit, size)
            for i, p in enumerate(self.part)
        ]

    def sampled(
        self, one: Pass, size: int, parameters: list[nn.Parameter], *, additive: bool
    ) -> tuple[Gradient, list[ClassRows]]:
        """Return the gradients that ``fast`` computes for one pass on this rank.

        Returns:
            The ordinary gradient; and for each parameter of the part, in the sampled columns,
            gradients of K objectives, of the rows of none and of the exact sum [K + 2, n].
        """
        with self._recorded(one) as loss:
            mixed = one.everything(size)
            outputs = [call.output for call in self._calls()]
            wanted = [*parameters, *(outputs if additive else ())]
            found = _gradients(loss, wanted, one.rest, one.share)
            own = found[: len(parameters)]
            whole = found[len(parameters) :] if additive else _gradients(loss, outputs, mixed)
            if self.grouped:
                measure_together(c for c in self._calls() if c.x.nbytes <= SMALL)
            parts = [
                (self._alone((loss[0], None), weight), place)
                for place, weight in self._layout.split(one.place, mixed)
            ]
            return own, self._rows(parts, self._by_call(whole), size + 1)

    @contextmanager
    def _recorded(self, one: Pass) -> Iterator[Loss]:
        """Yield the loss of a recorded pass; if run for this, drop its graph on exit."""
        if one.loss is not None:
            yield one.loss
        else:
            with self.recording():
                loss = one.forward()
            yield loss

    def release(self) -> None:
        """Release the recorded pass, with its graph and features."""
        self._recorder.calls = []

    def exact(
        self, passes: Sequence[Pass], size: int, present: Sequence[int] | None = None
    ) -> Tensor:
        """Return inner products [K, K] from one backward pass per objective, in float64.

        At most ``HELD`` bytes of class gradients are in memory at once; a larger part is processed
        in pieces, each with its own passes.

        Args:
            passes: the micro-batches of this rank.
            size: number of objectives K.
            present: objectives with rows on any rank, if they are known.
        """
        gram = self.part[0].new_zeros((size, size), dtype=torch.float64)
        alone = ranks.world() == 1
        for group in self._groups(size):
            # Each row has the layout of its parameter, which adding to all of them at once needs.
            shapes = [((size, *p.shape), (p.numel(), *p.stride())) for p in group]
            table = [p.new_empty_strided(*s).zero_() for p, s in zip(group, shapes, strict=True)]
            for one in passes:
                loss = one.forward() if one.loss is None else one.loss
                # Ranks loop over the same classes, since synchronised statistics communicate.
                if alone and (present is None or len(passes) > 1):
                    here = torch.unique(one.place).tolist()
                else:
                    here = range(size) if present is None else present
                for k in here:
                    if k < size:
                        chosen = torch.where(one.place == k, one.weight, 0.0)
                        found = _gradients(loss, group, chosen)
                        reached = [t[k] for t, g in zip(table, found, strict=True) if g is not None]
                        if reached:
                            torch._foreach_add_(reached, held(found))
            ranks.all_reduce_each_(table)
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

        It is ``None`` for a parameter on which no pass of any rank depends.

        Args:
            passes: the micro-batches of this rank.
            weights: returns the weight of each row of a pass.
            parameters: to differentiate with respect to; by default the part.
            scalar: whether to add the scalar that belongs to no row.
        """
        wanted = self.part if parameters is None else parameters
        out: Gradient = [None] * len(wanted)
        for one in passes:
            share = one.share if scalar else None
            loss = one.forward() if one.loss is None else one.loss
            out = added(out, _gradients(loss, wanted, weights(one), share))
        return ranks.GradientSum(out, wanted).wait()

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
        return ranks.all_reduce_(out)[:size]

    def _limit(self, size: int) -> int | None:
        """Return the number of sampled columns per weight that fits in ``HELD`` bytes."""
        limit = self.columns
        held = size * self.part[0].element_size()
        while limit is not None and limit > 1 and held * self._entries(limit) > HELD:
            limit //= 2
        return limit

    def entries(self, size: int) -> int:
        """Return the number of entries that ``fast`` uses of each of ``size`` class gradients."""
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

    def _unseen(self, loss: Loss) -> str:
        """Return why a use of the part is not recorded, or an empty string."""
        seen = {id(p) for call in self._calls() for p in call.module._parameters.values()}
        rest = [p for p in self.part if id(p) not in seen]
        if not (rest and loss[0].requires_grad):
            return ""
        with self._recorder.constant_statistics():  # whose backward pass takes no exchange
            found = _gradients(loss, rest, torch.ones_like(loss[0]))
        used = {id(p) for p, gradient in zip(rest, found, strict=True) if gradient is not None}
        for module, name in self._recorder.owners.items():
            if any(id(p) in used for p in module._parameters.values()):
                return f"weights of {name} ({type(module).__name__}) are used without calling it"
        return ""

    def _alone(self, loss: Loss, weights: Tensor) -> dict[Call, Tensor]:
        """Return gradients of the calls' outputs, with batch statistics as constants."""
        with self._recorder.constant_statistics():
            outputs = [call.output for call in self._calls()]
            return self._by_call(_gradients(loss, outputs, weights.to(loss[0])))

    @torch.no_grad()
    def _rows(
        self,
        parts: Sequence[tuple[Mapping[Call, Tensor], Tensor]],
        whole: Mapping[Call, Tensor],
        size: int,
    ) -> list[ClassRows]:
        """Return approximate gradients of each objective, with the exact sum as last row.

        Args:
            parts: gradients of the calls' outputs, with batch statistics as constants, and the
                objective of each image [B]; their sum counts.
            whole: the same gradients from an ordinary backward pass.
            size: number of objectives.
        """
        limit = self._limit(size + 1)
        windows = self._layout.windows
        by_class = [Backward(z, limit, place, size, windows) for z, place in parts]
        ordinary = Backward(whole, limit)
        found: dict[int, ClassRows] = {}
        first = by_class[0].gradients
        own = {c: z for c, z in first.items() if c.module in self._recorder.owners}
        for calls in self._together(own):
            rule = rule_of(calls[0].module)
            if rule is None:
                continue
            each = (rule(calls, backward) for backward in (*by_class, ordinary))
            for (name, new, scale), *others, (_, total, _) in zip(*each, strict=True):
                for _, more, _ in others:
                    new += more
                table = torch.cat([new, total])
                for call, rows in zip(calls, table.unbind(1), strict=True):
                    parameter = call.module.get_parameter(name)
                    i = self._place.get(id(parameter))
                    if i in found:
                        found[i].rows += rows
                    elif i is not None:
                        found[i] = ClassRows(parameter, rows, scale)
        return [found[i] for i in sorted(found)]

    def _together(self, gradients: Mapping[Call, Tensor]) -> list[list[Call]]:
        """Split calls into lists of alike ones: of one each on the CPU, as large ones are."""
        groups: dict[Any, list[Call]] = {}
        for call, z in gradients.items():
            small = z.nbytes + call.x.nbytes <= SMALL
            together = self.grouped and small
            key = (alike(call, z), self._layout.windows.get(call.module)) if together else call
            groups.setdefault(key, []).append(call)
        # Those of normalisations first, whose results the layers before them use.
        return sorted(groups.values(), key=lambda calls: calls[0].statistics is None)

    def _calls(self) -> list[Call]:
        """Return the recorded calls from the first one of the part on."""
        seen = self._recorder.calls
        own = [i for i, call in enumerate(seen) if call.module in self._recorder.owners]
        return seen[own[0] :] if own else []

    def _by_call(self, gradients: Sequence[Tensor | None]) -> dict[Call, Tensor]:
        pairs = zip(self._calls(), gradients, strict=True)
        return {call: z for call, z in pairs if z is not None}

    def _groups(self, size: int) -> list[list[nn.Parameter]]:
        """Split the part into runs of parameters whose class gradients fit in ``HELD`` bytes."""
        groups: list[list[nn.Parameter]] = [[]]
        room = HELD
        for p in self.part:
            if groups[-1] and room < size * p.nbytes:
                groups.append([])
                room = HELD
            groups[-1].append(p)
            room -= size * p.nbytes
        return groups


def joined(tables: list[Tensor]) -> Tensor:
    """Return tables side by side; without a copy if there is one."""
    return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)


def _gradients(
    loss: Loss, wanted: Sequence[Any], weights: Tensor, share: float | None = None
) -> list[Tensor | None]:
    """Return the gradient of weighted rows plus a share of the scalar; the graph is retained."""
    if not wanted:
        return []
    values, cotangents = [loss[0]], [weights.to(loss[0].dtype)]
    if share is not None and loss[1] is not None:
        values.append(loss[1])
        cotangents.append(torch.full_like(loss[1], share))
    return list(
        torch.autograd.grad(values, wanted, cotangents, retain_graph=True, allow_unused=True)
    )

"""Class gradients of one batch: their Gram matrix, and any mixture of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ltbench import dist
from ltbench.backbones.batchnorm import frozen_statistics
from ltbench.class_gradients.layers import Backward, full, rule_of
from ltbench.class_gradients.recorder import Call, Recorder
from ltbench.class_gradients.rows import ClassRows, Explicit
from ltbench.class_gradients.segments import Segments

make_dual: Any = forward_ad.make_dual  # untyped in torch
unpack_dual: Any = forward_ad.unpack_dual

LOG = logging.getLogger(__name__)
KEEP = 256 * 2**20  # bytes of class gradients that are held at once, by default

Mode = Literal["exact", "fast"]
Pieces = Iterable[tuple[int, ClassRows]]  # place of a parameter in the part, its class gradients


@dataclass
class Pass:
    """The loss rows of one micro-batch on this rank, and the objective that each belongs to.

    Objective k's gradient is ``sum_{i: place_i = k} weight_i grad(rows_i)`` over all passes and
    ranks.

    Args:
        forward: returns the rows [N] with their graph; may be called several times.
        place: objective of each row [N], in [0, K), or -1 for none.
        weight: weight of each row [N].
        rows: the rows, if ``forward`` has been called under ``Engine.recording`` already.
        rest: weight of each row [N] in what is added to every mixture; ``None`` adds nothing.
    """

    forward: Callable[[], Tensor]
    place: Tensor
    weight: Tensor
    rows: Tensor | None = None
    rest: Tensor | None = None

    def cotangent(self, v: Tensor | None = None) -> Tensor:
        """Return the weight of each row in the sum of objectives, or in a mixture ``v`` [K]."""
        chosen = self.weight if v is None else self.weight * v.to(self.weight)[self.place]
        chosen = torch.where(self.place >= 0, chosen, 0.0)
        return chosen if v is None or self.rest is None else chosen + self.rest


class ClassGradients:
    """The gradients g_k of K objectives with respect to a part of a network.

    Args:
        gram: inner products of the gradients [K, K] in float64.
        pieces: yields the gradients by parameter; approximate ones but for `closure`.
        closure: what the sum of approximate gradients lacks, by parameter, and each objective's
            share of it [K].
        vjp: returns a mixture exactly.
    """

    def __init__(
        self,
        gram: Tensor,
        pieces: Callable[[], Pieces],
        closure: tuple[list[Tensor], Tensor] | None,
        vjp: Callable[[Tensor], list[Tensor]],
    ) -> None:
        self.gram = gram
        self._pieces, self._closure, self._vjp = pieces, closure, vjp

    def combine(self, v: Tensor) -> list[Tensor]:
        """Return ``sum_k v_k g_k``, exact in every mode: one backward pass with weighted rows.

        Args:
            v: [K].

        Returns:
            One tensor per parameter of the part, of the global batch.
        """
        return self._vjp(v)

    def products(self, direction: Sequence[Tensor]) -> Tensor:
        """Return ``g_k . direction`` [K] in float64, with the gradients `gram` was made of.

        Args:
            direction: one tensor per parameter of the part.
        """
        out = torch.zeros_like(self.gram[0])
        for i, rows in self._pieces():
            out += rows.products(direction[i])
        if self._closure is not None:
            missing, share = self._closure
            inner = [(m * d).sum() for m, d in zip(missing, direction, strict=True)]
            out += share * torch.stack(inner).double().sum()
        return out


class Engine:
    """Finds the class gradients of a part of a network.

    ``exact`` runs one backward pass per objective; it is the reference. ``fast`` runs one in all,
    in which batch normalisation takes its statistics as constants, so that samples are
    independent; a layer's own normalisation is then put right, and the sum over objectives is
    made exact (`closure`). What is left out is how samples reach each other through the
    statistics of later layers: without batch normalisation ``fast`` is exact. A network with
    layers it does not know, or whose rows are not one per sample, is done by ``exact``, and the
    log says why.

    On several ranks the gradients are those of the global batch. ``fast`` sums K x P numbers
    over ranks and ``combine`` P: 4 (K + 1) P bytes a step in single precision.

    Args:
        model: the network, or a module that holds it.
        part: parameters to differentiate, P numbers in all.
        mode: ``exact`` or ``fast``.
        closure: whether ``fast`` makes the sum exact, for one more backward pass of the part.
        keep: bytes of class gradients held at once; above it they are formed in pieces.
    """

    def __init__(
        self,
        model: nn.Module,
        part: Iterable[nn.Parameter],
        mode: Mode = "fast",
        *,
        closure: bool = True,
        keep: int = KEEP,
    ) -> None:
        self.model, self.part = model, list(part)
        self.mode, self.closure, self.keep = mode, closure, keep
        self._recorder = Recorder(model, self.part)
        self._place = {id(p): i for i, p in enumerate(self.part)}
        self._verified = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, one forward pass runs whose rows are given to `measure`."""
        if self.mode == "exact":
            yield
        else:
            with self._recorder.recording():
                yield

    def measure(
        self, passes: Sequence[Pass], size: int, total: list[Tensor] | None = None
    ) -> ClassGradients:
        """Return the gradients of ``size`` objectives.

        Args:
            passes: the micro-batches of this rank; with several, none may have its rows yet.
            size: objectives K.
            total: the exact sum of all objectives' gradients over ranks, where it is known.
        """
        if self.mode == "fast" and self._fast_works(passes[0], size):
            return self._fast(passes, size, total)
        return self._exact(passes, size)

    def mixture(self, passes: Sequence[Pass], v: Tensor | None = None) -> list[Tensor]:
        """Return the exact gradient of a mixture ``v`` [K] of objectives, or of their sum."""
        out = [torch.zeros_like(p) for p in self.part]
        for one in passes:
            found = self._backward(self._rows(one), self.part, one.cotangent(v))
            torch._foreach_add_(out, found)
        dist.sum_gradients(out)
        return out

    def slopes(self, passes: Sequence[Pass], size: int, direction: Sequence[Tensor]) -> Tensor:
        """Return ``g_k . direction`` [K] exactly and in float64, from one forward-mode pass."""
        out = self.part[0].new_zeros(size, dtype=torch.float64)
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
                        tangent = tangents[id(p)].to(p.dtype)
                        home[name] = make_dual(p.detach(), tangent)
                    tangent = unpack_dual(one.forward()).tangent
                finally:
                    for home, name, p in owners:
                        home[name] = p
                if tangent is not None:
                    weighted = (tangent * one.cotangent()).double()
                    out.index_add_(0, one.place.clamp(min=0), weighted)
        return dist.sum_(out)

    def _fast_works(self, first: Pass, size: int) -> bool:
        """Whether samples are independent and all layers known, checked in the first step."""
        if not self._verified:
            problem = self._unknown() or self._dependent(first, size)
            flag = torch.tensor(float(bool(problem)), device=self.part[0].device)
            if dist.sum_(flag) > 0:
                reason = problem or "another rank has a reason"
                LOG.warning("class gradients by one backward pass per class: %s", reason)
                self.mode = "exact"
            self._verified = True
        return self.mode == "fast"

    def _unknown(self) -> str:
        for module, name in self._recorder.owners.items():
            if rule_of(module) is None:
                return f"no rule for {name} ({type(module).__name__})"
        return ""

    def _dependent(self, one: Pass, size: int) -> str:
        """Return why rows and samples are not one to one: half of the rows must reach half."""
        rows = self._rows(one)
        if self._recorder.problem:
            return self._recorder.problem
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        half = torch.zeros_like(rows).index_fill_(0, order[: len(rows) // 2].to(rows.device), 1.0)
        outside = half == 0
        for call, z in self._independent_backward(rows, half).items():
            if len(z) != len(rows) or len(call.x) != len(rows):
                return f"{call.name} sees {len(call.x)} samples, the loss has {len(rows)} rows"
            if z[outside].any():
                return f"rows of the loss depend on each other's samples at {call.name}"
        return ""

    def _fast(
        self, passes: Sequence[Pass], size: int, total: list[Tensor] | None
    ) -> ClassGradients:
        if self.closure and total is None:
            total = self.mixture(passes)
        pieces = self._pieces(passes, size)
        gram = self.part[0].new_zeros((size, size), dtype=torch.float64)
        missing = [torch.zeros_like(p) for p in self.part]
        share = torch.zeros_like(gram[0])
        for one in passes:
            share += torch.bincount(one.place[one.place >= 0], minlength=size)
        share = dist.sum_(share)
        share = share / share.sum()
        for i, rows in pieces():
            gram += rows.gram()
            if total is not None:
                missing[i] = total[i] - rows.total()
                common = torch.outer(rows.products(missing[i]), share)
                square = missing[i].double().square().sum()
                gram += common + common.T + square * torch.outer(share, share)
        closure = None if total is None else (missing, share)
        return ClassGradients(gram, pieces, closure, lambda v: self.mixture(passes, v))

    def _pieces(self, passes: Sequence[Pass], size: int) -> Callable[[], Pieces]:
        if len(passes) > 1:
            kept: dict[int, ClassRows] = {}
            for one in passes:
                for i, rows in self._walk(one, size, explicit=True)():
                    kept[i] = _add(kept[i], rows) if i in kept else rows
            return lambda: kept.items()
        walk = self._walk(passes[0], size)
        room = self.keep
        if size * sum(p.nbytes for p in self.part) > room:
            return walk
        held = list(walk())
        return lambda: held

    def _walk(self, one: Pass, size: int, explicit: bool = False) -> Callable[[], Pieces]:
        """Return what goes through the recorded layers and yields their class gradients."""
        rows = self._rows(one)
        gradients = self._independent_backward(rows, one.cotangent())
        backward = Backward(gradients, Segments(one.place, size))
        by_module: dict[nn.Module, list[Call]] = {}
        for call in gradients:
            if call.module in self._recorder.owners:
                by_module.setdefault(call.module, []).append(call)

        def walk() -> Iterator[tuple[int, ClassRows]]:
            for module, calls in by_module.items():
                rule, found = rule_of(module), dict[int, ClassRows]()
                assert rule is not None
                for call in calls:
                    for p, new in rule(call, backward, explicit or len(calls) > 1):
                        i = self._place.get(id(p))
                        if i is not None:
                            found[i] = _add(found[i], new) if i in found else new
                yield from found.items()

        return walk

    def _independent_backward(self, rows: Tensor, cotangent: Tensor) -> dict[Call, Tensor]:
        calls = list(self._recorder.calls)
        with self._recorder.constant_statistics():
            found = torch.autograd.grad(
                rows, [c.output for c in calls], cotangent, retain_graph=True, allow_unused=True
            )
        return {c: full(z) for c, z in zip(calls, found, strict=True) if z is not None}

    def _exact(self, passes: Sequence[Pass], size: int) -> ClassGradients:
        groups = self._groups(size)

        def pieces() -> Iterator[tuple[int, ClassRows]]:
            for group in groups:
                table = [self.part[i].new_zeros((size, *self.part[i].shape)) for i in group]
                for one in passes:
                    rows = self._rows(one)
                    for k in torch.unique(one.place[one.place >= 0]).tolist():
                        chosen = torch.where(one.place == k, one.weight, 0.0)
                        found = self._backward(rows, [self.part[i] for i in group], chosen)
                        torch._foreach_add_([t[k] for t in table], found)
                dist.sum_gradients(table)
                yield from ((i, Explicit(t)) for i, t in zip(group, table, strict=True))

        gram = self.part[0].new_zeros((size, size), dtype=torch.float64)
        kept: list[tuple[int, ClassRows]] = []
        for i, found in pieces():
            gram += found.gram()
            if len(groups) == 1:
                kept.append((i, found))
        again = pieces if len(groups) > 1 else lambda: kept
        return ClassGradients(gram, again, None, lambda v: self.mixture(passes, v))

    def _groups(self, size: int) -> list[list[int]]:
        """Cut the part into runs of parameters whose class gradients fit."""
        groups: list[list[int]] = [[]]
        room = self.keep
        for i, p in enumerate(self.part):
            if groups[-1] and room < size * p.nbytes:
                groups.append([])
                room = self.keep
            groups[-1].append(i)
            room -= size * p.nbytes
        return groups

    def _rows(self, one: Pass) -> Tensor:
        if one.rows is not None:
            return one.rows
        with self.recording():
            return one.forward()

    @staticmethod
    def _backward(rows: Tensor, wanted: list[nn.Parameter], cotangent: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(rows, wanted, cotangent, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


def _add(a: ClassRows, b: ClassRows) -> Explicit:
    assert isinstance(a, Explicit)
    assert isinstance(b, Explicit)
    return Explicit(a.rows + b.rows)

"""One step of each method and update: a GPU's numbers beside the CPU's, and waits of the host."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import toys
from torch import Tensor
from toy_stages import make_update, ready

from gpu_sections.place import Place, Row
from ltbench.errors import UserError
from ltbench.methods.base import Batch

KINDS = ("plain", "sam", "plot-cagrad", "plot-certified", "plot-official")
# Relative, in fp32 without TF32. On the CPU, fp32 is up to 2e-7 and 1e-6 from double precision.
TOLERANCE = {"loss": 1e-5, "gradient": 5e-5}
WAITS = {"plain": 0, "sam": 0, "plot-cagrad": 1}  # allowed in a step; others are not judged
SHAPED_BY_DATA = ("rsg", "m2m")  # how much they generate is read back
METHODS = (*toys.STAGE1, *toys.STAGE2)
SMALL = (("ce", "mixup"), ("plain", "plot-cagrad"))


def numerics(place: Place) -> Iterator[Row]:
    """Compare loss and gradient of one step with the CPU's, in fp32 without TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    methods, kinds = SMALL if place.small else (METHODS, KINDS)
    for name in methods:
        if place.late():
            return
        good, values, losses = True, Row(), [0.0]
        for kind in kinds:
            try:
                loss, gradient = _apart(name, kind, place.device)
            except UserError:
                continue  # a method whose stage has nothing to control
            except Exception as error:  # of this pair only
                good, values[kind] = False, f"{type(error).__name__}: {error}"[:120]
                continue
            good &= loss <= TOLERANCE["loss"] and gradient <= TOLERANCE["gradient"]  # NaN is bad
            losses.append(loss)
            values[kind] = f"{gradient:.0e}"
        values["loss"] = f"{max(losses):.0e}"
        yield {"what": f"gradient of {name}, relative error", "ok": good, **values}
    if place.gpu:
        torch.backends.cudnn.allow_tf32 = True
        gradient = _apart("ce", "plain", place.device)[1]
        yield {
            "what": "gradient of ce with TF32 convolutions",
            "ok": None,
            "plain": f"{gradient:.0e}",
        }


def waits(place: Place) -> Iterator[Row]:
    """Count how often the host waits for the GPU in a step, by torch's own debug mode."""
    if not place.gpu:
        yield {"what": "waits of the host", "ok": None, "left out": "only a GPU has any"}
        return
    for name in METHODS:
        if place.late():
            return
        values: Row = {}
        good, lines = True, Counter[str]()
        for kind in KINDS:
            try:
                found = _waits(name, kind, place.device)
            except UserError:
                continue
            except Exception as error:
                good, values[kind] = False, f"{type(error).__name__}: {error}"[:120]
                continue
            count = sum(found.values())
            values[kind] = count
            if name not in SHAPED_BY_DATA and count > WAITS.get(kind, count):
                good = False
                lines += found
        where = " ".join(f"{line}x{n}" for line, n in lines.most_common(4))
        yield {"what": f"waits, {name}", "ok": good, **values, **({"at": where} if where else {})}


def _apart(name: str, kind: str, device: torch.device) -> tuple[float, float]:
    """Return the relative differences of loss and gradient from the CPU's."""
    loss, gradient = _step(name, kind, torch.device("cpu"))
    theirs, other = _step(name, kind, device)
    apart = float((gradient - other).norm() / gradient.norm().clamp(min=1e-12))
    return abs(theirs - loss) / max(abs(loss), 1e-12), apart


def _step(name: str, kind: str, device: torch.device) -> tuple[float, Tensor]:
    """Return loss and gradient of a first step, in double precision on the CPU."""
    run, update, micro = _ready(name, kind, device)
    log = _stepped(run, update, micro, 0)
    gradient = [p.grad.flatten() for p in run.parameters if p.grad is not None]
    return float(log["loss"]), torch.cat([g.double().cpu() for g in gradient])


def _waits(name: str, kind: str, device: torch.device) -> Counter[str]:
    run, update, micro = _ready(name, kind, device)
    for step in range(2):
        _stepped(run, update, micro, step)
    torch.cuda.synchronize(device)
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as seen, _explicit(found):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _stepped(run, update, micro, 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in seen:
        if "synchronizing" in str(warning.message):
            found[f"{warning.filename.split('ltbench/')[-1]}:{warning.lineno}"] += 1
    return found


@contextmanager
def _explicit(found: Counter[str]) -> Iterator[None]:
    """Count waits for events and streams too, which torch's debug mode does not report."""
    with ExitStack() as stack:
        for owner in (torch.cuda.Event, torch.cuda.Stream):
            call = owner.synchronize

            def counted(*args: Any, call: Any = call, name: str = owner.__name__) -> Any:
                found[f"{name}.synchronize"] += 1
                return call(*args)

            stack.enter_context(patch.object(owner, "synchronize", counted))
        yield


def _ready(name: str, kind: str, device: torch.device) -> tuple[Any, Any, list[Batch]]:
    method, run = ready(name)
    update = make_update(kind, method)
    method.to(device).to(memory_format=torch.channels_last)
    batch = _moved(toys.dressed(toys.batch(), method), device)
    return run, update, [batch]


def _stepped(run: Any, update: Any, micro: list[Batch], step: int) -> Any:
    """Make what the trainer makes of a step."""
    method, at = run.method, toys.at(step, epoch=1)
    if step == 0:
        method.on_epoch(at)
    torch.manual_seed(step)
    micro = [method.prepare(part, replace(at, micro=i)) for i, part in enumerate(micro)]
    log = update.step(run, micro, at)
    method.after_step(micro, at)
    return log


def _moved(batch: Batch, device: torch.device) -> Batch:
    return replace(
        batch,
        views=tuple(v.to(device, memory_format=torch.channels_last) for v in batch.views),
        labels=batch.labels.to(device),
        index=batch.index.to(device),
        streams={name: _moved(stream, device) for name, stream in batch.streams.items()},
    )

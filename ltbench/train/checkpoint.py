from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.files import flush, reason

FORMAT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True, order=True)
class Position:
    """Position in training: the next step to do."""

    stage: int = 0
    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """Folder name that sorts by progress."""
        return f"s{self.stage}-e{self.epoch:04d}-t{self.step:06d}"


@dataclass
class Snapshot:
    """All that a run needs to go on: tensors and plain numbers, no pickles."""

    position: Position
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Store:
    """The checkpoints of one run: the last two, and one at the end of each stage.

    Args:
        folder: created when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, snapshot: Snapshot, *, keep: bool = False) -> None:
        """Write a checkpoint under a temporary name, then rename it into place.

        Args:
            snapshot: what to write.
            keep: protects it from being replaced by later ones (end of a stage).

        Raises:
            UserError: it could not be written; earlier checkpoints are untouched.
        """
        target = self.folder / (snapshot.position.name + ("-stage" if keep else ""))
        partial = self.folder / f".partial-{target.name}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            # In CPU memory, so that a checkpoint loads on any device.
            tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
            save_file(tensors, partial / TENSORS)
            state = {
                "format": FORMAT,
                "position": asdict(snapshot.position),
                "sha256": file_sha256(partial / TENSORS),
                "facts": snapshot.facts,
            }
            (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
            for path in (partial / TENSORS, partial / STATE, partial):
                flush(path)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(partial)
            raise UserError(
                f"could not write the checkpoint {target}: {reason(error)}; make room or pass "
                "another `out=`, then run the same command: it goes on from the last checkpoint"
            ) from error
        for old in self._all()[:-2]:
            if not old.name.endswith("-stage"):
                shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Snapshot | None:
        """Read the newest checkpoint, after removing what an interrupted write left behind.

        No other process may be writing to the folder meanwhile.

        Raises:
            UserError: it is truncated, edited or not ours.
        """
        for partial in self.folder.glob(".partial-*"):
            shutil.rmtree(partial, ignore_errors=True)
        found = self._all()
        return read_snapshot(found[-1]) if found else None

    def _all(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("s*-e*-t*") if p.is_dir())


class BackgroundWriter:
    """Does one piece of work at a time in a thread, while training goes on.

    What is under way when the process ends, by an error too, is finished first.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, after the one before.

        Raises:
            UserError: that of the work before.
        """
        self.wait()
        self._work = self._pool.submit(work)

    def wait(self) -> None:
        """Wait for what is under way.

        Raises:
            UserError: that of the work.
        """
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """Wait for what is under way and forget whether it failed."""
        self._pool.shutdown()


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in CPU memory that do not follow what becomes of the tensors."""
    return {
        name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }


def read_snapshot(folder: Path) -> Snapshot:
    """Read one checkpoint folder and check it against its own hash.

    Raises:
        UserError: it is truncated, edited or not ours.
    """
    advice = f"delete the folder {folder} to go on from the checkpoint before it"
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(
                f"checkpoint {folder} has format {state['format']}, this version reads {FORMAT}; "
                "continue it with the version that wrote it"
            )
        found = file_sha256(folder / TENSORS)
        if found != state["sha256"]:
            raise UserError(
                f"checkpoint {folder / TENSORS} is damaged: expected SHA-256 "
                f"{state['sha256'][:12]}..., found {found[:12]}...; {advice}"
            )
        return Snapshot(Position(**state["position"]), load_file(folder / TENSORS), state["facts"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {folder} is not readable ({reason(error)}); {advice}"
        ) from error


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain numbers."""
    state = optimizer.state_dict()["state"]
    tensors, numbers = {}, {}
    for index, entry in state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            elif value is not None:
                numbers[f"{index}.{key}"] = value
    return tensors, numbers


def load_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put back what ``optimizer_tensors`` took out."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *numbers.items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix.`` before their names."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix.``, without it."""
    start = prefix + "."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

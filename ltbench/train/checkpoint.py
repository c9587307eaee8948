"""Checkpoints: written under temporary names, kept, and read back with their hashes checked."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.files import create, flush, fresh_folder, mode_of, read_sealed, reason, seal

FORMAT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
NAME = re.compile(r"s(\d+)-e(\d+)-t(\d+)(-stage)?")


@dataclass(frozen=True, order=True)
class Position:
    """Position in training: the next step to do."""

    stage: int = 0
    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"s{self.stage}-e{self.epoch:04d}-t{self.step:06d}"


@dataclass
class Snapshot:
    """All that a run needs to go on: tensors and plain numbers, no pickles."""

    position: Position
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def stage(self) -> int:
        """Stage whose method was saved."""
        return int(self.facts["stage"])


class Facts(BaseModel):
    """Numbers and texts of a run's checkpoint, as ``Saver`` writes them."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    digest: str
    seed: int = Field(ge=0, lt=2**63)
    stage: int = Field(ge=0)
    history: list[dict[str, float | None]]
    worlds: list[Annotated[int, Field(ge=1)]]
    worlds_from: list[str]
    threads: list[Annotated[int, Field(ge=1)]] = []
    seconds: float = Field(ge=0)
    optimizer: dict[str, float | bool]
    resume: dict[str, Any]


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
            fresh_folder(partial)
            # In CPU memory, so that a checkpoint loads on any device.
            tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
            with create(partial / TENSORS) as file:
                mode = mode_of(file)
            save_file(tensors, partial / TENSORS)
            state = {
                "format": FORMAT,
                "position": asdict(snapshot.position),
                "sha256": file_sha256(partial / TENSORS),
                "facts": snapshot.facts,
            }
            with create(partial / STATE) as file:
                file.write(seal(json.dumps(state)))
            for path in (partial / TENSORS, partial / STATE):
                flush(path, mode)
            flush(partial)
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
        for old in folders(self.folder)[:-2]:
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
        found = folders(self.folder)
        return read_snapshot(found[-1]) if found else None


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


def folders(home: Path) -> list[Path]:
    """Return the checkpoint folders of a run by progress, oldest first.

    Args:
        home: the folder ``checkpoints`` of the run.
    """
    found = [(NAME.fullmatch(path.name), path) for path in home.glob("s*-e*-t*") if path.is_dir()]
    numbered = [
        (tuple(map(int, name.groups()[:3])), bool(name[4]), path)
        for name, path in found
        if name is not None
    ]
    return [path for *_, path in sorted(numbered)]


def read_snapshot(folder: Path) -> Snapshot:
    """Read one checkpoint folder and check it against its own hash.

    Raises:
        UserError: it is truncated, edited or not ours.
    """
    advice = f"delete the folder {folder} to go on from the checkpoint before it"
    try:
        state = read_sealed(folder / STATE, last="facts")
        if state["format"] != FORMAT:
            raise UserError(
                f"checkpoint {folder} has format {state['format']}, this version reads {FORMAT}; "
                "continue it with the version that wrote it"
            )
        stated, found = str(state["sha256"]), file_sha256(folder / TENSORS)
        if found != stated:
            raise UserError(
                f"checkpoint {folder / TENSORS} is damaged: expected SHA-256 "
                f"{stated[:12]}..., found {found[:12]}...; {advice}"
            )
        position = Position(**state["position"])
        if position.name != folder.name.removesuffix("-stage"):
            raise ValueError(f"its state is that of {position.name}")
        return Snapshot(position, load_file(folder / TENSORS), _checked(state["facts"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {folder} is not readable ({reason(error)}); {advice}"
        ) from error


def _checked(facts: Any) -> dict[str, Any]:
    """Return a checkpoint's facts; those of older versions have no checksum."""
    if facts != {}:
        try:
            Facts.model_validate(facts)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"`{where}`: {first['msg']}") from error
    return dict(facts)


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
    """Put back what ``optimizer_tensors`` took out, in the memory layout of the parameters.

    Otherwise a multi-tensor optimizer would need a kernel for each of them.
    """
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *numbers.items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                entry[key] = like.copy_(value)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix.`` before their names."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix.``, without it."""
    start = prefix + "."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

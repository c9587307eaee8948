"""Models to diagnose, with their data: runs, published models, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ltbench.config.validation import build_recipe
from ltbench.data.base import Data, Split
from ltbench.diagnose.base import Subject
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.methods.weights import check_classes
from ltbench.models.image_size import check_size
from ltbench.records.record import RECIPE, RECORD, Record
from ltbench.train import checkpoint
from ltbench.train.stage import saved_method


@dataclass(frozen=True)
class State:
    """A model at some point of its training.

    Args:
        label: of the point, e.g. ``stage 1, epoch 10``; stages are counted from 1.
        index: of the stage that the method belongs to.
        epoch: next epoch of that stage; the last one if the stage is finished.
        finished: number of finished epochs of that stage.
        method: in evaluation mode.
    """

    label: str
    index: int
    epoch: int
    finished: int
    method: Method


def open_subjects(
    sources: Sequence[str], options: Mapping[str, Any], device: str = "auto"
) -> list[Subject]:
    """Return the models of run folders, weight files, publish folders or names of the zoo.

    Args:
        sources: models as for ``ltbench.load``.
        options: of the data set that differ from the runs', e.g. ``root``; for all subjects.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: a model or its data cannot be read, or they do not belong together.
    """
    from ltbench.hub.load import load_described

    where = pick_device(device)
    loaded: dict[str, Data] = {}
    opened: list[Subject] = []
    for source in sources:
        method, facts = load_described(source)
        tree = dict(facts["recipe"])
        recipe = build_recipe({**tree, "data": {**tree["data"], **options}})
        key = repr(recipe.data)
        if key not in loaded:
            loaded[key] = recipe.data.config.load()  # type: ignore[attr-defined]
        data = loaded[key]
        check_classes(facts, data.info, source)
        counts = tuple(facts["class_counts"])
        if data.info.class_counts != counts:
            raise UserError(
                f"{source} was trained on {sum(counts):,} images of {len(counts)} classes, the "
                f"data set read has {sum(data.info.class_counts):,} of {data.info.num_classes}; "
                "give the data.* options of its training"
            )
        check_size(method.backbone, first_image(data.test))
        folder = _run_folder(Path(source))
        file = (folder or Path(source)) / RECORD
        record = Record.load(file) if file.is_file() else None
        opened.append(Subject(recipe.name, method.to(where), recipe, data, where, folder, record))
    return _named(opened, sources)


def first_image(split: Split) -> Tensor:
    """Return the first image of a split as it is evaluated [1, 3, H, W]."""
    first = np.zeros(1, dtype=np.int64)
    views = split.load(first, key=None, positions=first)
    return split.finish(views, key=None, positions=first)[0]


def states(subject: Subject) -> Iterator[State]:
    """Yield the checkpoints of a subject's run, oldest first, then the model itself.

    A checkpoint is rebuilt on access, with the weights and the method of that time.

    Raises:
        UserError: a checkpoint is damaged.
    """
    final = _end(subject)
    home = subject.folder / "checkpoints" if subject.folder is not None else None
    for folder in checkpoint.folders(home) if home is not None else ():
        state = _checkpoint(subject, folder)
        if (state.index, state.finished) < (final.index, final.finished):
            yield state
    yield final


def _end(subject: Subject) -> State:
    index = len(subject.recipe.stages) - 1
    epochs = subject.recipe.stages[index].epochs or 0
    label = f"stage {index + 1}, epoch {epochs}" if epochs else f"stage {index + 1}"
    return State(label, index, max(0, epochs - 1), epochs, subject.method)


def _checkpoint(subject: Subject, folder: Path) -> State:
    snapshot = checkpoint.read_snapshot(folder)
    index, position = snapshot.stage, snapshot.position
    epochs = subject.recipe.stages[index].epochs or 0
    ended = position.stage > index
    finished = epochs if ended else position.epoch
    method = saved_method(snapshot, subject.recipe, subject.data.info, str(folder))
    label = f"stage {index + 1}, epoch {finished}"
    if position.step and not ended:
        label += f", step {position.step}"
    at = min(finished, max(0, epochs - 1))
    return State(label, index, at, finished, method.eval().to(subject.device))


def _run_folder(source: Path) -> Path | None:
    folder = source if source.is_dir() else source.parent
    return folder if source.exists() and (folder / RECIPE).is_file() else None


def _named(subjects: Sequence[Subject], sources: Sequence[str]) -> list[Subject]:
    """Give subjects the first kind of name that tells them apart."""
    kinds = (
        [s.name for s in subjects],
        [f"{s.name} seed {s.recipe.seed}" for s in subjects],
        ["/".join(Path(source).parts[-2:]) for source in sources],
        list(sources),
    )
    names = next((k for k in kinds if len(set(k)) == len(k)), None)
    if names is None:
        raise UserError("the same model is given twice; name each once")
    return [replace(s, name=name) for s, name in zip(subjects, names, strict=True)]

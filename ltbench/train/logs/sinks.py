"""Logs that a run can write: each a small adapter over a library, or a CSV file."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ltbench.errors import UserError
from ltbench.files import write_atomic

PROJECT = "ltbench"  # unless WANDB_PROJECT or TRACKIO_PROJECT names another
CLASSES = ("class", "training images", "images", "recall")
COLUMNS = (
    *("step", "stage", "epoch", "train/loss", "train/lr", "train/images_per_second"),
    *("train/epoch_loss", "train/top1", "train/many", "train/medium", "train/few"),
    *(f"val/{name}" for name in ("top1", "many", "medium", "few", "mean_recall", "ece")),
    *(f"test/{name}" for name in ("top1", "many", "medium", "few", "mean_recall", "ece")),
)


@dataclass(frozen=True)
class About:
    """Facts of a run that its logs begin with.

    Args:
        folder: of the logs, inside the run's folder.
        key: name of this run that no other has; it stays when the run is resumed.
        name: recipe and seed.
        group: recipe and digest: runs that differ in the seed alone.
        tags: method, backbone, data set and update.
        config: resolved recipe with digest and seed.
    """

    folder: Path
    key: str
    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]


class Sink:
    """Log of one run.

    A run that is resumed writes the steps after its checkpoint again, with the same values; a log
    keeps one row of each.
    """

    def open(self, about: About) -> None:
        """Begin the log, or go on with that of an interrupted run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row. The first row of a process takes the place of those from its step on.

        Args:
            step: steps of the run so far, over all stages.
            values: by name, e.g. ``train/loss``.
        """
        raise NotImplementedError

    def classes(self, step: int, split: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add the results by class; see ``CLASSES`` for the columns."""
        raise NotImplementedError

    def close(self, finished: bool) -> None:
        """End the log of this process.

        Args:
            finished: False if the run was interrupted or failed.
        """


class Csv(Sink):
    """``metrics.csv`` with one line a step, and ``classes_<split>.csv``."""

    file: TextIO | None = None

    def open(self, about: About) -> None:
        """Note the folder."""
        self.folder = about.folder

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        if self.file is None:
            path = self.folder / "metrics.csv"
            write_atomic(path, _before(path, step).encode())
            self.file = path.open("a", newline="")
        csv.DictWriter(self.file, COLUMNS, lineterminator="\n").writerow({"step": step, **values})
        self.file.flush()

    def classes(self, step: int, split: str, rows: Sequence[Sequence[Any]]) -> None:
        """Write the table of classes."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([CLASSES, *rows])
        write_atomic(self.folder / f"classes_{split}.csv", text.getvalue().encode())

    def close(self, finished: bool) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def _before(path: Path, step: int) -> str:
    """Return header and lines of a CSV log before a step; a line that was cut off is left out."""
    head = ",".join(COLUMNS) + "\n"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if lines[:1] != [head]:
        return head
    whole = [line for line in lines[1:] if line.endswith("\n") and line.partition(",")[0].isdigit()]
    return head + "".join(line for line in whole if int(line.partition(",")[0]) < step)


class TensorBoard(Sink):
    """Event files in ``tensorboard/``."""

    writer: Any = None

    def open(self, about: About) -> None:
        """Note the folder."""
        self.about = about

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each value, on disk at once."""
        writer = self._from(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def classes(self, step: int, split: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add the table of classes as text."""
        lines = [CLASSES, ["---"] * len(CLASSES), *rows]
        table = "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)
        self._from(step).add_text(f"{split}/classes", table, step)

    def close(self, finished: bool) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _from(self, step: int) -> Any:
        """Return the writer, made for rows from a step on."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = self.about.folder / "tensorboard"
            again = folder.is_dir() and any(folder.glob("events.*"))
            # Readers leave out what an interrupted process wrote of these steps.
            writer: Any = SummaryWriter(str(folder), purge_step=step if again else None)
            if not again:
                config = json.dumps(self.about.config, indent=1, ensure_ascii=False)
                writer.add_text("config", "\n".join(f"    {line}" for line in config.splitlines()))
            self.writer = writer
        return self.writer


class Tracker(Sink):
    """Log that another library keeps and that cannot be cut: steps it already has are left out."""

    name = ""
    run: Any = None  # of the library

    def open(self, about: About) -> None:
        """Read how far the log of an interrupted run came."""
        self.mark, self.held = about.folder / f"{self.name}.step", 0
        with contextlib.suppress(OSError, ValueError):
            self.held = int(self.mark.read_text())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row that the log does not have yet."""
        if step > self.held:
            self.send(step, values)
            self.held = step
            write_atomic(self.mark, str(step).encode())

    def classes(self, step: int, split: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add the table of classes, if the log does not have it yet."""
        if step > self.held:
            self.send(step, {f"{split}/classes": self.table([list(row) for row in rows])})

    def send(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand values to the library."""
        raise NotImplementedError

    def table(self, rows: list[list[Any]]) -> Any:
        """Return rows as a table of the library."""
        raise NotImplementedError


class WandB(Tracker):
    """Run of Weights & Biases; WANDB_PROJECT, WANDB_ENTITY, WANDB_TAGS and WANDB_MODE count."""

    name = "wandb"

    def open(self, about: About) -> None:
        """Begin or resume the run of this key.

        Raises:
            UserError: nobody is logged in.
        """
        import wandb

        super().open(about)
        folder = Path(os.environ.get("WANDB_DIR") or about.folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Terminal and command line stay here: they may show addresses with passwords.
        settings = wandb.Settings(console="off", x_disable_meta=True)
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False):
            raise UserError("no login; run `wandb login`, or set WANDB_MODE=offline")
        extra = filter(None, os.environ.get("WANDB_TAGS", "").split(","))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=folder,
            id=about.key,
            resume="allow",
            name=os.environ.get("WANDB_NAME", about.name),
            group=os.environ.get("WANDB_RUN_GROUP", about.group),
            tags=list(dict.fromkeys([*about.tags, *extra])),
            config=dict(about.config),
            settings=settings,
        )
        if not self.run.offline:
            self.held = max(0, self.run.step - 1)  # the server knows best

    def send(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values at a step."""
        self.run.log(dict(values), step=step)

    def table(self, rows: list[list[Any]]) -> Any:
        """Return a table."""
        import wandb

        return wandb.Table(columns=list(CLASSES), data=[*rows])

    def close(self, finished: bool) -> None:
        """Finish the run, as failed if it was interrupted."""
        if self.run is not None:
            self.run.finish(exit_code=0 if finished else 1)


class Trackio(Tracker):
    """Run of Trackio, in the local database unless TRACKIO_SPACE_ID says otherwise."""

    name = "trackio"

    def open(self, about: About) -> None:
        """Begin or resume the run of this key."""
        import trackio

        super().open(about)
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=about.key,
            group=about.group,
            config=dict(about.config),
            resume="allow",
            embed=False,
        )

    def send(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values at a step."""
        self.run.log(dict(values), step=step)

    def table(self, rows: list[list[Any]]) -> Any:
        """Return a table."""
        import pandas as pd
        import trackio

        return trackio.Table(dataframe=pd.DataFrame(rows, columns=list(CLASSES)))

    def close(self, finished: bool) -> None:
        """Finish the run."""
        if self.run is not None:
            self.run.finish()


SINKS: dict[str, type[Sink]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
INSTALL = {
    "tensorboard": "pip install 'ltbench[tensorboard]'",
    "wandb": "pip install 'ltbench[wandb]'",
    "trackio": "pip install trackio",
}


def check_installed(names: Sequence[str]) -> None:
    """Check that the libraries of logs are installed.

    Args:
        names: of the logs.

    Raises:
        UserError: one is not; one line each.
    """
    lines = [
        f"`log={name}` needs {name}, which is not installed: {INSTALL[name]}"
        for name in names
        if name in INSTALL and importlib.util.find_spec(name) is None
    ]
    if lines:
        raise UserError("\n".join(lines))


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

"""Output folder of a run: locked for one process, compared with what it holds, kept to the end."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from ltbench.config import plugins
from ltbench.config.recipe import Recipe
from ltbench.digest import read_json
from ltbench.errors import UserError
from ltbench.files import write_atomic, write_json
from ltbench.machine import checkout
from ltbench.methods.weights import read_description
from ltbench.records.record import LOCK, RECIPE, WEIGHTS, Record
from ltbench.records.validation import VALIDATION, Validation
from ltbench.train.folder import results_file, run_folder
from ltbench.train.identity import Images, check_images, images_of
from ltbench.version import __version__

T = TypeVar("T")
DELETING, PAUSE = 20, 0.1  # times and seconds to wait for the end of a deletion
PATIENCE = 20.0  # seconds that a rank waits for the lock of its run's folder


class RunFolder:
    """Output folder of one run, used by rank 0 alone.

    Args:
        recipe: the run's recipe, with seed and ``out``.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.path, self.results = recipe, run_folder(recipe), results_file(recipe)
        self._lock = self._new_lock()
        self._mark = {"digest": recipe.digest, "seed": recipe.seed}
        self._inode: tuple[int, int] | None = None  # of recipe.json as this process wrote it
        self._made: list[Path] = []  # folders that did not exist before, inner ones first

    def claim(self) -> bool:
        """Lock the folder for this run, made if it does not exist; return True if the run is done.

        The lock keeps a second process from writing there; a kill releases it.

        Raises:
            UserError: it cannot be written, is in use, belongs to another run, or holds other
                files.
        """
        # A rank that torchrun has started again may meet the lock of the one that is just dying.
        patience = PATIENCE if torch.distributed.is_torchelastic_launched() else 0
        self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            content = {p.name for p in self.path.iterdir() if not p.name.startswith(".")}
            if content and RECIPE not in content:
                raise UserError(
                    f"the output folder {self.path} is not empty (`{min(content)}`, ...) and has "
                    f"no {RECIPE}, so it holds no run; pass another `out=`"
                )
            self._lock.acquire(timeout=patience)
        except Timeout as error:
            raise UserError(
                f"another process is running in {self.path}; wait for it, or pass another `out=`"
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        if content - {RECIPE}:
            self._check_owner()
        if self.recipe.resume == "never" and (self.path / "checkpoints").is_dir():
            raise UserError(
                f"{self.path} already holds this run and `resume=never` was given; pass another "
                "`out=`, or leave `resume` out to go on"
            )
        done = self.results in content
        if not done:
            try:
                self._write_recipe()
            except OSError as error:
                raise self._unusable(error) from error
        return done

    def finished(self, seen: dict[str, Images]) -> Record | Validation:
        """Return the results of the finished run, compared with recipe, seed, weights and images.

        Args:
            seen: images of data sets read before, by their options; is added to.

        Raises:
            UserError: it is of another run, other weights or other images, or a file is damaged.
        """
        file, validates = self.path / self.results, self.results == VALIDATION
        record = Validation.load(file) if validates else Record.load(file)
        self._check_same(self.results, record.recipe.name, record.recipe.digest, record.seed)
        facts = read_description(self.path / WEIGHTS)
        described = self.path / Path(WEIGHTS).with_suffix(".json").name
        name = str(_mapping(facts.get("recipe")).get("name"))
        self._check_same(described.name, name, facts.get("digest"), facts.get("seed"))
        if record.checkpoint is None or record.checkpoint.sha256 != facts["sha256"]:
            raise UserError(
                f"{self.path / WEIGHTS} are not the weights of {self.results} beside it: the "
                f"SHA-256 differ; {self._remedy}"
            )
        if list(record.metrics.class_counts) != facts.get("class_counts"):
            raise UserError(
                f"{described} has other numbers of training images than {self.results}; "
                f"{self._remedy}"
            )
        given, own = self.recipe.tree()["data"], self._own_data()
        try:
            images = images_of(self.recipe, seen)
        except UserError as error:
            if given != own and given.get("root") is not None:
                raise
            warnings.warn(
                f"{self.path}: the images of the finished run were not compared with its record, "
                f"for they cannot be read: {str(error).splitlines()[0]}",
                stacklevel=2,
            )
        else:
            check_images(record, facts.get("class_names"), images, str(self.path))
        self._note_code(record)
        return record

    def keep(self, write: Callable[[], T]) -> T:
        """Write into the folder, even if it has been deleted since training began, or is just now.

        A deleted folder is made again, so that the same command goes on from what is written.

        Args:
            write: writes files under the folder; may be called twice.

        Raises:
            UserError: that of ``write``; or the folder was deleted, or is another process's by
                now.
        """
        problem = self._restore()
        while True:
            failure: UserError | None = None
            try:
                result = write()
            except UserError as error:
                failure = error
            if failure is not None and self._inode is not None:
                time.sleep(DELETING * PAUSE / 2)  # a deletion may be on its way to recipe.json
            late = self._restore()
            if not late or problem:
                break
            problem = late
        if problem or failure is not None:
            raise UserError(problem) if failure is None else failure
        return result

    def discard(self) -> None:
        """Remove the folder if this process made it and a run that was refused left it empty."""
        elastic = torch.distributed.is_torchelastic_launched()  # a restarted rank may be waiting
        if not self._made or not self._lock.is_locked or elastic:
            return
        with contextlib.suppress(OSError):
            if {p.name for p in self.path.iterdir()} <= {RECIPE, LOCK}:
                (self.path / RECIPE).unlink(missing_ok=True)
                (self.path / LOCK).unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()

    def release(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def _restore(self) -> str:
        """Make a deleted folder again and return what the user needs to know, if it was."""
        if self._inode is None or self._inode == _inode(self.path / RECIPE):
            return ""
        lost = f"the output folder {self.path} was deleted or replaced during training"
        if (self.path / RECIPE).exists():
            raise UserError(f"{lost}, and holds another run; nothing was written to it")
        failure: OSError | UserError | None = None
        for _ in range(DELETING):
            failure = self._made_again()
            if failure is None:
                return f"{lost}; what was done was kept there: the same command goes on from it"
            if isinstance(failure, Timeout):
                break
            time.sleep(PAUSE)
        raise UserError(f"{lost}; it could not be made again ({failure})")

    def _made_again(self) -> OSError | UserError | None:
        """Make the folder again and return the error, if any; it may still be being deleted."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.release()
            self._lock = self._new_lock()
            self._lock.acquire(timeout=0)
            self._write_recipe()
        except (OSError, UserError) as error:
            return error
        return None

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write to the output folder {self.path}: {error.strerror}; pass another `out=`"
        )

    def _new_lock(self) -> FileLock:
        return FileLock(self.path / LOCK, thread_local=False)  # checkpoints have their own thread

    def _write_recipe(self) -> None:
        content = {"recipe": self.recipe.name, **self._mark, "tree": self.recipe.tree()}
        write_json(self.path / RECIPE, content)
        for name, code in plugins.copies(content["tree"]).items():
            (self.path / plugins.FOLDER).mkdir(exist_ok=True)
            write_atomic(self.path / plugins.FOLDER / name, code)
        self._inode = _inode(self.path / RECIPE)

    def _check_owner(self) -> None:
        found = _read_mark(self.path / RECIPE)
        self._check_same(RECIPE, found.get("recipe"), found.get("digest"), found.get("seed"))

    def _check_same(self, file: str, name: Any, digest: Any, seed: Any) -> None:
        if {"digest": digest, "seed": seed} != self._mark:
            own = self.recipe.name, self._mark["digest"]
            same = (name, digest) == own
            found = (
                f"with seed {seed} ({file})" if same else f"(digest {digest}, seed {seed}; {file})"
            )
            now = "has" if same else f"is `{own[0]}` (digest {own[1]}),"
            raise UserError(
                f"the output folder {self.path} belongs to `{name}` {found}, this run {now} seed "
                f"{self._mark['seed']}; pass another `out=`"
            )

    def _own_data(self) -> Any:
        """Return the options of the data set that the finished run was given."""
        return _mapping(_read_mark(self.path / RECIPE).get("tree")).get("data")

    @property
    def _remedy(self) -> str:
        return (
            f"restore it, or delete {self.results} to finish the run again from its last checkpoint"
        )

    def _note_code(self, record: Record | Validation) -> None:
        """Warn if the run was done with another version of the code."""
        before = _version(record.code.version, record.code.commit)
        now = _version(__version__, checkout()[0])
        if before != now:
            text = f"{self.path} was finished by ltbench {before}, this is {now}"
            warnings.warn(text, stacklevel=2)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); pass another `out=`") from error
    return found


def _version(number: str, commit: str | None) -> str:
    return f"{number} ({commit[:8]})" if commit else number


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

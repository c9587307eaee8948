"""Checkpoints of a run: written in the background, checked against recipe and data on resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.train.checkpoint import BackgroundWriter, Position, Snapshot, Store, copied
from ltbench.train.claim import RunFolder
from ltbench.train.feed import Feed
from ltbench.train.resume import check_resume_state, resume_state


class Saver:
    """Writes and reads the checkpoints of a run, on rank 0.

    Args:
        feed: batches of the run.
        folder: output folder of the run.
    """

    def __init__(self, feed: Feed, folder: RunFolder) -> None:
        self.feed, self.recipe, self.folder = feed, feed.recipe, folder
        self.store = Store(folder.path / "checkpoints")
        self._writing = BackgroundWriter()
        self._fingerprint = ""

    @property
    def origin(self) -> str:
        """Name of the checkpoint in messages."""
        return f"the checkpoint in {self.store.folder}"

    def latest(self) -> Snapshot | None:
        """Return the newest checkpoint on every rank, or ``None`` if there is none.

        Raises:
            UserError: it is damaged, or of another recipe, seed or data set.
        """
        return ranks.on_main(self._latest)  # the others need not see its files

    def begin(self) -> None:
        """Begin to hash the images, so that wrong hashes and later changes are noticed early."""
        if ranks.is_main():
            self._writing.start(self._hash_all)

    def save(
        self,
        position: Position,
        tensors: Mapping[str, Tensor],
        facts: dict[str, Any],
        *,
        keep: bool = False,
    ) -> None:
        """Begin to write a checkpoint; all that it holds is the same on every rank.

        Raises:
            UserError: on rank 0 alone, if the checkpoint before could not be written.
        """
        if not ranks.is_main():
            return
        self._writing.wait()
        facts = {"digest": self.recipe.digest, "seed": self.recipe.seed, **facts}
        resume = self._resume_state(position)
        snapshot = Snapshot(position, copied(tensors), facts)

        def write() -> None:
            facts["resume"] = resume()
            self.folder.keep(lambda: self.store.save(snapshot, keep=keep))

        self._writing.start(write)

    def settle(self) -> None:
        """Wait for the checkpoint being written; all ranks stop if it fails.

        Raises:
            UserError: it could not be written.
        """
        ranks.on_main(self._writing.wait)

    def close(self) -> None:
        """Wait for the checkpoint being written, whether it fails or not."""
        self._writing.close()

    def _latest(self) -> Snapshot | None:
        snapshot = self.store.latest()
        if snapshot is None:
            return None
        facts, recipe = snapshot.facts, self.recipe
        if not facts.keys() >= {"digest", "seed", "resume", "stage"}:
            raise UserError(f"{self.origin} is not one of a run; pass another `out=`")
        if (facts["digest"], facts["seed"]) != (recipe.digest, recipe.seed):
            raise UserError(
                f"{self.origin} belongs to recipe digest {facts['digest']} seed {facts['seed']}, "
                f"this run is {recipe.digest} seed {recipe.seed}; pass another `out=`"
            )
        check_resume_state(facts["resume"], self._resume_state(snapshot.position)(), self.origin)
        return snapshot

    def _hash_images(self) -> None:
        self._fingerprint = self._fingerprint or self.feed.data.train.fingerprint()

    def _hash_all(self) -> None:
        self._hash_images()
        self.feed.data.test.fingerprint()

    def _resume_state(self, position: Position) -> Callable[[], dict[str, Any]]:
        """Return a function that computes the ``resume_state`` of a position."""
        stages, order = self.recipe.stages, None
        stage = stages[position.stage] if position.stage < len(stages) else None
        if stage is not None and stage.training is not None:
            order = self.feed.order(position.stage, position.epoch)

        def state() -> dict[str, Any]:
            self._hash_images()
            return resume_state(position, self.recipe.seed, self._fingerprint, stage, order)

        return state

"""Summary of a run before its first step: data, test set, device, length, folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ltbench.config.recipe import Recipe, Stage
from ltbench.data.base import Data, Split
from ltbench.data.shots import shot_groups
from ltbench.distributed import ranks
from ltbench.distributed.device import pick_device
from ltbench.errors import visible
from ltbench.machine import gpu_name
from ltbench.train.features import check_features
from ltbench.train.feed import Feed
from ltbench.train.folder import run_folder

LONGEST = 16  # characters of a class name


@dataclass(frozen=True)
class Plan:
    """Data and length of a run.

    Args:
        recipe: of the run.
        data: its data set.
        folder: its output folder.
        device: of this rank.
        per_epoch: steps of an epoch of each stage; 0 for a stage that does not train.
        steps: steps of each stage.
        done: steps finished by earlier processes, over all stages.
    """

    recipe: Recipe
    data: Data
    folder: Path
    device: torch.device
    per_epoch: tuple[int, ...]
    steps: tuple[int, ...]
    done: int = 0

    def lines(self) -> list[str]:
        """Return the five lines printed before the first step."""
        facts = {
            "data": self._data(),
            "counts": self._counts(),
            "test": self._test(),
            "run": self._length(),
            "folder": visible(str(self.folder), None),
        }
        return [f"{name:<8}{text}" for name, text in facts.items()]

    def _data(self) -> str:
        info, root = self.data.info, getattr(self.recipe.data.config, "root", None)
        place = f" in {visible(str(root))}" if root else ""
        return f"{info.name}{place}: {info.num_classes:,} classes, {len(self.data.train):,} images"

    def _counts(self) -> str:
        info = self.data.info
        counts = info.class_counts
        largest, smallest = (counts.index(pick(counts)) for pick in (max, min))
        ends = [
            f"{counts[k]:,} ({visible(info.class_names[k], LONGEST)})" for k in (largest, smallest)
        ]
        ratio = max(counts) / max(1, min(counts))
        groups = shot_groups(counts, self.recipe.shot_rule)
        shots = " / ".join(f"{len(groups[name]):,} {name}" for name in groups)
        return f"{' to '.join(ends)}, ratio {ratio:.4g}; {shots} classes"

    def _test(self) -> str:
        facts, config = self.data.manifest, self.recipe.data.config
        listed = getattr(config, "test", None)
        part = f"{listed}, " if listed else ""
        part = facts.get("test_part", f"{part}{len(self.data.test):,} images")
        drawn = facts.get("test", "").partition(", seed")[0]
        text = ", ".join(filter(None, (part, drawn)))
        if drawn.startswith("balanced"):
            text += " (data.test_images=all: all)"
        shown, split = curve_split(self.recipe, self.data)
        if shown == "val" and split is not None:
            text += f"; curves on {len(split):,} validation images"
        elif shown == "test":
            text += "; curves on them too (run.curves=test)"
        return visible(text, None)

    def _length(self) -> str:
        epochs = " + ".join(str(s.epochs) for s in self.recipe.stages if s.epochs) or "no"
        total = sum(self.steps)
        text = f"{epochs} epochs, {total:,} step{'s' * (total != 1)}"
        if self.recipe.run.max_steps:
            text += f" (run.max_steps={self.recipe.run.max_steps})"
        if self.done:
            text += f", {self.done:,} of them done"
        world = ranks.world()
        threads = torch.get_num_threads()
        where = gpu_name(self.device) or f"{threads} thread{'s' * (threads != 1)}"
        count = f"{world} x " if world > 1 else ""
        return f"{text}; {count}{self.device.type} ({where}), {self.recipe.run.precision}"


def curve_split(recipe: Recipe, data: Data) -> tuple[Literal["val", "test", ""], Split | None]:
    """Return name and images of the split on which accuracy is measured during training, if any."""
    if recipe.run.curves == "test":
        return "test", data.test
    return ("", None) if data.val is None else ("val", data.val)


def make_plan(feed: Feed, folder: Path, at: tuple[int, int, int] = (0, 0, 0)) -> Plan:
    """Return the plan of a run.

    Args:
        feed: batches of the run.
        folder: its output folder.
        at: stage, epoch and step at which it begins.
    """
    recipe, most = feed.recipe, feed.recipe.run.max_steps
    per_epoch = [feed.steps(i) if s.training else 0 for i, s in enumerate(recipe.stages)]
    full = [n * (s.epochs or 0) for n, s in zip(per_epoch, recipe.stages, strict=True)]
    steps = [min(n, most or n) for n in full]
    stage, epoch, step = at
    begun = epoch * per_epoch[stage] + step if stage < len(steps) else 0
    done = sum(steps[:stage]) + begun
    return Plan(recipe, feed.data, folder, feed.device, tuple(per_epoch), tuple(steps), done)


def plan_of(recipe: Recipe) -> Plan:
    """Load the data of a recipe and return the plan of its run.

    Raises:
        UserError: data or device are not usable.
    """
    check_features(recipe)
    data: Data = recipe.data.config.load()  # type: ignore[attr-defined]
    return make_plan(Feed(recipe, data, pick_device(recipe.run.device)), run_folder(recipe))


def stage_title(index: int, stage: Stage, count: int = 0) -> str:
    """Return the title of a stage for people, who count from 1.

    Args:
        index: 0-based index, as in keys.
        stage: its options.
        count: number of stages; 0 if it is not known.
    """
    update = "" if stage.update.name == "plain" else f" + {stage.update.name}"
    of = f" of {count}" if count else ""
    return f"stage {index + 1}{of} ({stage.method.name}{update})"

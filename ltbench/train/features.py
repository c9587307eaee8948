"""Features of a frozen backbone, computed once for the stages with ``features: cached``."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.config.paths import expanded
from ltbench.config.recipe import Recipe, dump
from ltbench.data.base import Split
from ltbench.data.features import FeatureSplit
from ltbench.data.loader import Loaded
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.methods.base import Method, begins
from ltbench.methods.weights import read_weights, write_weights
from ltbench.train.feed import Feed, open_loader

FOLDER = "features"  # of a run
NAME = "features"  # of the tensor in a file
SAME = 1e-3  # relative difference of features that are not random


def check_features(recipe: Recipe) -> None:
    """Check that every stage that stores features trains on nothing else.

    Raises:
        UserError: a stage trains its backbone, moves its statistics, or needs images.
    """
    for index, stage in enumerate(recipe.stages):
        if stage.features != "cached":
            continue
        method, at = METHODS.get(stage.method.name), f"stages.{index}"
        frozen = method.freeze if stage.freeze is None else stage.freeze
        why = method.needs_images(stage.method.config)
        if why:
            raise UserError(
                f"`{at}.features`: cached features are those of unchanged images, and method "
                f"{stage.method.name} {why}; use `{at}.features=augmented`, or another method"
            )
        if not any(begins("backbone", part) for part in frozen):
            raise UserError(
                f"`{at}.features`: cached needs a frozen backbone, found "
                f"{', '.join(frozen) or 'nothing'} frozen; set `{at}.freeze=[backbone]`"
            )
        but = method.but if stage.but is None else stage.but
        if any(part != "head" and not begins(part, "head") for part in but) and (
            recipe.backbone.adapters is not None or stage.but is not None
        ):
            raise UserError(
                f"`{at}.features`: cached needs a frozen backbone, and of it {', '.join(but)} is "
                f"trained; set `{at}.but=[]`, or leave features out"
            )
        chosen = stage.frozen_bn or method.frozen_bn
        modes = chosen if isinstance(chosen, dict) else {"": chosen}
        modes = {"": method.frozen_bn, **modes}
        over = max((p for p in modes if not p or begins("backbone", p)), key=len)
        inside = [mode for part, mode in modes.items() if begins(part, "backbone")]
        if {modes[over], *inside} != {"eval"} and recipe.run.batchnorm != "frozen":
            raise UserError(
                f"`{at}.features`: cached needs the running statistics of the backbone's batch "
                f"normalisation as they are; set `{at}.frozen_bn=eval`"
            )


class StoredFeatures:
    """Features of the images of a run under the frozen backbone of a stage.

    They are computed once for each split, in passes of the stage's size, and kept in a file whose
    name is a hash of weights, images and transform, so that a resumed run, and runs that share
    ``run.feature_folder``, read them.

    Args:
        feed: batches of the run.
        index: stage of the recipe.
        method: of that stage, in its training mode.
        autocast: returns the context manager of forward passes.
    """

    def __init__(
        self,
        feed: Feed,
        index: int,
        method: Method,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.feed, self.index, self.method, self._autocast = feed, index, method, autocast
        stage, world = feed.recipe.stages[index], ranks.world()
        self.size = feed.recipe.training(index).batch_size // (stage.passes(world) * world)
        self._weights = weights_hash(method.backbone)
        self._splits: dict[str, FeatureSplit] = {}

    def of(self, name: str, split: Split) -> FeatureSplit:
        """Return the features of a split, computed or read at the first call.

        Args:
            name: of the split.
            split: its images.

        Raises:
            UserError: an image cannot be read, or the backbone is random.
        """
        if name not in self._splits:
            path, facts = ranks.on_main(lambda: self._place(name, split))
            found = ranks.on_main(lambda: None if path is None else _read(path, facts))
            if found is None:
                found = self._computed(split)
                ranks.on_main(lambda: None if path is None else _write(path, found, facts))
            self._splits[name] = FeatureSplit(found, split.labels)
        return self._splits[name]

    def _place(self, name: str, split: Split) -> tuple[Path | None, dict[str, Any]]:
        """Return the file of a split's features and what they depend on."""
        recipe = self.feed.recipe
        facts = {
            "weights": self._weights,
            "images": split.fingerprint(),
            "transform": dump(recipe.data, digest_only=True),
            "precision": recipe.run.precision,
            "channels_last": recipe.run.channels_last,
            "device": self.feed.device.type,
            "pass": self.size,
            "torch": str(torch.__version__),
        }
        own = self.feed.folder
        given = recipe.run.feature_folder
        folder = expanded(given) if given else None if own is None else own / FOLDER
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return None if folder is None else folder / f"{name}-{key[:24]}.safetensors", facts

    @torch.no_grad()
    def _computed(self, split: Split) -> Tensor:
        """Return the features [N, D] on the CPU; the ranks share the work.

        All passes have the same size, the last one filled up, so that its features do not depend
        on the number of ranks.

        Raises:
            UserError: an image cannot be read, or the backbone is random.
        """
        passes = -(-len(split) // self.size)
        filled = np.minimum(np.arange(passes * self.size), len(split) - 1)
        shares = np.array_split(filled.reshape(passes, self.size), ranks.world())
        mine = shares[ranks.rank()].reshape(-1)
        own = mine if len(mine) else filled[: self.size]  # with more ranks than passes
        backbone, found = self.method.backbone, []
        modes = [(module, module.training) for module in backbone.modules()]
        try:
            for number, loaded in enumerate(self._images(split, own)):
                with self._autocast():
                    trained = backbone(loaded.views[0]) if number == 0 else None
                    backbone.eval()
                    features = backbone(loaded.views[0])
                if trained is not None:
                    _check_same(trained, features, self.index)
                found.append(features.cpu())
        finally:
            for module, mode in modes:
                module.training = mode
        sizes = [share.size for share in shares]
        rows_here = torch.cat(found)[: len(mine)].to(self.feed.device)
        gathered = ranks.all_gather(rows_here, sizes)
        return gathered[: len(split)].cpu().contiguous()

    def _images(self, split: Split, rows: np.ndarray) -> Iterator[Loaded]:
        """Yield images in passes of equal size, transformed as for evaluation."""
        run = self.feed.recipe.run
        loader = open_loader(
            split,
            workers=run.workers,
            device=self.feed.device,
            layout=torch.channels_last if run.channels_last else torch.contiguous_format,
        )
        for (loaded,) in loader.batches(rows, self.size, key=None):
            yield loaded


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_same(trained: Tensor, features: Tensor, index: int) -> None:
    """Check that the backbone computes the same in training, where dropout would be random."""
    if not torch.allclose(trained, features, rtol=SAME, atol=SAME * float(features.abs().max())):
        raise UserError(
            f"`stages.{index}.features`: cached needs a backbone without random layers, and this "
            "one computes other features in training than in evaluation; set its drop_rate and "
            "drop_path_rate in `backbone.args` to 0"
        )


def _read(path: Path, facts: Mapping[str, Any]) -> Tensor | None:
    """Return stored features, or ``None`` if they are not there or damaged."""
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return None
    try:
        tensors, found = read_weights(path)
        if {k: found.get(k) for k in facts} != facts:
            raise UserError(f"{path} holds other features")
        return tensors[NAME]
    except (UserError, KeyError) as error:
        warnings.warn(f"stored features are computed again: {error}", stacklevel=2)
        return None


def _write(path: Path, features: Tensor, facts: Mapping[str, Any]) -> None:
    """Store features; a folder that cannot be written costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, {NAME: features}, facts)
    except (UserError, OSError) as error:
        warnings.warn(f"features are not kept: {error}", stacklevel=2)

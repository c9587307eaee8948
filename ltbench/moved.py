"""Modules under the names they had in the first checkouts, so that older scripts still import."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Former module to those that hold its names now; what is not here did not move or is gone.
MOVED = {
    "aggregate": ("records.aggregate",),
    "api": ("hub.load", "models.create", "evaluation.evaluate"),
    "atomic": ("files",),
    "backbones": ("models",),
    "backbones.base": ("models.backbone", "models.create"),
    "backbones.batchnorm": ("models.batchnorm",),
    "backbones.branches": ("models.branches",),
    "backbones.cifar_resnet": ("models.cifar_resnet",),
    "backbones.loading": ("models.loading",),
    "backbones.residual": ("models.residual",),
    "backbones.resnet": ("models.resnet",),
    "backbones.stages": ("models.stages",),
    "budget": ("config.budget",),
    "checkpoint": ("train.checkpoint", "methods.weights"),
    "curves": ("train.curves",),
    "data.shards.transfer": ("remote.http", "remote.address"),
    "dist": ("distributed.ranks",),
    "environment": ("machine",),
    "epoch_stats": ("train.epoch_stats",),
    "feed": ("train.feed",),
    "freezing": ("train.freezing",),
    "grid": ("train.grid",),
    "heads": ("models.heads",),
    "hub.client": ("remote.hub",),
    "hub.faults": ("remote.faults",),
    "jobs": ("train.jobs",),
    "metrics": ("evaluation.metrics", "data.shots"),
    "optim": ("config.optim", "train.optim"),
    "recipe": ("config.recipe",),
    "record": ("records.record", "records.making"),
    "record_parts": ("records.parts",),
    "registries": ("methods", "updates", "moo", "data", "models"),
    "registry": ("config.registry",),
    "rendezvous": ("distributed.rendezvous",),
    "report": ("train.progress",),
    "resources": ("config.resources",),
    "resume": ("train.resume",),
    "runner": ("train.run", "train.folder", "distributed.device", "methods.build"),
    "schema": ("config.schema",),
    "sealing": ("records.sealing", "digest"),
    "timm_hook": ("models.timm_hook",),
    "trainer": ("train.trainer", "train.stage", "methods.build", "models.batchnorm"),
    "validation": ("config.validation",),
}


class Moved(Loader):
    """Finder and loader of the modules in `MOVED`; each import of one is a DeprecationWarning."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """Return a spec for a former name; any other name is for the next finder."""
        package, _, old = name.partition(".")
        if package != "ltbench" or old not in MOVED:
            return None
        return ModuleSpec(name, Moved(), is_package=any(m.startswith(f"{old}.") for m in MOVED))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that looks names up where they are now."""
        places = [f"ltbench.{place}" for place in MOVED[spec.name.partition(".")[2]]]
        warnings.warn(
            f"{spec.name} has moved to {' and '.join(places)}", DeprecationWarning, stacklevel=2
        )
        return _Elsewhere(spec.name, [importlib.import_module(place) for place in places])

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: the module has no code of its own."""


class _Elsewhere(ModuleType):
    def __init__(self, name: str, places: list[ModuleType]) -> None:
        super().__init__(name, f"Names of {', '.join(place.__name__ for place in places)}.")
        self._places = places

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):  # __path__ would load the same files a second time
            for place in self._places:
                if hasattr(place, name):
                    return getattr(place, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        for place in self.__dict__.get("_places", ()):
            if hasattr(place, name) and not name.startswith("__"):
                setattr(place, name, value)
                return
        super().__setattr__(name, value)


def install() -> None:
    """Add the finder behind all others; once is enough."""
    if Moved not in sys.meta_path:
        sys.meta_path.append(Moved)

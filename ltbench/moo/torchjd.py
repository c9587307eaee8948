from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ltbench.config import schema
from ltbench.errors import UserError, did_you_mean
from ltbench.moo._gram import Rescale, check_preference, factor, scaled_gram
from ltbench.moo.base import Solution, Solver


class TorchJD(Solver):
    """Any Gramian weighting of the torchjd package, such as UPGrad, IMTL-G or aligned MTL.

    Reference: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization,
        arXiv:2406.16232, and the papers named in torchjd's documentation of each weighting.
    Departures: the weighting gets the Gram matrix divided by its mean diagonal, in float64, so that
        small gradients are not lost to its epsilons; its random numbers come from ``seed``. The
        state of a stateful weighting is not saved in checkpoints.
    """

    class Config(schema.Config):
        """Options of a torchjd weighting.

        Args:
            weighting: name, with or without ``Weighting``, case and underscores ignored.
            options: arguments of its constructor, e.g. ``{c: 0.5}`` for CAGrad.
            rescale: ``sum`` multiplies the direction by K.
        """

        weighting: str = "upgrad"
        options: dict[str, int | float | bool | str] = Field(default_factory=dict)
        rescale: Rescale = "none"

    def __init__(self, config: Config) -> None:
        self.config: TorchJD.Config = config
        known = _known(_aggregation())
        key = _key(config.weighting)
        if key not in known:
            raise UserError(
                f"unknown torchjd weighting `{config.weighting}`{did_you_mean(key, known)}; "
                f"known: {', '.join(sorted(known))}"
            )
        try:
            self._weighting = known[key](**config.options)
        except ImportError as error:
            raise UserError(
                f"torchjd's `{known[key].__name__}` needs more packages: "
                f"{' '.join(str(error).split())}"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(
                f"torchjd's `{known[key].__name__}` takes {inspect.signature(known[key])}, "
                f"found options {config.options}: {' '.join(str(error).split())}"
            ) from error

    def solve(
        self,
        gram: ArrayLike,
        *,
        losses: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        seed: int = 0,
    ) -> Solution:
        """Solve for one step; ``preference`` is used by weightings with a ``pref_vector``.

        Raises:
            UserError: the weighting cannot handle this matrix.
        """
        import torch

        from ltbench.seeding import derive

        matrix = scaled_gram(gram)
        size = len(matrix)
        if not matrix.any():
            equal = np.full(size, 1 / size)
            return Solution(equal * factor(self.config.rescale, size), equal, float("nan"))
        if hasattr(self._weighting, "pref_vector"):
            given = None if preference is None else check_preference(preference, size)
            self._weighting.pref_vector = None if given is None else torch.from_numpy(given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "torchjd"))
            try:
                found = self._weighting(torch.from_numpy(matrix)).detach().numpy()
            except (ValueError, ImportError) as error:
                raise UserError(
                    f"torchjd weighting `{self.config.weighting}` rejected {size} objectives; "
                    f"use another weighting or fix its options: {' '.join(str(error).split())}"
                ) from error
        if not np.isfinite(found).all():
            raise UserError(
                f"torchjd weighting `{self.config.weighting}` returned weights that are not finite "
                f"for {size} objectives; use another weighting or a solver of ltbench"
            )
        coefficients = found * factor(self.config.rescale, size)
        return Solution(coefficients, found, float("nan"))


def _aggregation() -> ModuleType:
    try:
        import torchjd.aggregation
    except ImportError as error:
        raise UserError(
            "solver `torchjd` needs the torchjd package, which is not installed; "
            "run `pip install 'ltbench[torchjd]'`"
        ) from error
    module: ModuleType = torchjd.aggregation
    return module


def _known(module: ModuleType) -> dict[str, Any]:
    """Return torchjd's weightings by short name, except those that wrap another weighting."""
    found = {}
    for name in module.__all__:
        part = getattr(module, name)
        if name.endswith("Weighting") and name != "Weighting":
            arguments = inspect.signature(part).parameters
            if not {"weighting", "weights"} & set(arguments):
                found[_key(name)] = part
    return found


def _key(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").removesuffix("weighting")

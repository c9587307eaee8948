"""Options of the updates, by the name of their classes: what a recipe can set, without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ltbench.config.recipe import Choice
from ltbench.config.schema import EPOCHS, Config, Tagged
from ltbench.errors import UserError
from ltbench.moo.certifiable import check_certifiable

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "class_gradients": "fast",
        "from_features": True,
        "mixed_labels": True,
        "statistics_twice": False,
        "collapse_weight": 0.01,
        "collapse_divisor": "all",
        "collapse_in_class_gradients": True,
        "preference": "equal",
        "solver": {"name": "cagrad", "c": 0.5, "rescale": "sum"},
    },
    "official": {
        "class_gradients": "exact",
        "from_features": True,
        "mixed_labels": False,
        "statistics_twice": True,
        "collapse_weight": 0.01,
        "collapse_divisor": "official",
        "collapse_in_class_gradients": False,
        "preference": "class_weights",
        "solver": {"name": "cagrad", "c": 0.5, "rescale": "official"},
    },
}


class Plain(Config):
    """Options of a plain step: none."""


class SAM(Config):
    """Options of SAM."""

    rho: float = Field(0.05, gt=0)
    """Radius of the perturbation."""
    rho_from: dict[int, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, json_schema_extra=EPOCHS
    )
    """Radius from given epochs of the stage on (0-based), e.g. {5: 0.1, 60: 0.5}."""
    part: str | tuple[str, ...] = "whole"
    """Parameters to perturb: whole, backbone, head, last or a stage's name."""
    epochs: int | None = Field(None, ge=1, json_schema_extra=EPOCHS)
    """SAM is active in the first ``epochs`` epochs of the stage; null is all of them."""

    def problems(self, epochs: int | None) -> list[str]:
        """Reject more epochs than the stage has."""
        return _window(self.epochs, epochs)


class FocalSAM(SAM):
    """Options of Focal-SAM in addition to those of SAM."""

    gamma: float = Field(3.0, ge=0)
    """Exponent of (1 - n_k / n) in the share of a class; 0 gives all classes the same."""
    sharpness: float = Field(0.5, ge=0)
    """Lambda: share of the loss of a class without images, taken at the perturbed weights; above 1
    the rest, at the weights themselves, is negative."""


class ImbSAM(SAM):
    """Options of ImbSAM in addition to those of SAM."""

    tail_below: int = Field(20, ge=1)
    """Eta: classes with fewer training images are the tail; SAM acts on these alone."""
    tail_weight: float = Field(1.0, gt=0)
    """Factor of the losses of tail classes; 2 in the released code, 1 in the paper."""


class Plot(Config):
    """Options of PLOT; ``mode`` sets the defaults."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    mode: Literal["paper", "official"] = "paper"
    """Defaults of the other options: the paper's algorithm, or that of the released code."""
    epochs: int | None = Field(None, ge=1, json_schema_extra=EPOCHS)
    """E: PLOT is active in the first ``epochs`` epochs of the stage; null is all of them."""
    part: str | tuple[str, ...] = "last"
    """Parameters under multi-objective control: last, a stage's name, backbone or whole."""
    rho: float = Field(1e-4, ge=0)
    """Radius of the perturbation of ``part``; 0 is none."""
    climb_kept: float = Field(0.0, ge=0, le=1)
    """Share of the perturbation left in the weights (the released code's perturb_radius)."""
    class_gradients: Literal["exact", "fast", "certified"]
    """Computation of class gradients: one backward pass per class; a single one, with an error
    in the solver's weights (mean cosine of the update with the exact one 0.996 to 0.999 on
    CIFAR-LT states); or the same, corrected until the solution is certified."""
    rounds: int = Field(1, ge=1)
    """Maximum number of corrections in ``certified``."""
    tolerance: float = Field(1e-3, ge=0)
    """Duality gap that ends ``certified``, in units of c^2 |g_0|^2."""
    from_features: bool
    """Start the second pass from the input features of ``part`` instead of the images. The
    result is the same, except that random layers before ``part`` keep their first draw. With
    several micro-batches, the second pass always starts from the images."""
    mixed_labels: bool
    """Use both labels of a mixed image in the second pass, instead of the first only."""
    statistics_twice: bool
    """Update running statistics in the second pass too."""
    collapse_weight: float = Field(ge=0)
    """Weight of the variability-collapse term; 0 is none."""
    collapse_divisor: Literal["all", "present", "official"]
    """Mean over all classes, those present, or those with at least two images in the batch."""
    collapse_in_class_gradients: bool
    """Add the term to the class gradients, instead of to the ordinary gradient only."""
    class_gradient: Literal["batch_fraction", "class_mean"] = "batch_fraction"
    """Scale of a class's objective: its share of the batch loss, or its mean."""
    preference: Literal["equal", "class_weights"]
    """Linear term of the solver: equal, or log(n_max/n_k + 0.01)/div over those present."""
    preference_div: float = Field(2.0, gt=0)
    """Divisor `div` of preference `class_weights`."""
    max_classes: int | None = Field(None, ge=1)
    """Maximum number of objectives, drawn anew each step; other classes add their gradient."""
    solver: Annotated[Choice, Tagged("SOLVERS")]
    """Solver that combines the class gradients."""
    after: Annotated[Choice, Tagged("UPDATES")] = Field(default="plain", validate_default=True)
    """Update in the epochs after ``epochs``, e.g. sam."""

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults of ``mode``."""
        return {**PRESETS.get(str(values.get("mode", "paper")), PRESETS["paper"]), **values}

    def problems(self, epochs: int | None) -> list[str]:
        """Reject more epochs than the stage has, and ``certified`` with an unsupported solver."""
        found = _window(self.epochs, epochs)
        if self.class_gradients == "certified":
            try:
                check_certifiable(self.solver.name, self.solver.config)
            except UserError as error:
                found.append(str(error))
        return found


def _window(window: int | None, epochs: int | None) -> list[str]:
    if window is not None and epochs is not None and window > epochs:
        return [f"`epochs` = {window} is longer than the stage's {epochs} epochs"]
    return []

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ltbench import registries, schema
from ltbench.backbones.base import FeatureCache
from ltbench.backbones.batchnorm import frozen_statistics
from ltbench.losses import plot_class_weights
from ltbench.methods.base import Batch, Method, Progress
from ltbench.recipe import Choice
from ltbench.schema import Tagged
from ltbench.seeding import derive
from ltbench.updates.base import Log, StepRun, Update
from ltbench.updates.class_gradients import ClassObjectives, class_jacobian
from ltbench.updates.plain import Plain
from ltbench.updates.sam import check_window, climbed

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "from_features": False,
        "mixed_labels": True,
        "statistics_twice": False,
        "collapse_weight": 0.01,
        "collapse_divisor": "all",
        "collapse_in_class_gradients": True,
        "preference": "equal",
        "solver": {"name": "cagrad", "c": 0.5, "rescale": "sum"},
    },
    "official": {
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


class Plot(Update):
    """PLOT: classes as objectives, resolved by a conflict-averse solver while features form.

    In the first ``epochs`` epochs a step (1) takes the gradient of the method's loss, (2) climbs
    by ``rho`` along it (anticipated worst case), (3) takes there the loss plus the spread of the
    losses inside each class (variability collapse), (4) differentiates each class present in the
    global batch with respect to ``part``, (5) lets the solver weigh them by their Gram matrix and
    (6) steps from the unclimbed weights. All other parameters follow the ordinary gradient of
    (3). Afterwards training is plain.

    Reference: Zhou et al., Pareto Deep Long-Tailed Recognition: A Conflict-Averse Solution,
        ICLR 2024, Eqns 2-6, and the authors' released code for ``mode: official``.
    Departures: the paper gives the variability-collapse term no weight, the released settings
        0.01 or 0.02; 0.01 is the default here, because with 1 the term outweighs the loss of rare
        classes and training starts by making all outputs equal. What the paper leaves open is
        read as follows. Class gradients are those of the
        class's share of the batch loss; classes absent from the batch are no objectives; the
        divisor K of Eqn 2 is the number of classes; a class with one image has no spread. The
        paper's step (``rescale: none``) moves ``part`` K times more slowly than the rest, so both
        modes multiply by the number of classes present, as the released code does. In
        ``official`` mode the solver is exact, where the released SciPy call stops at its start
        point on small gradients (solver ``slsqp`` repeats that), and K is the number of classes
        present. The other known differences between paper and code are this class's options.
    """

    class Config(schema.Config):
        """Options of PLOT; those not given are set by ``mode``."""

        model_config = ConfigDict(arbitrary_types_allowed=True)

        mode: Literal["paper", "official"] = "paper"
        epochs: int | None = Field(None, ge=1)
        """E: the first so many epochs of the stage; null is throughout (the naive use)."""
        part: str | tuple[str, ...] = "last"
        """Parameters under multi-objective control: last, a stage's name, backbone or whole."""
        rho: float = Field(1e-4, ge=0)
        """Radius of the climb on ``part``; 0 leaves it out."""
        climb_kept: float = Field(0.0, ge=0, le=1)
        """Share of the climb left in the weights (the released code's perturb_radius)."""
        from_features: bool
        """Second pass from the features that enter ``part``, instead of from the images."""
        mixed_labels: bool
        """Second pass with both labels of a mixed image, instead of the first alone."""
        statistics_twice: bool
        """Second pass updates the running statistics too."""
        collapse_weight: float = Field(ge=0)
        """Weight of the variability-collapse term; 0 leaves it out."""
        collapse_divisor: Literal["all", "present", "official"]
        """Mean over all classes, those present, or those with two images in the batch."""
        collapse_in_class_gradients: bool
        """Whether the term enters the class gradients, or only the ordinary gradient."""
        class_gradient: Literal["batch_fraction", "class_mean"] = "batch_fraction"
        """Scale of a class's objective: its share of the batch loss, or its mean."""
        preference: Literal["equal", "class_weights"]
        """Linear term of the solver: equal, or log(n_max/n_k + 0.01)/div over those present."""
        preference_div: float = Field(2.0, gt=0)
        max_classes: int | None = Field(None, ge=1)
        """At most so many objectives a step, drawn anew; the others add their ordinary gradient."""
        solver: Annotated[Choice, Tagged("SOLVERS")]

        @classmethod
        def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
            """Fill in what ``mode`` implies."""
            return {**PRESETS.get(str(values.get("mode", "paper")), PRESETS["paper"]), **values}

    config: Config

    def __init__(self, config: schema.Config) -> None:
        super().__init__(config)
        self.solver = registries.SOLVERS.get(self.config.solver.name)(self.config.solver.config)

    @classmethod
    def check(cls, config: schema.Config, method: type[Method], epochs: int | None) -> list[str]:
        """Refuse a window longer than the stage, and a cache before the classifier."""
        problems = check_window(config, epochs)
        if isinstance(config, cls.Config) and config.from_features and config.part == "head":
            problems.append("`from_features` needs a part of the backbone, found `part` = head")
        return problems

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        cfg = self.config
        if cfg.epochs is not None and at.epoch >= cfg.epochs:
            return Plain(cfg).step(run, batches, at)
        part = run.part(cfg.part)
        features: AbstractContextManager[FeatureCache | None] = nullcontext(None)
        if cfg.from_features:
            features = run.method.backbone.cache_before(self._first_stage(run))
        with features as cache:
            run.zero_grad()
            loss, rows = run.backward(batches, at, retain_graph=cache is not None)
            if cache is not None:
                cache.replay()
            with climbed(part, cfg.rho, keep=cfg.climb_kept):
                second = batches if cfg.mixed_labels else [b.unmixed() for b in batches]
                statistics = (
                    nullcontext() if cfg.statistics_twice else frozen_statistics(run.method)
                )
                with statistics:
                    log = self._pareto_gradients(run, second, at, part)
        run.optimizer.step()
        return {"loss": loss, "rows": rows, **log}

    def _first_stage(self, run: StepRun) -> str:
        """Return the stage of the backbone that ``part`` begins with."""
        part = self.config.part
        names = [part] if isinstance(part, str) else list(part)
        if {"whole", "backbone"} & set(names):
            return "whole"
        order = run.method.backbone.stages
        stages = [order[-1] if name == "last" else name for name in names if name != "head"]
        return min(stages, key=lambda name: order.index(name) if name in order else -1)

    def _pareto_gradients(
        self, run: StepRun, batches: Sequence[Batch], at: Progress, part: list[nn.Parameter]
    ) -> Log:
        """Leave the solver's direction in the gradients of ``part``, ordinary ones elsewhere."""
        cfg, counts = self.config, run.method.info.class_counts
        objectives = ClassObjectives.measure(
            run,
            batches,
            at,
            num_classes=len(counts),
            scale=cfg.class_gradient,
            collapse_weight=cfg.collapse_weight,
            collapse_divisor=cfg.collapse_divisor,
            collapse_in_class_gradients=cfg.collapse_in_class_gradients,
        )
        chosen = self._sample(objectives.present, at)
        run.zero_grad()
        jacobian, others = class_jacobian(run, batches, at, objectives, chosen, part)
        gram = gram_matrix(jacobian).cpu().numpy()
        preference = None
        if cfg.preference == "class_weights":
            weights = plot_class_weights(counts, cfg.preference_div)
            preference = weights[chosen.cpu()].double().numpy()
        solution = self.solver.solve(
            gram,
            losses=objectives.means[chosen].double().cpu().numpy(),
            preference=preference,
            seed=derive(at.seed, "solver", at.stage, at.epoch, at.step),
        )
        v = torch.as_tensor(solution.coefficients, device=jacobian.device, dtype=jacobian.dtype)
        write_gradient(part, v @ jacobian + others)
        return {
            "objectives": len(chosen),
            "conflicts": int(((gram < 0).sum()) // 2),
            "gap": solution.gap,
        }

    def _sample(self, present: Tensor, at: Progress) -> Tensor:
        limit = self.config.max_classes
        if limit is None or len(present) <= limit:
            return present
        pick = torch.randperm(len(present), generator=at.generator("classes"))[:limit]
        return present[pick.sort().values.to(present.device)]


def gram_matrix(jacobian: Tensor, chunk: int = 2**16) -> Tensor:
    """Return the inner products of the rows [K, K], summed in double precision by columns."""
    k = len(jacobian)
    gram = jacobian.new_zeros((k, k), dtype=torch.float64)
    for part in torch.split(jacobian, chunk, dim=1):
        double = part.double()
        gram += double @ double.T
    return gram


def write_gradient(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Set the gradients of parameters from one flat vector."""
    sizes = [p.numel() for p in parameters]
    for p, g in zip(parameters, torch.split(flat, sizes), strict=True):
        p.grad = g.view_as(p).to(p.dtype).clone()

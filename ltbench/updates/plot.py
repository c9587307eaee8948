from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ltbench import dist, registries, schema
from ltbench.backbones.base import FeatureCache
from ltbench.backbones.batchnorm import frozen_statistics
from ltbench.class_gradients.certified import check_solver
from ltbench.class_gradients.engine import Engine, Loss, Pass
from ltbench.errors import UserError
from ltbench.losses import plot_class_weights
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.moo.base import Solver
from ltbench.recipe import Choice
from ltbench.schema import Tagged
from ltbench.seeding import derive
from ltbench.updates import pareto
from ltbench.updates.base import Log, StepRun, Update
from ltbench.updates.objectives import ClassObjectives
from ltbench.updates.sam import check_window, climbed

FIXED = 128  # classes up to which absent ones stay in the shapes of `fast`

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
        epochs: int | None = Field(None, ge=1, json_schema_extra=schema.EPOCHS)
        """E: the first so many epochs of the stage; null is throughout (the naive use)."""
        part: str | tuple[str, ...] = "last"
        """Parameters under multi-objective control: last, a stage's name, backbone or whole."""
        rho: float = Field(1e-4, ge=0)
        """Radius of the climb on ``part``; 0 leaves it out."""
        climb_kept: float = Field(0.0, ge=0, le=1)
        """Share of the climb left in the weights (the released code's perturb_radius)."""
        class_gradients: Literal["exact", "fast", "certified"]
        """How class gradients are found: one backward pass per class; one in all, with an error in
        the solver's weights (mean cosine of the update with the exact one 0.996 to 0.999 on
        CIFAR-LT states); or the same, corrected until the solution is certified."""
        rounds: int = Field(1, ge=1)
        """Corrections at most, of ``certified``."""
        tolerance: float = Field(1e-3, ge=0)
        """Duality gap that ends ``certified``, in units of c^2 |g_0|^2."""
        from_features: bool
        """Second pass from the features that enter ``part``, instead of from the images: the same
        but for layers before ``part`` that draw random numbers, which keep their draw. With several
        micro-batches it starts from the images all the same."""
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
        after: Annotated[Choice, Tagged("UPDATES")] = Field(default="plain", validate_default=True)
        """The update of the epochs that follow, e.g. sam."""

        @classmethod
        def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
            """Fill in what ``mode`` implies."""
            return {**PRESETS.get(str(values.get("mode", "paper")), PRESETS["paper"]), **values}

    config: Config

    def __init__(self, config: schema.Config) -> None:
        super().__init__(config)
        self.solver = _solver(self.config.solver)
        after = self.config.after
        self.after: Update = registries.UPDATES.get(after.name)(after.config)
        self._engine: Engine | None = None
        self._epoch = -1  # in which the engine was checked; a method may change with epochs

    @classmethod
    def check(cls, config: schema.Config, method: type[Method], epochs: int | None) -> list[str]:
        """Refuse a window longer than the stage, and a certificate that the solver has not."""
        problems = check_window(config, epochs)
        if isinstance(config, cls.Config) and config.class_gradients == "certified":
            try:
                check_solver(_solver(config.solver))
            except UserError as error:
                problems.append(str(error))
        return problems

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        cfg = self.config
        if cfg.epochs is not None and at.epoch >= cfg.epochs:
            return self.after.step(run, batches, at)
        part = run.part(cfg.part)
        features: AbstractContextManager[FeatureCache | None] = nullcontext(None)
        if cfg.from_features and len(batches) == 1:  # of several, the graphs would be held at once
            features = run.method.backbone.cache_before(self._first_stage(run))
        with features as cache:
            run.zero_grad()
            loss, rows = run.backward(batches, at, parameters=part, retain_graph=cache is not None)
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
        """Return the stage of the backbone that ``part`` begins with, or ``head``."""
        part = self.config.part
        names = [part] if isinstance(part, str) else list(part)
        if {"whole", "backbone"} & set(names):
            return "whole"
        order = [*run.method.backbone.stages, "head"]
        stages = [order[-2] if name == "last" else name for name in names]
        return min(stages, key=order.index)

    def _pareto_gradients(
        self, run: StepRun, batches: Sequence[Batch], at: Progress, part: list[nn.Parameter]
    ) -> Log:
        """Leave the solver's direction in the gradients of ``part``, ordinary ones elsewhere."""
        cfg = self.config
        task = self._task(run, batches, at, part)
        run.zero_grad()
        if cfg.class_gradients == "exact" or not task.engine.works(task.passes[0]):
            found = pareto.exact(task)
        elif cfg.class_gradients == "fast":
            found = pareto.fast(task)
        else:
            found = pareto.certified(task, cfg.tolerance, cfg.rounds)
        task.engine.forget()
        gradients = [*found.ordinary, *found.direction]
        for p, g in zip([*task.rest, *part], gradients, strict=True):
            p.grad = None if g is None else g.to(p.dtype)
        return {
            "objectives": len(found.gram),
            "conflicts": int(((found.gram < 0).sum()) // 2),
            "gap": found.gap,
            "classes": found.classes.astype(int),
            "weights": found.weights,
        }

    def _task(
        self, run: StepRun, batches: Sequence[Batch], at: Progress, part: list[nn.Parameter]
    ) -> pareto.Task:
        """Run the forward pass and say what is to be solved."""
        cfg, counts = self.config, run.method.info.class_counts
        if self._engine is None or self._engine.part != part:
            self._engine = Engine(run.method, part)
        if at.epoch != self._epoch:
            self._engine.check_again()
            self._epoch = at.epoch
        engine, shared = self._engine, False
        outs: list[Rows] = []

        def forward(micro: int) -> Loss:
            out = run.loss(batches[micro], replace(at, micro=micro))
            if len(outs) == micro:
                outs.append(out)
            return out.rows, out.shared

        forwards = [
            pareto.repeatable(partial(forward, micro), run.method) for micro in range(len(batches))
        ]
        one = len(batches) == 1
        record = nullcontext() if cfg.class_gradients == "exact" else engine.recording()
        with record, torch.set_grad_enabled(one):
            losses = [again() for again in forwards]
        objectives = ClassObjectives.measure(
            outs,
            num_classes=len(counts),
            scale=cfg.class_gradient,
            collapse_weight=cfg.collapse_weight,
            collapse_divisor=cfg.collapse_divisor,
            collapse_in_class_gradients=cfg.collapse_in_class_gradients,
        )
        chosen = self._choose(objectives.counts, at)
        place = torch.full_like(objectives.counts, len(chosen), dtype=torch.int64)
        place[chosen] = torch.arange(len(chosen), device=place.device)
        passes = []
        for again, out, loss in zip(forwards, outs, losses, strict=True):
            own, ordinary = objectives.cotangents(out)
            share = 1 / (dist.world() * len(batches))
            kept = loss if one else None
            passes.append(Pass(again, place[out.labels], own, ordinary, share, kept))
            shared |= out.shared is not None
        inside = {id(p) for p in part}
        return pareto.Task(
            engine=engine,
            passes=passes,
            objectives=objectives,
            chosen=chosen,
            rest=[p for p in run.parameters if id(p) not in inside],
            solver=self.solver,
            preference=(
                plot_class_weights(counts, cfg.preference_div)
                if cfg.preference == "class_weights"
                else None
            ),
            seed=derive(at.seed, "solver", at.stage, at.epoch, at.step),
            shared=shared,
        )

    def _choose(self, counts: Tensor, at: Progress) -> Tensor:
        """Return the classes that may be objectives, ascending: those present, or a draw of them.

        On an accelerator, ``fast`` takes absent ones along where there are not many classes: shapes
        stay the same from step to step, and nothing has to be read back from the device.
        """
        limit = self.config.max_classes
        fixed = self.config.class_gradients == "fast" and _on_accelerator(counts)
        if limit is not None and limit < len(counts):
            keys = torch.rand(len(counts), generator=at.generator("classes")).to(counts.device)
            drawn = torch.topk(keys + (counts > 0), limit).indices.sort().values
            return drawn if fixed else drawn[counts[drawn] > 0]
        if fixed and len(counts) <= FIXED:
            return torch.arange(len(counts), device=counts.device)
        return counts.nonzero()[:, 0]


def _on_accelerator(counts: Tensor) -> bool:
    return counts.device.type != "cpu"


def _solver(choice: Choice) -> Solver:
    return registries.SOLVERS.get(choice.name)(choice.config)

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ltbench.class_gradients.engine import Engine, Loss, Pass
from ltbench.config import schema
from ltbench.config.recipe import Choice
from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.errors import UserError
from ltbench.losses import plot_class_weights
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.models.backbone import FeatureCache
from ltbench.models.batchnorm import frozen_statistics
from ltbench.moo import SOLVERS
from ltbench.moo.base import Solver
from ltbench.seeding import derive
from ltbench.updates import UPDATES, options, pareto
from ltbench.updates.base import Log, StepRun, Update
from ltbench.updates.objectives import ClassObjectives
from ltbench.updates.sam import perturbed

FIXED = 128  # number of classes up to which absent ones are kept, for constant shapes


class Plot(Update):
    """PLOT: each class is an objective, and a conflict-averse solver combines them in early epochs.

    In the first ``epochs`` epochs a step (1) computes the gradient of the method's loss, (2) moves
    ``part`` by ``rho`` along it (anticipated worst case), (3) computes there the loss plus the
    spread of the losses within each class (variability collapse), (4) differentiates the loss of
    each class present in the global batch with respect to ``part``, (5) combines these gradients
    by the solver, from their Gram matrix, and (6) steps from the unperturbed weights. All other
    parameters follow the ordinary gradient of (3). Afterwards training is plain.

    Reference: Zhou et al., Pareto Deep Long-Tailed Recognition: A Conflict-Averse Solution,
        ICLR 2024, https://openreview.net/forum?id=b66P1u0k15, Eqns 2-6, and the authors'
        released code for ``mode: official``.
    Departures: the paper gives the variability-collapse term no weight, the released settings
        0.01 or 0.02; 0.01 is the default here, because with 1 the term outweighs the loss of rare
        classes and training starts by making all outputs equal. Where the paper is silent: a
        class's objective is its share of the batch loss; classes absent from the batch are no
        objectives; the divisor K of Eqn 2 is the number of classes; a class with one image has no
        spread. The
        paper's step (``rescale: none``) moves ``part`` K times more slowly than the rest, so both
        modes multiply by the number of classes present, as the released code does. In
        ``official`` mode the solver is exact, where the released SciPy call stops at its start
        point on small gradients (solver ``slsqp`` repeats that), and K is the number of classes
        present. The other known differences between paper and code are this class's options.
    """

    Config = options.Plot
    config: options.Plot

    def __init__(self, config: schema.Config) -> None:
        super().__init__(config)
        self.solver = _solver(self.config.solver)
        after = self.config.after
        self.after: Update = UPDATES.get(after.name)(after.config)
        self._engine: Engine | None = None
        self._epoch = -1  # of the last check of the engine; a method may change with epochs

    def _part(self, run: StepRun, at: Progress) -> list[nn.Parameter]:
        """Return the parameters of the part.

        Raises:
            UserError: the network has no such part.
        """
        try:
            return run.part(self.config.part)
        except UserError as error:
            raise UserError(
                f"{error}; set `stages.{at.stage}.update.part=whole`: class gradients of the whole "
                "network (a step of ResNet-32 then takes 3.7 plain steps, not 1.55)"
            ) from error

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        cfg = self.config
        if cfg.epochs is not None and at.epoch >= cfg.epochs:
            return self.after.step(run, batches, at)
        drawn = self._drawn(run, batches[0].labels.device, at)
        with ExitStack() as opened:
            first = partial(self._first_phase, run, batches, at, opened)
            begun = run.phases.run("PLOT, class gradients", first, *drawn)
            seed = derive(at.seed, "solver", at.stage, at.epoch, at.step)
            if begun.measured is None:
                found, solved = self._slowly(begun.task, seed)
                self._set(run, begun, found, opened)
            else:
                coefficients, solved = pareto.solved(begun.measured, seed)
                second = partial(self._second_phase, run, begun, opened)
                run.phases.run("PLOT, direction", second, coefficients)
        run.optimizer.step()
        return {
            "loss": begun.loss,
            "rows": begun.rows,
            "objectives": len(solved.gram),
            "conflicts": int(((solved.gram < 0).sum()) // 2),
            "gap": solved.gap,
            "classes": solved.classes.astype(int),
            "weights": solved.weights,
        }

    def _first_phase(
        self,
        run: StepRun,
        batches: Sequence[Batch],
        at: Progress,
        opened: ExitStack,
        *drawn: Tensor,
    ) -> _Begun:
        """Climb, and compute the class gradients there; ``opened`` leads back to the weights."""
        if (mode := self.config.class_gradients) != "fast":
            run.phases.refuse(f"PLOT reads numbers on the way to {mode} class gradients")
        part = self._part(run, at)
        loss, rows, second = self.climb(run, batches, at, part, opened)
        task = self._task(run, second, at, part, drawn)
        run.zero_grad()
        measured = pareto.measured(task) if self._is_fast(run, task) else None
        return _Begun(loss, rows, part, task, measured)

    def _second_phase(
        self, run: StepRun, begun: _Begun, opened: ExitStack, coefficients: Tensor
    ) -> None:
        """Set ``.grad`` for the solver's coefficients, and go back to the weights."""
        assert begun.measured is not None
        self._set(run, begun, pareto.mixed(begun.measured, coefficients), opened)

    def climb(
        self,
        run: StepRun,
        batches: Sequence[Batch],
        at: Progress,
        part: list[nn.Parameter],
        opened: ExitStack,
    ) -> tuple[Tensor, list[Rows], Sequence[Batch]]:
        """Move the part along the gradient of the loss.

        Args:
            run: context of the step.
            batches: prepared micro-batches of this rank.
            at: progress of training.
            part: parameters of the part.
            opened: gets the contexts of the second pass; it leads back to the weights.

        Returns:
            The loss and its rows, and the batches of the second pass.
        """
        cfg = self.config
        features: AbstractContextManager[FeatureCache | None] = nullcontext(None)
        if cfg.from_features and len(batches) == 1:  # several would hold all graphs at once
            features = run.method.backbone.cache_before(self._first_stage(run))
        cache = opened.enter_context(features)
        run.zero_grad()
        loss, rows = run.backward(batches, at, parameters=part, retain_graph=cache is not None)
        if cache is not None:
            cache.replay()
        opened.enter_context(perturbed(part, cfg.rho, keep=cfg.climb_kept))
        if not cfg.statistics_twice:
            opened.enter_context(frozen_statistics(run.method))
        return loss, rows, batches if cfg.mixed_labels else [b.unmixed() for b in batches]

    def _first_stage(self, run: StepRun) -> str:
        """Return the first stage of the backbone in ``part``, or ``head``."""
        part = self.config.part
        names = [part] if isinstance(part, str) else list(part)
        if {"whole", "backbone"} & set(names):
            return "whole"
        order = [*run.method.backbone.stages, "head"]
        stages = [order[-2] if name == "last" else name for name in names]
        return min(stages, key=order.index)

    def _is_fast(self, run: StepRun, task: pareto.Task) -> bool:
        """Return whether class gradients are the approximate ones, and only those."""
        mode, engine = self.config.class_gradients, task.engine
        if mode == "exact":
            return False
        with run.phases.check() if engine.problem is None else nullcontext():
            supported = engine.supports_fast(task.passes[0])
        if not supported:
            run.phases.refuse(f"PLOT takes exact class gradients ({engine.problem})")
        return supported and mode == "fast"

    def _slowly(self, task: pareto.Task, seed: int) -> tuple[pareto.Direction, pareto.Solved]:
        """Solve with class gradients that the host has to read from."""
        cfg = self.config
        if cfg.class_gradients == "certified" and not task.engine.problem:
            return pareto.certified(task, cfg.tolerance, cfg.rounds)
        return pareto.exact(task, seed)

    def _set(self, run: StepRun, begun: _Begun, found: pareto.Direction, opened: ExitStack) -> None:
        """Set ``.grad``: the solver's direction in the part, the ordinary gradient elsewhere."""
        gradients = [*found.ordinary, *found.direction]
        for p, g in zip([*begun.task.rest, *begun.part], gradients, strict=True):
            p.grad = None if g is None else g.to(p.dtype)
        begun.task.release()
        opened.close()

    def _task(
        self,
        run: StepRun,
        batches: Sequence[Batch],
        at: Progress,
        part: list[nn.Parameter],
        drawn: Sequence[Tensor],
    ) -> pareto.Task:
        """Run the forward passes and return the multi-objective problem."""
        cfg, counts = self.config, run.method.info.class_counts
        if self._engine is None or self._engine.part != part:
            self._engine = Engine(run.method, part)
        if at.epoch != self._epoch:
            self._engine.reset()
            self._epoch = at.epoch
        engine, shared = self._engine, False
        outs: list[Rows] = []

        def forward(micro: int) -> Loss:
            out = run.loss(batches[micro], replace(at, micro=micro))
            if len(outs) == micro:
                outs.append(out)
            return out.rows, out.shared

        one = len(batches) == 1
        forwards: list[Callable[[], Loss]] = [
            partial(forward, micro) for micro in range(len(batches))
        ]
        if not one or cfg.class_gradients == "certified":  # else the graph of one call is enough
            forwards = [pareto.repeatable(again, run.method) for again in forwards]
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
        chosen = self._choose(objectives.counts, drawn)
        every = len(chosen) == len(counts)  # then each label is its own place
        if not every:
            place = torch.full_like(objectives.counts, len(chosen), dtype=torch.int64)
            place[chosen] = torch.arange(len(chosen), device=place.device)
        passes = []
        for again, out, loss in zip(forwards, outs, losses, strict=True):
            own, ordinary = objectives.cotangents(out)
            share = 1 / (ranks.world() * len(batches))
            kept = loss if one else None
            where = out.labels if every else place[out.labels]
            passes.append(Pass(again, where, own, ordinary, share, kept, out.images))
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
            shared=shared,
        )

    def _drawn(self, run: StepRun, device: torch.device, at: Progress) -> list[Tensor]:
        """Return the random numbers that objectives are chosen by [C], if not all classes are."""
        size, limit = run.method.info.num_classes, self.config.max_classes
        if limit is None or limit >= size:
            return []
        return [to_device(torch.rand(size, generator=at.generator("classes")), device)]

    def _choose(self, counts: Tensor, drawn: Sequence[Tensor]) -> Tensor:
        """Return the candidate objectives, ascending: the classes present, or a sample of them.

        On an accelerator absent classes stay unless there are many: shapes are then the same from
        step to step, and nothing has to be read back from the device.
        """
        limit, fixed = self.config.max_classes, _on_accelerator(counts)
        if limit is not None and drawn:
            (keys,) = drawn
            found = torch.topk(keys + (counts > 0), limit).indices.sort().values
            return found if fixed else found[counts[found] > 0]
        if fixed and len(counts) <= FIXED:
            return torch.arange(len(counts), device=counts.device)
        return counts.nonzero()[:, 0]


@dataclass
class _Begun:
    """A PLOT step after its first phase.

    Args:
        loss: at the weights.
        rows: detached rows of each micro-batch.
        part: parameters of the part.
        task: multi-objective problem.
        measured: approximate class gradients, ``None`` if others are needed.
    """

    loss: Tensor
    rows: list[Rows]
    part: list[nn.Parameter]
    task: pareto.Task
    measured: pareto.Measured | None


def _on_accelerator(counts: Tensor) -> bool:
    return counts.device.type != "cpu"


def _solver(choice: Choice) -> Solver:
    return SOLVERS.get(choice.name)(choice.config)

"""Training steps captured in CUDA graphs (``run.compile=graphs``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.train.graph_checks import BY_STEP, Reads, State, Watched, changed, python_state
from ltbench.train.static_batch import StaticBatch
from ltbench.updates.phases import Phases

LOG = logging.getLogger(__name__)
T = TypeVar("T")
Mode = Literal["eager", "watch", "capture", "replay"]
WATCHED = 2  # steps of an epoch at most: constants may be made at the first use


class Graphs(Protocol):
    """Device that captures work in graphs; `CudaGraphs` is the real one."""

    def eager(self) -> AbstractContextManager[None]:
        """Return a context for work that is done before the same work is captured."""
        ...

    def start_over(self) -> None:
        """Prepare for captures after all earlier graphs were dropped."""
        ...

    def capture(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Do work once, and return its result and a function that does it again.

        The work is done again on the same tensors, without Python: it rewrites its results in
        place.
        """
        ...


class CudaGraphs:
    """CUDA graphs of a device, captured on one stream, with their memory in one pool.

    They share memory because they are replayed in the order of their capture, and because what one
    leaves to the next is held until that one is captured.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def start_over(self) -> None:
        """Take other memory: a pool that outlives its graphs in a tensor cannot be joined again."""
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Context manager of work on the stream of the captures.

        Libraries prepare themselves for a stream at its first use, and a gradient is accumulated on
        the stream where its parameter was first used in a pass.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Capture work, run the graph, and return the work's result and the graph's ``replay``.

        Raises:
            UserError: CUDA cannot capture the work.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Loaders and checkpoints of other threads may go on using the device.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = work()
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            first = str(error).partition("\n")[0]
            raise UserError(
                f"`run.compile=graphs`: this step cannot be captured ({first}); leave run.compile "
                "out"
            ) from error
        graph.replay()  # a capture runs nothing
        return result, graph.replay


@dataclass
class _Phase:
    """A captured phase.

    Args:
        inputs: tensors of its inputs.
        replay: does it again.
        result: what its work returned; the tensors are rewritten by each replay.
        gradients: ``.grad`` of the parameters at its end.
    """

    inputs: Sequence[Tensor]
    replay: Callable[[], None]
    result: Any
    gradients: list[Tensor | None]


class CapturedPhases(Phases):
    """Phases of steps that are captured in graphs, then replayed instead of being run.

    Of the steps of one shape the first is run eagerly and watched, the second captured and the
    others replayed. Steps of other shapes are eager, and so are all of an epoch whose watched steps
    show that a graph would go wrong: the loss reads the number of the step or values of the
    device, or changes the method in Python. The reason is logged once.

    Graphs are kept for the next epoch if the loss does not depend on the epoch and the method is
    the same; otherwise they are captured anew.

    Args:
        method: of the stage.
        graphs: captures work on a device.
        off: why no step can be captured, or an empty text.
    """

    def __init__(self, method: Method, graphs: Graphs, off: str = "") -> None:
        self._method, self._graphs = method, graphs
        self._parameters = [p for p in method.parameters() if p.requires_grad]
        self._said: set[str] = set()
        self._off = bool(off)
        if off:
            self._say(off)
        self._epoch = -1
        self._mode: Mode = "eager"  # of the phases of the current step
        self._next: Mode = "watch"  # of the next step that is not of another shape
        self._batch: StaticBatch | None = None
        self._phases: dict[str, _Phase] = {}
        self._watched: set[str] = set()  # names of the phases of the watched step
        self._ran = False  # whether a phase of the current step has been run
        self._reads = Reads(self.refuse)
        self._state: State = {}  # of the method before the watched step
        self._tensors: list[tuple[dict[str, Any], str, Tensor]] = []
        self._by_epoch = False  # the loss depends on the epoch
        self._reason = ""  # not to capture the watched step
        self._tries = 0  # number of watched steps with a reason not to capture

    @contextmanager
    def step(self, batches: list[Batch], at: Progress) -> Iterator[list[Batch]]:
        """Context manager of one step, which takes the batches that are yielded instead.

        Args:
            batches: prepared micro-batches.
            at: position of the step.
        """
        if self._off or len(batches) != 1:
            yield batches
            return
        if at.epoch != self._epoch:
            self._begin_epoch(at.epoch)
        self._compare()
        if self._next == "eager" or (self._batch and not self._batch.fits(batches[0])):
            yield batches
            return
        if self._batch is None:
            self._batch = StaticBatch(batches[0])
        else:
            self._batch.fill(batches[0])
        self._mode, self._ran = self._next, False
        try:
            yield [self._batch.batch]
            self._next = self._following()
        finally:
            self._mode = "eager"

    def run(self, name: str, work: Callable[..., T], *inputs: Tensor) -> T:
        """Do a phase: call its work, capture it or replay it."""
        known = {"capture": self._watched, "replay": self._phases}.get(self._mode, (name,))
        if name not in known:
            if self._ran:
                raise RuntimeError(f"phase `{name}` is not one of the watched step")
            self._start_over()  # steps of another kind begin, e.g. plain ones after those of PLOT
            self._compare()
            self._mode = "watch"
        self._ran = True
        if self._mode == "eager":
            return work(*inputs)
        if self._mode == "watch":
            self._watched.add(name)
            with self._graphs.eager(), self._reads:
                return work(*inputs)
        if self._mode == "capture":
            return self._captured(name, work, inputs)
        phase = self._phases[name]
        for own, new in zip(phase.inputs, inputs, strict=True):
            own.copy_(new)
        phase.replay()
        for p, g in zip(self._parameters, phase.gradients, strict=True):
            p.grad = g
        result: T = phase.result
        return result

    def loss(self, call: Callable[[Batch, Progress], Rows], batch: Batch, at: Progress) -> Rows:
        """Return the rows of a method's loss, and note what it reads and changes."""
        if self._mode != "watch":
            return call(batch, at)
        before = python_state(self._method)
        out = call(batch, Watched.of(at, self._depends))
        if name := changed(before, python_state(self._method)):
            self.refuse(f"the loss changes `{name}` of the method")
        return out

    def check(self) -> AbstractContextManager[None]:
        """Return a context for a check that reads values in the watched step only."""
        if self._mode == "capture":
            raise RuntimeError("a check belongs to the watched step, before the capture")
        return self._reads.paused() if self._mode == "watch" else nullcontext()

    def refuse(self, reason: str) -> None:
        """Capture no step of the epoch."""
        if self._mode == "watch" and not self._reason:
            self._reason = reason

    def _captured(self, name: str, work: Callable[..., T], inputs: Sequence[Tensor]) -> T:
        own = [x.clone() for x in inputs]
        result, replay = self._graphs.capture(partial(work, *own))
        gradients = [p.grad for p in self._parameters]
        self._phases[name] = _Phase(own, replay, result, gradients)
        return result

    def _begin_epoch(self, epoch: int) -> None:
        """Forget the graphs, unless they are those of the new epoch too."""
        self._epoch, method = epoch, type(self._method)
        calls = (method.on_epoch, method.examine)  # may change what only the method knows
        kept = calls == (Method.on_epoch, Method.examine) and not self._by_epoch
        if self._next != "replay" or not kept or changed(self._state, python_state(self._method)):
            self._start_over()

    def _start_over(self) -> None:
        """Watch the next step."""
        if self._phases:
            self._phases.clear()
            self._graphs.start_over()
        self._watched.clear()
        self._next, self._batch, self._state, self._tensors = "watch", None, {}, []
        self._by_epoch, self._reason, self._tries = False, "", 0

    def _compare(self) -> None:
        """Compare the method with that of the watched step."""
        name = ""
        if self._next == "watch":
            self._state = python_state(self._method)
            self._tensors = list(_homes(self._method))
        elif self._next == "capture":
            name = changed(self._state, python_state(self._method))
        elif self._next == "replay":
            name = next((n for home, n, t in self._tensors if home.get(n) is not t), "")
        if name:
            self._next = "eager"
            self._say(f"`{name}` of the method is replaced from step to step")

    def _following(self) -> Mode:
        """Return the mode of the step after one that was made."""
        if self._mode != "watch":
            return "replay"
        if self._reason:
            self._tries += 1
            if self._tries < WATCHED:
                self._watched.clear()
                self._reason = ""
                return "watch"
            self._say(self._reason)
        elif self._watched:
            return "capture"
        else:
            self._say("the update has no phases")
        return "eager"

    def _depends(self, name: str) -> None:
        if name in BY_STEP:
            self.refuse("the loss reads the number of the step")
        else:
            self._by_epoch = True

    def _say(self, reason: str) -> None:
        """Log a reason, once."""
        if reason not in self._said and ranks.is_main():
            self._said.add(reason)
            LOG.warning("run.compile=graphs: steps are run without graphs: %s", reason)


def _homes(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield where a module holds its tensors, with their names there."""
    for part in module.modules():
        for home in (part._parameters, part._buffers):
            for name, tensor in home.items():
                if tensor is not None:
                    yield home, name, tensor


def uncaptured(world: int, passes: int) -> str:
    """Return why no step of a stage is captured, or an empty text.

    Args:
        world: number of ranks.
        passes: forward and backward passes over micro-batches of a step.
    """
    if world > 1:
        return f"{world} ranks train together"
    return f"a step takes {passes} micro-batches" if passes > 1 else ""

"""A pretended GPU: tensors that say ``cuda:0`` and hold CPU values; operations are counted.

Control flow, devices and values are real; kernels do not run. Counts of kernels are those of ATen's
own CUDA code, without what cuDNN and cuBLAS add: a lower bound, about 10 % below. It runs in a
process with the environment of `runtime`.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.emulated_norm import OPERATIONS

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
PACKAGE = "/ltbench/"

# Operations whose result's shape or value the host reads.
READS = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "repeat_interleave": "repeat_interleave",
    "_linalg_eigh": "eigh",
    "is_nonzero": "bool",
    "histc": "histc",
}
# Operations without a kernel.
FREE = {
    "detach alias lift_fresh lift empty empty_like empty_strided new_empty new_empty_strided",
    "_reshape_alias is_pinned _has_same_storage_numel _local_scalar_dense resize_ set_",
    "is_same_size sym_size _version",
}
FREE = {name for line in FREE for name in line.split()}
SEVERAL = {"sort": 3, "topk": 3, "argsort": 3, "nonzero": 3, "_unique2": 8, "randperm": 5}
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # of multi_tensor_apply, by lists
SHAPES_IN_PLACE = {"squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
STRICT = {"mm", "bmm", "addmm", "index_add_", "index_add", "cat", "stack", "gather", "index_select"}


class Pretended(Tensor):
    """A tensor on the pretended GPU."""

    held: Tensor  # its values, on the CPU

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
            requires_grad=held.requires_grad,
            dispatch_layout=False,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *args: Any, **more: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert GPU.current is not None
        return GPU.current.handle(func, args, kwargs or {})


def to_gpu(x: Tensor) -> Tensor:
    """Return a CPU tensor on the pretended GPU, as a loader would have put it there."""
    return Pretended(x)


class GPU(TorchDispatchMode):
    """The pretended GPU; active as a context manager.

    ``waits`` and ``errors`` count (what, lines of the package) pairs, ``kernels`` launches by
    operation, ``lines`` launches by the innermost line of the package, ``collectives`` lists
    (name, bytes, line).
    """

    current: GPU | None = None

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.collectives: list[tuple[str, int, str]] = []
        self.phase = "other"

    def __enter__(self) -> GPU:
        GPU.current = self
        torch._C._set_only_lift_cpu_tensors(True)
        # Optimizers take their multi-tensor code, and modules move to tensors of another class.
        _foreach_supported_types.append(Pretended)  # type: ignore[arg-type]
        torch.__future__.set_swap_module_params_on_conversion(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(False)
        _foreach_supported_types.remove(Pretended)  # type: ignore[arg-type]
        torch._C._set_only_lift_cpu_tensors(False)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count kernels under a phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on the CPU values, and note what a GPU would have done."""
        space, _, name = func._schema.name.partition("::")
        flat = tree_flatten((args, kwargs))[0]
        if any(_made_by_runtime(x) for x in flat):
            args, kwargs = tree_map(self._adopted, (args, kwargs))
            if name == "lift_fresh":
                return args[0]
            flat = tree_flatten((args, kwargs))[0]
        here = [x for x in flat if isinstance(x, Pretended)]
        host = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Pretended)]
        if space == "c10d":
            return self._collective(func, name, args, kwargs, here, host)
        device = kwargs.get("device")
        target = None if device is None else torch.device(device).type
        if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat) and (
            here or target == "cuda"
        ):
            self._error(f"CPU generator for a CUDA tensor in {name}")
        args, kwargs = tree_map(_without_cuda_generator, (args, kwargs))
        self._judge(name, args, kwargs, here, host, target)
        wrapped = (bool(here) or target == "cuda") and not self._to_host(name, args, target)
        if here and name in SHAPES_IN_PLACE:
            return _reshaped(func, args, kwargs)
        plain_args, plain = tree_map(_held, (args, kwargs))
        if target == "cuda":
            plain["device"] = CPU
        if wrapped or here:
            plain.pop("pin_memory", None)
        out = _run(func, name, plain_args, plain)
        if name == "_local_scalar_dense":
            return out
        if wrapped or here:
            self._count(func, name, args, out)
        return _wrapped(func, args, kwargs, out) if wrapped else out

    def _to_host(self, name: str, args: Any, target: str | None) -> bool:
        if name == "_to_copy":
            return target == "cpu"
        return name == "copy_" and not isinstance(args[0], Pretended)

    def _judge(
        self,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        here: Sequence[Tensor],
        host: Sequence[Tensor],
        target: str | None,
    ) -> None:
        """Note waits of the host and operations that would fail on a GPU."""
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            if name == "_to_copy":
                to = {"cpu": False, "cuda": True}.get(target or "", isinstance(source, Pretended))
                free = kwargs.get("non_blocking", False)
            else:
                to = isinstance(args[0], Pretended)
                free = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if isinstance(source, Pretended) and not to and not free:
                self._wait("device to host")
            if not isinstance(source, Pretended) and to and source.numel():
                if not free:
                    self._wait(f"host to device, {tuple(source.shape)}")
                elif not source.is_pinned():
                    self._wait(f"host to device from pageable memory, {tuple(source.shape)}")
        elif name in INDEXING:
            if not isinstance(args[0], Pretended):
                if here:
                    self._error(f"CPU tensor indexed by a CUDA tensor in {name}")
                return
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self._wait("boolean index")
                if index is not None and not isinstance(index, Pretended):
                    self._wait("index on the CPU")
        elif here and host:
            if any(x.dim() > 0 for x in host):
                self._error(f"tensors on two devices in {name}")
            elif name in STRICT:
                self._error(f"0-dim CPU tensor in {name}")
        if here and name in READS:
            self._wait(READS[name])

    def _adopted(self, x: Any) -> Any:
        """Return a pretended tensor for a constant that torch made on the device from Python."""
        if not _made_by_runtime(x):
            return x
        self._wait(f"constant from Python, {tuple(x.shape)}")
        self.kernels["_to_copy"] += 1
        self.phases[self.phase] += 1
        buffer = (ctypes.c_char * x.nbytes).from_address(torch._C.TensorBase.data_ptr(x))
        return Pretended(torch.frombuffer(bytearray(buffer), dtype=x.dtype).view(x.shape).clone())

    def _count(self, func: Any, name: str, args: Any, out: Any) -> None:
        made = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if made and not any(x.numel() for x in made):
            return
        returns = func._schema.returns
        view = bool(returns) and all(
            r.alias_info is not None and not r.alias_info.is_write for r in returns
        )
        launches = 0 if name in FREE or view else _launches(name, args)
        if launches:
            self.kernels[name] += launches
            self.phases[self.phase] += launches
            self.lines[(_lines() or ["backward"])[0]] += launches

    def _collective(
        self, func: Any, name: str, args: Any, kwargs: Any, here: Sequence[Tensor], host: Any
    ) -> Any:
        if any(x.numel() for x in host):
            self._error(f"{name} of a CPU tensor")
        size = sum(x.numel() * x.element_size() for x in here)
        self.collectives.append((name, size, (_lines() or [""])[0]))
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        return (args[0], out[-1]) if isinstance(out, tuple) else out

    def _wait(self, what: str) -> None:
        self.waits[what, " < ".join(_lines()[:3]) or "backward"] += 1

    def _error(self, what: str) -> None:
        self.errors[what, " < ".join(_lines()[:3]) or "backward"] += 1


def _made_by_runtime(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, Pretended) and x.device.type == "cuda"


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Pretended) else x


def _without_cuda_generator(x: Any) -> Any:
    return None if isinstance(x, torch.Generator) and x.device.type == "cuda" else x


def _lines() -> list[str]:
    """Return the lines of the package in the stack, innermost first."""
    found = []
    frame = sys._getframe(1)
    while frame is not None:
        _, is_ours, path = frame.f_code.co_filename.rpartition(PACKAGE)
        if is_ours:
            found.append(f"{path}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return found


def _run(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run an operation on CPU tensors; those of CUDA alone by their counterparts."""
    if name == "cudnn_batch_norm":
        x, weight, bias, mean, var, training, momentum, eps = args
        out = torch.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
        return (*out, torch.empty(0, dtype=torch.uint8))
    if name == "cudnn_batch_norm_backward":
        x, gradient, weight, mean, var, own_mean, own_var, eps, _ = args
        return torch.ops.aten.native_batch_norm_backward(
            *(gradient.to(x.dtype), x, weight, mean, var, own_mean, own_var, True, eps),
            [True, True, True],
        )
    if name in OPERATIONS:
        return OPERATIONS[name](*args, **kwargs)
    if name == "_efficientzerotensor":
        return torch.zeros(args[0], dtype=kwargs.get("dtype"))
    return func(*args, **kwargs)


def _wrapped(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """Return the results as pretended tensors; in-place operations return their argument."""
    known: dict[int, Any] = {}
    if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
        flat = tree_flatten((args, kwargs))[0]
        known = {id(x.held): x for x in flat if isinstance(x, Pretended)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, Pretended):
            return x
        return known[id(x)] if id(x) in known else Pretended(x)

    return tree_map(wrap, out)


def _reshaped(func: Any, args: Any, kwargs: Any) -> Any:
    """Change the shape of a pretended tensor in place."""
    func(*tree_map(_held, args), **tree_map(_held, kwargs))
    whole, key = args[0], torch._C.DispatchKey
    python = torch._C.DispatchKeySet(key.Python) | torch._C.DispatchKeySet(key.PythonTLSSnapshot)
    with torch._C._ExcludeDispatchKeyGuard(python):
        held = whole.held
        torch.ops.aten.as_strided_.default(
            whole, list(held.size()), list(held.stride()), held.storage_offset()
        )
    return whole


def _launches(name: str, args: Any) -> int:
    """Return the number of kernels of an operation."""
    if name == "convolution_backward":
        return sum(map(bool, args[-1]))
    if name.startswith(("_foreach_", "_fused_")):
        lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
        if not lists:
            return 0
        if name.startswith("_foreach_") and not _same_strides(lists):
            return len(lists[0])  # ATen then takes one tensor after another
        sizes = [t.numel() for t in lists[0]]
        if name == "_foreach_norm":
            return _multi_tensor(sizes, 1) + 2
        made = 0 if name.endswith("_") else 1
        deep = len(lists) + made
        return _multi_tensor(sizes, min(max(deep, 2 if name.startswith("_fused_") else 1), 5))
    if name == "cat":
        return max(1, -(-len(args[0]) // 128))
    return SEVERAL.get(name, 1)


def _same_strides(lists: Sequence[Sequence[Tensor]]) -> bool:
    return all(len({t.stride() for t in ts if t.dim()}) <= 1 for ts in zip(*lists, strict=False))


def _multi_tensor(sizes: Sequence[int], lists: int, chunk: int = 65536, blocks: int = 320) -> int:
    """Return the launches of ATen's multi_tensor_apply on tensors of some sizes."""
    launches = tensors = held = 0
    for n in sizes:
        tensors += n > 0
        chunks = -(-n // chunk)
        for c in range(chunks):
            held += 1
            last = c == chunks - 1
            if (tensors == TENSORS_PER_LAUNCH[lists] and last) or held == blocks:
                launches, held, tensors = launches + 1, 0, 0 if last else 1
    return launches + (held > 0)

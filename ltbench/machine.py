"""Hardware and software of a run, without host, user or path names."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.version import __version__

if TYPE_CHECKING:
    from torch import device

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "torchjd")
JOBS = "LTBENCH_JOBS"  # environment variable: number of runs at the same time
SOURCES = ("ltbench", "recipes", "pyproject.toml")  # paths of a checkout that can affect a run


def environment() -> dict[str, Any]:
    """Return library versions, processor and commit of the checkout, if any.

    Returns:
        ``code`` (version, commit, dirty), ``libraries`` (name to version, python among them) and
        ``cpu``; commit and dirty are ``None`` outside a git checkout.
    """
    commit, dirty = checkout()
    versions = {name: _version(name) for name in LIBRARIES}
    libraries = {"python": platform.python_version()}
    libraries |= {name: version for name, version in versions.items() if version is not None}
    return {
        "code": {"version": __version__, "commit": commit, "dirty": dirty},
        "libraries": libraries,
        "cpu": cpu_name(),
    }


@functools.cache
def checkout() -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of the checkout this package lies in, ``None`` outside of one.

    They are those of the first call: later changes are not in the modules already imported.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changed = _git(root, "status", "--porcelain", "--", *SOURCES)
    return commit, None if changed is None else bool(changed)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores() -> int:
    """Return the number of cores over the processes that share them, at least 1.

    These are the ranks that torchrun started on this machine, times runs at the same time.
    """
    given = [os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", JOBS)]
    processes = math.prod(int(text) for text in given if text.isdecimal() and int(text))
    return max(1, cores() // processes)


def gpu_name(where: device) -> str | None:
    """Return the name of a GPU as reported by its driver, or ``None`` for the CPU."""
    if where.type != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(where)


def gpu_numerics(where: device) -> dict[str, bool] | None:
    """Return torch's present settings on which a GPU's numbers depend, or ``None`` for the CPU.

    Returns:
        ``tf32_convolutions`` and ``tf32_matmul`` (products of float32 rounded to 10 bits of
        mantissa, where the GPU can), ``cudnn_benchmark`` (convolution algorithms chosen by time)
        and ``deterministic`` (algorithms that repeat bit for bit only).
    """
    if where.type != "cuda":
        return None
    import torch

    able = torch.cuda.get_device_capability(where) >= (8, 0)  # Ampere
    backends = torch.backends
    return {
        "tf32_convolutions": able and _tf32(backends.cudnn, getattr(backends.cudnn, "conv", None)),
        "tf32_matmul": able and _tf32(backends.cuda.matmul, backends.cuda.matmul),
        "cudnn_benchmark": bool(backends.cudnn.benchmark),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _tf32(old: Any, new: Any) -> bool:
    """Return a setting by its old name, or by its new one if that was used to set it (2.9)."""
    try:
        return bool(old.allow_tf32)
    except RuntimeError:
        return bool(new.fp32_precision == "tf32")


def emulates_bfloat16(where: device) -> bool:
    """Return True if the device emulates bf16 in software, which is slower than fp32."""
    if where.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:  # torch 2.8
        private: Any = torch.cpu
        return not (private._is_avx512_bf16_supported() or private._is_amx_tile_supported())
    can = capabilities()
    return not (can.get("avx512_bf16") or can.get("amx_bf16"))


def peak_memory(where: device) -> int:
    """Return the peak memory of this process in bytes: on the GPU, or in main memory."""
    if where.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(where))
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()

"""Environment of a process whose CUDA runtime has one device and does nothing."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent / "stub"


def missing() -> str:
    """Return the reason that the runtime cannot be made here, or an empty string."""
    if shutil.which("cc") is None:
        return "needs a C compiler, cc"
    if _toolkit() is None:
        return "needs a CUDA build of torch with the headers of its runtime (nvidia/cu*)"
    return ""


@functools.cache
def environment() -> dict[str, str]:
    """Compile the runtime and return the environment of processes that load it."""
    toolkit = _toolkit()
    assert toolkit is not None
    sources = [path.read_bytes() for path in sorted(HERE.rglob("*.[ch]"))]
    digest = hashlib.sha256(b"".join([*sources, str(toolkit).encode()])).hexdigest()[:12]
    home = Path(tempfile.gettempdir()) / f"pretended-cuda-{os.getuid()}-{digest}"
    if not (home / "libcudart_nothing.so").exists():
        home.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as partial:
            headers = (f"-I{HERE}", f"-I{toolkit / 'include'}")
            _compile("cu.c", Path(partial) / "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
            _compile("cudart.c", Path(partial) / "libcudart_nothing.so", *headers)
            for name in ("libcuda.so.1", "libcudart_nothing.so"):
                (Path(partial) / name).replace(home / name)
    return {
        **os.environ,
        "LD_PRELOAD": str(home / "libcudart_nothing.so"),
        "LD_LIBRARY_PATH": os.pathsep.join([str(home), str(toolkit / "lib")]),
        "OMP_NUM_THREADS": "1",
    }


def _compile(source: str, target: Path, *options: str) -> None:
    command = ["cc", "-shared", "-fPIC", "-w", *options, "-o", str(target), str(HERE / source)]
    subprocess.run(command, check=True)


def _toolkit() -> Path | None:
    """Return the folder of torch's CUDA runtime, from its own wheels."""
    spec = find_spec("nvidia")
    homes = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path for home in homes for path in Path(home).glob("cu[0-9]*"))
    usable = [path for path in found if (path / "include" / "cuda_runtime_api.h").exists()]
    return usable[-1] if usable else None

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))


@pytest.fixture(scope="session")
def vector() -> Callable[[str], dict[str, Any]]:
    """Look up a numeric test vector (values computed with the authors' code) by name."""
    vectors = json.loads((HERE / "vectors.json").read_text())["vectors"]
    by_name = vectors if isinstance(vectors, dict) else {v["name"]: v for v in vectors}
    return lambda name: by_name[name]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images that some tests need; absent in a plain checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the image archives in {folder}")
    return folder

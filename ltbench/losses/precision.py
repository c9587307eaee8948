from __future__ import annotations

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """Convert a half-precision tensor to single precision; return others unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

from __future__ import annotations

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """Return a tensor of half precision in single precision, any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

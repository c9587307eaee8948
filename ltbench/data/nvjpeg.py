"""Decoding of JPEGs on a GPU by nvJPEG, through torchvision."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from ltbench.errors import UserError

INSTEAD = "set data.decode=fast, and loader processes decode"


def check_nvjpeg(device: torch.device) -> None:
    """Check that torchvision decodes JPEGs on a device.

    Raises:
        UserError: the device is no CUDA device, or torchvision has no nvJPEG for it.
    """
    if device.type != "cuda":
        raise UserError(
            f"data.decode=cuda decodes images on an NVIDIA GPU, found device {device.type}; "
            f"{INSTEAD}"
        )
    if reason := _missing(device):
        raise UserError(
            f"data.decode=cuda needs a torchvision that decodes JPEGs on {device} ({reason}); "
            f"install its CUDA build, or {INSTEAD}"
        )


def nvjpeg(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return the RGB pixels of JPEGs, decoded on a CUDA device.

    The host waits for the decoding, but not for what else the device has to do: nvJPEG works on a
    stream of its own, and its output on one that no other work uses.

    Args:
        files: content of each file, uint8 [n], on the CPU.
        device: CUDA device.

    Returns:
        uint8 [3, H, W] each.

    Raises:
        RuntimeError: one of the files cannot be decoded; there are no partial results.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # nvJPEG does not wait for the current stream, whose kernels may still read memory that was
    # freed and that its output would get again. Memory of another stream is not given to it until
    # those kernels are done: `record_stream`.
    own, current = _stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(own):
        pictures: list[Tensor] = decode_jpeg(list(files), mode=ImageReadMode.RGB, device=device)
    current.wait_stream(own)
    for picture in pictures:
        picture.record_stream(current)
    return pictures


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@lru_cache
def _missing(device: torch.device) -> str:
    """Return why a small JPEG cannot be decoded on a device, or an empty string."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        nvjpeg([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device)
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        return str(error).split("\n")[0] or type(error).__name__
    return ""

"""Where a section of the check runs, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]  # what, ok (True, False or None: not judged), and values


@dataclass(frozen=True)
class Place:
    """Device and time of a section.

    Args:
        device: that is checked.
        small: a few tiny cases, to see that everything runs.
        deadline: of ``time.monotonic``, after which no further case begins.
    """

    device: torch.device
    small: bool
    deadline: float

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def late(self) -> bool:
        """Return whether the time is used up."""
        return time.monotonic() > self.deadline

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.gpu:
            torch.cuda.synchronize(self.device)


Section = Callable[[Place], Iterator[Row]]

"""Released checkpoints of other code bases as models of ltbench: read, map, compare, record."""

from __future__ import annotations

LARGEST = 8 * 2**30  # bytes of a released file

"""Feature extractors; importing this makes ours known to timm without importing timm itself."""

from __future__ import annotations

from ltbench import timm_hook

timm_hook.install()

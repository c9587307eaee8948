"""Updates: from the loss rows of a batch to one optimizer step (plain, SAM, by class, PLOT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltbench.config.registry import Registry

if TYPE_CHECKING:
    from ltbench.updates.base import Update

UPDATES: Registry[type[Update]] = Registry(
    "update",
    {
        "plain": "ltbench.updates.plain:Plain",
        "sam": "ltbench.updates.sam:SAM",
        "focal_sam": "ltbench.updates.class_sam:FocalSAM",
        "imb_sam": "ltbench.updates.class_sam:ImbSAM",
        "plot": "ltbench.updates.plot:Plot",
    },
    options="ltbench.updates.options",
)

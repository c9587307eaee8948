"""A recipe of a few seconds, for tests that need a trained model."""

from __future__ import annotations

from typing import Any

import toys

DATA = {"name": "digits_lt", "image_size": 8, "imbalance_ratio": 10}


def tiny_tree(method: str = "ce", **changes: Any) -> dict[str, Any]:
    """A recipe of a few seconds on digits: three epochs of a thin ResNet-20, then a second stage
    where the method is one."""
    stage: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 128,
        "optim": {"lr": 0.1, "weight_decay": 5e-4},
    }
    update = changes.pop("update", "plain")
    options = {"name": method, **toys.OPTIONS.get(method, {}), **changes.pop("options", {})}
    stages = [{**stage, "method": options, "update": update}]
    if method in toys.STAGE2 + toys.POSTHOC:
        stages = [{**stage, "method": toys.BEFORE.get(method, "ce"), "update": update}]
        stages.append(
            {"method": options} | ({**stage, "epochs": 1} if method in toys.STAGE2 else {})
        )
    return {
        "name": f"tiny_{method}",
        "data": DATA,
        "backbone": {"name": "resnet20_cifar", "args": {"widths": [4, 8, 16]}},
        "stages": stages,
        "run": {"device": "cpu", "threads": 1, "workers": 0, "eval_every": 100},
        **changes,
    }

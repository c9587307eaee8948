from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ltbench import dist
from ltbench.data.base import Split
from ltbench.data.loader import eval_batches
from ltbench.errors import UserError
from ltbench.metrics import Accumulator, Metrics


@torch.no_grad()
def evaluate_split(
    module: nn.Module,
    split: Split,
    class_counts: Sequence[int],
    *,
    device: torch.device,
    rule: str = "strict",
    workers: int = 0,
    batch_size: int = 250,
) -> Metrics:
    """Return integer per-class results of a module on a split, each image counted exactly once.

    Args:
        module: images [B, 3, H, W] to logits [B, C]; left in evaluation mode.
        split: what to evaluate on; ranks share it without padding.
        class_counts: training images of each class [C]; they define the shot groups.
        device: where to compute.
        rule: how shot groups are cut, see ``ltbench.metrics.shot_groups``.
        workers: processes that decode images.
        batch_size: images per forward pass and rank.

    Raises:
        UserError: the module gives another number of classes.
    """
    module.eval()
    counts = Accumulator(len(class_counts), device=device)
    for loaded in eval_batches(
        split, batch_size, rank=dist.rank(), world=dist.world(), workers=workers, device=device
    ):
        logits = module(loaded.views[0])
        if logits.ndim != 2 or logits.shape[1] != len(class_counts):
            raise UserError(
                f"the data set has {len(class_counts)} classes, the model returned logits of "
                f"shape {list(logits.shape)}; evaluate a model trained on it"
            )
        counts.update(logits.float(), loaded.labels)
    counts.load_tensor(dist.sum_(counts.tensor()))
    return counts.metrics(class_counts, rule)

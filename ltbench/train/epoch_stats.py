from __future__ import annotations

import torch
from torch import Tensor

from ltbench.data.shots import shot_groups
from ltbench.distributed import ranks
from ltbench.methods.base import Batch
from ltbench.updates.base import Log


class EpochStats:
    """Loss and training accuracy of an epoch, accumulated on the device and read at its end."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.table = torch.zeros((num_classes, 2), dtype=torch.int64, device=device)
        self.loss = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, log: Log, micro: list[Batch]) -> None:
        """Add one step, summed over ranks, so that each rank holds the sums."""
        self.loss += torch.stack([log["loss"].double(), self.loss.new_ones(())])
        alone = ranks.world() == 1
        step = self.table if alone else torch.zeros_like(self.table)
        for batch, rows in zip(micro, log["rows"], strict=True):
            if rows.logits is not None:
                right = (rows.logits.argmax(dim=1) == batch.labels).long()
                step.index_add_(
                    0, batch.labels, torch.stack([right, torch.ones_like(right)], dim=1)
                )
        if not alone:
            self.table += ranks.all_reduce_(step)

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return {"table": self.table, "loss": self.loss}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore saved sums."""
        if tensors:
            self.loss.copy_(tensors["loss"])
            self.table.copy_(tensors["table"])

    def summary(self, class_counts: tuple[int, ...], rule: str) -> dict[str, float | None]:
        """Return the mean loss, the training accuracy and the training recall of each shot group.

        The sums are reset.
        """
        table = self.table.tolist()
        loss = float(self.loss[0] / self.loss[1].clamp(min=1))
        self.table.zero_()
        self.loss.zero_()
        right, seen = (sum(column) for column in zip(*table, strict=True))
        row: dict[str, float | None] = {"loss": loss, "train_top1": right / seen if seen else None}
        for name, classes in shot_groups(class_counts, rule).items():
            recalls = [table[k][0] / table[k][1] for k in classes if table[k][1]]
            row[f"train_{name}"] = sum(recalls) / len(recalls) if recalls else None
        return row

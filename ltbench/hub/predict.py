from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ltbench.data.unlabelled import batches, find_images
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError
from ltbench.evaluation.tables import in_utf8
from ltbench.methods.base import Method

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Predictions:
    """The most probable classes of N images, in descending order of probability.

    Args:
        paths: path of each image, relative to the folder if one was given; the position of a
            Pillow image [N].
        labels: most probable classes, int64 [N, K].
        probabilities: their probabilities (softmax of the logits), float32 [N, K].
        names: names of these classes, K for each image [N].
        unreadable: path of each image that could not be read, and the reason.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[tuple[str, ...], ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """Return the number of classified images N."""
        return len(self.paths)

    def frame(self) -> pd.DataFrame:
        """Return a table: ``path``, then ``label_k``, ``class_k``, ``probability_k`` from k = 1."""
        import pandas as pd

        columns: dict[str, Any] = {"path": [in_utf8(path) for path in self.paths]}
        for k in range(self.labels.shape[1]):
            columns[f"label_{k + 1}"] = self.labels[:, k]
            columns[f"class_{k + 1}"] = [names[k] for names in self.names]
            columns[f"probability_{k + 1}"] = self.probabilities[:, k]
        return pd.DataFrame(columns)


@torch.no_grad()
def predict(
    model: Method | str | Path,
    images: Any,
    *,
    topk: int = 5,
    batch_size: int = 250,
    device: str = "auto",
    workers: int = 2,
    unreadable: Literal["raise", "skip"] = "raise",
    root: str | Path = ".",
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Classify images with a trained model, with the transform of its evaluation.

    Example::

        found = ltbench.predict("quickstart", ["a.png", "b.png"])
        print(found.names[0][0], found.probabilities[0, 0])

    Args:
        model: a loaded model, or anything that ``ltbench.load`` takes.
        images: a folder (read at any depth, sorted by path), a text file with a path on each line,
            an image file, a Pillow image, or a sequence of paths and Pillow images.
        topk: classes per image, >= 1; at most those of the model are returned.
        batch_size: images per forward pass.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: processes that decode images.
        unreadable: ``raise`` an error for an image that cannot be read, or ``skip`` and list it.
        root: folder to which the paths in a text file are relative.
        progress: called after each batch with the number of images done and that of all.

    Raises:
        UserError: the model or the images cannot be read, the model's data set has no known
            transform, or the logits are not finite.
    """
    if topk < 1 or batch_size < 1 or workers < 0:
        raise UserError(
            f"expected `topk` and `batch_size` of at least 1 and `workers` of at least 0, found "
            f"{topk}, {batch_size} and {workers}"
        )
    if unreadable not in ("raise", "skip"):
        raise UserError(f"`unreadable`: expected raise or skip, found `{unreadable}`")
    found = find_images(images, Path(root))
    if isinstance(model, str | Path):
        from ltbench.hub.load import load

        model = load(model)
    model = _loaded(model)
    where = pick_device(device)
    model.eval().to(where)
    kept: list[np.ndarray] = []
    rows: list[tuple[Tensor, Tensor]] = []
    bad: list[tuple[str, str]] = []
    assert model.transform is not None
    for batch in batches(found, model.transform, batch_size, workers=workers):
        bad += [(found.names[index], reason) for index, reason in batch.unreadable]
        if bad and unreadable == "raise":
            raise UserError(bad[0][1])
        if len(batch.index):
            logits = model(batch.images.to(where)).double()
            if not logits.isfinite().all():
                raise UserError(
                    f"the model returns NaN or infinite logits, first for one of "
                    f"{found.names[batch.index[0]]} and the images after it; training has "
                    "diverged or the weights are damaged"
                )
            best = logits.softmax(dim=1).topk(min(topk, logits.shape[1]), dim=1)
            rows.append((best.indices.cpu(), best.values.float().cpu()))
            kept.append(batch.index)
        if progress is not None:
            progress(sum(map(len, kept)) + len(bad), len(found.names))
    if not kept:
        raise UserError("\n".join(["no image could be read", *(reason for _, reason in bad)]))
    labels = torch.cat([indices for indices, _ in rows]).numpy()
    return Predictions(
        tuple(found.names[index] for index in np.concatenate(kept)),
        labels,
        torch.cat([values for _, values in rows]).numpy(),
        tuple(tuple(model.class_names[k] for k in row) for row in labels.tolist()),
        tuple(bad),
    )


def _loaded(model: Any) -> Method:
    """Return a model that has a transform and class names.

    Raises:
        UserError: it has none.
    """
    if not isinstance(model, Method):
        raise UserError(
            f"`model`: expected a model of `ltbench.load` or its name, found {type(model).__name__}"
        )
    if model.transform is None:
        raise UserError(
            f"the evaluation transform of data set {model.info.name} is not known; set "
            "`model.transform` to a function from a Pillow image to a tensor"
        )
    return model


def is_predictions(path: Path) -> bool:
    """Return whether a file is a table of predictions, by its columns."""
    import pandas as pd

    first = ["path", "label_1"]
    try:
        if path.suffix == ".parquet":
            return list(pd.read_parquet(path).columns[:2]) == first
        with path.open("rb") as file:
            head = file.read(200)
        text = head.decode("utf-8", "replace")
        if path.suffix == ".csv":
            return text.startswith(",".join(first) + ",")
        return text.replace("\n", "").replace(" ", "").startswith('[{"path":')
    except (OSError, ValueError):
        return False

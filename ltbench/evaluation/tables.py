"""Results of an evaluation image by image and class by class, as tables."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ltbench.data.base import Split
from ltbench.data.files import FileSource
from ltbench.data.images import ImageSplit
from ltbench.data.loader import Loaded
from ltbench.data.shots import shot_groups
from ltbench.evaluation.metrics import Metrics

if TYPE_CHECKING:
    import pandas as pd

SQUARE = 1000  # classes up to which the confusion matrix is written as a square


class Outcomes:
    """Predictions for the images of a split, collected batch by batch; see ``evaluate``."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []

    def __call__(self, loaded: Loaded, logits: Tensor) -> None:
        """Add a batch."""
        probability = logits.double().softmax(dim=1)
        best = logits.argmax(dim=1)
        columns = (
            loaded.index,
            loaded.labels,
            best,
            probability.gather(1, loaded.labels[:, None])[:, 0],
            probability.gather(1, best[:, None])[:, 0],
        )
        self._parts.append(tuple(column.cpu().numpy() for column in columns))

    def columns(self) -> list[np.ndarray]:
        """Return position, label, predicted class and the probability of both [N each]."""
        return [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]

    def frame(self, split: Split, names: Sequence[str]) -> pd.DataFrame:
        """Return a row for each image: its path or name, label, predicted class, probabilities.

        Args:
            split: the evaluated images.
            names: name of each class [C].
        """
        import pandas as pd

        index, label, predicted, of_label, of_predicted = self.columns()
        table: dict[str, Any] = {"index": index}
        if isinstance(split, ImageSplit):
            source = split.source
            paths = source.paths if isinstance(source, FileSource) else None
            shown = (paths[i] if paths else source.name(i) for i in index.tolist())
            table["path"] = [in_utf8(path) for path in shown]
        called = np.array(names, dtype=object)
        return pd.DataFrame(
            {
                **table,
                "label": label,
                "class": called[label],
                "predicted": predicted,
                "predicted_class": called[predicted],
                "probability_label": of_label,
                "probability_predicted": of_predicted,
            }
        )

    def confusion(self, num_classes: int) -> np.ndarray:
        """Return the number of images by label and predicted class, int64 [C, C]."""
        _, label, predicted, *_ = self.columns()
        cells = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)


def class_frame(metrics: Metrics, names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each class: training images, shot group, test images, correct, accuracy.

    Args:
        metrics: of the evaluation.
        names: name of each class [C].
    """
    import pandas as pd

    groups = shot_groups(metrics.class_counts, metrics.shot_rule)
    group = {k: name for name, classes in groups.items() for k in classes}
    total = np.array(metrics.total)
    correct = np.array(metrics.correct)
    return pd.DataFrame(
        {
            "label": range(len(names)),
            "class": list(names),
            "train_images": metrics.class_counts,
            "group": [group[k] for k in range(len(names))],
            "test_images": total,
            "correct": correct,
            "accuracy": np.where(total > 0, correct / np.maximum(total, 1), np.nan),
        }
    )


def confusion_frame(confusion: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return a confusion matrix as a table with a row per class and a column per predicted class.

    With more than 1,000 classes it has a row for each pair that occurs.

    Args:
        confusion: number of images by label and predicted class [C, C].
        names: name of each class [C].
    """
    import pandas as pd

    if len(names) <= SQUARE:
        table = pd.DataFrame(confusion, columns=list(names))
        table.insert(0, "class / predicted", list(names), allow_duplicates=True)
        return table
    label, predicted = confusion.nonzero()
    called = np.array(names, dtype=object)
    return pd.DataFrame(
        {
            "label": label,
            "class": called[label],
            "predicted": predicted,
            "predicted_class": called[predicted],
            "images": confusion[label, predicted],
        }
    )


def encoded(table: pd.DataFrame, ending: str) -> bytes:
    """Return a table as the content of a file.

    Args:
        table: the table.
        ending: ``.csv``, ``.json`` (a list of rows) or ``.parquet``.
    """
    if ending == ".csv":
        text: str = table.to_csv(index=False, lineterminator="\n")
        return text.encode()
    if ending == ".parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue()
    rows: str = table.to_json(orient="records", indent=1, force_ascii=False, double_precision=9)
    return f"{rows}\n".encode()


def in_utf8(path: str) -> str:
    """Return a path with the bytes that are not UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

from __future__ import annotations

import struct

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from ltbench import get_recipe
from ltbench.errors import UserError
from ltbench.train.curves import columns, write_curves


def history(stages=(6, 3)):
    rows = []
    for stage, epochs in enumerate(stages):
        for e in range(1, epochs + 1):
            row = {"stage": stage, "epoch": e, "lr": 0.1 / 10**e if e < epochs else 0.0}
            row |= {"loss": 2.0 / e, "train_many": 0.5, "train_medium": 0.2, "train_few": None}
            row["images_per_second"] = 812.5
            if e % 3 == 0:
                row |= {"test_top1": 0.4, "test_many": 0.6, "test_medium": 0.3, "test_few": None}
            rows.append(row)
    return rows


def size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_the_table_opens_with_pandas_and_says_what_was_given(tmp_path):
    write_curves(tmp_path, history(), on="test")
    frame = pd.read_csv(tmp_path / "curves.csv")
    assert tuple(frame.columns) == columns("test")
    assert frame["stage"].tolist() == [0] * 6 + [1] * 3
    assert frame["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert frame["loss"].tolist() == [row["loss"] for row in history()]  # no digit lost
    assert frame["test_top1"].notna().tolist() == [e % 3 == 0 for e in frame["epoch"]]
    assert frame["test_few"].isna().all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.csv", "curves.png"]


def test_columns_name_the_split_that_they_are_of():
    training, val, test = (set(columns(on)) for on in ("", "val", "test"))
    measured = ("top1", "many", "medium", "few")
    assert val - training == {f"val_{name}" for name in measured}
    assert test - training == {f"test_{name}" for name in measured}
    assert "train_top1" in training
    assert not [c for c in columns("") if c.startswith(("val", "test", "eval"))]


def test_unknown_columns_are_kept(tmp_path):
    write_curves(tmp_path, [{**history((1,))[0], "cosine": 0.25}])
    assert pd.read_csv(tmp_path / "curves.csv")["cosine"].tolist() == [0.25]


@pytest.mark.parametrize("stages", [(), (1,), (6, 3), (2, 1, 2)])
def test_the_picture_is_drawn_for_any_length(tmp_path, stages):
    write_curves(tmp_path, history(stages))
    width, height = size(tmp_path / "curves.png")
    assert width > 800
    assert height > 800


def test_the_picture_shows_the_groups_that_exist(tmp_path):
    def colours(rows) -> set[str]:
        write_curves(tmp_path, rows, on="test")
        pixels = (matplotlib.image.imread(tmp_path / "curves.png")[..., :3] * 255).round()
        found = np.unique(pixels.reshape(-1, 3).astype(int) @ (65536, 256, 1))
        return {f"#{colour:06X}" for colour in found.tolist()}

    without = colours(history())
    assert {"#0072B2", "#E69F00"} <= without
    assert "#D55E00" not in without
    few = [row | ({"test_few": 0.1} if "test_top1" in row else {}) for row in history()]
    assert "#D55E00" in colours(few)


def test_the_picture_names_stages_and_shades_the_window_of_plot(tmp_path):
    def shaded(window: str) -> int:
        recipe = get_recipe("crt_mixup_plot", f"stages.0.update={window}")
        write_curves(tmp_path, history(), recipe, on="val")
        pixels = matplotlib.image.imread(tmp_path / "curves.png")[..., :3]
        blue = np.abs(pixels - (0.898, 0.955, 0.986)).max(axis=2) < 0.02
        return int(blue.sum())

    assert shaded("plain") < 500  # edges of letters
    short, long = shaded("{name: plot, epochs: 2}"), shaded("{name: plot, epochs: 4}")
    assert long == pytest.approx(2 * short, rel=0.1)


def test_a_folder_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"could not write .*curves\.csv"):
        write_curves(tmp_path / "absent", history())

from __future__ import annotations

import pandas as pd
import pytest

from ltbench.diagnose import DIAGNOSTICS
from ltbench.diagnose.tables import MINUS, TIMES, heading, number_text, shown, without_files


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (464_200.0, "464,200"),
        (19_150, "19,150"),
        (0.0, "0"),
        (-2.0, "-2"),
        (0.76612345, "0.7661"),
        (1234.5678, "1,235"),
        (99.996, "100.00"),
        (-0.012, "-0.01200"),
        (4.642e-7, "4.64 x 10⁻⁷"),
        (3e20, "3.00 x 10²⁰"),
        (float("nan"), ""),
        (float("inf"), "∞"),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert number_text(value).replace(MINUS, "-").replace(TIMES, "x") == text


def test_headings_are_words_shares_are_percent_and_files_are_left_out():
    table = pd.DataFrame(
        {
            "class": [3],
            "name": ["lynx"],
            "train_images": [1234],
            "recall": [0.25],
            "in_matrix": [True],
            "png": [b"\x89PNG"],
        }
    )
    found = shown("Classes", table)
    assert found.columns == ["class", "training images", "recall, %", "shown in the matrix"]
    assert found.rows == [["lynx", "1,234", "25", "yes"]]
    assert found.numeric == [False, True, True, False]
    assert list(without_files(table)) == ["class", "name", "train_images", "recall", "in_matrix"]


def test_no_heading_or_caption_is_in_snake_case():
    for name in DIAGNOSTICS.names():
        cls = DIAGNOSTICS.get(name)
        assert cls.captions, name
        assert cls.headings, name
        assert not any("_" in text for text in cls.headings.values()), name
    assert heading("smallest_ratio") == "smallest ratio"

"""The classes of a model are compared with those of data, by name and order."""

from __future__ import annotations

import warnings

import pytest

from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods.weights import check_classes

NAMES = ("bee", "cat", "dog")
NUMBERS = ("0", "1", "2")


def check(own, found) -> None:
    check_classes({"class_names": list(own)}, DatasetInfo("folder", (1,) * len(found), found), "m")


@pytest.mark.parametrize("names", [NAMES, NUMBERS])
def test_the_same_names_in_the_same_order_are_taken_without_a_word(names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(names, names)


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (("cat", "dog", "zebra"), "class 0 of m is `bee`, that of the data set folder is `cat`"),
        (("bee", "dog", "cat"), r"class 1 of m is `cat`.* `dog` \(another order\)"),
        (("bee", "cat"), "m knows 3 classes, the data set folder has 2"),
        (("Bee", "cat", "dog"), "`Bee`"),
        (("bee", "cat", "dog\x1b[2J"), r"`dog\\x1b\[2J`"),
    ],
)
def test_other_names_or_another_order_are_refused_in_one_line(found, match):
    with pytest.raises(UserError, match=match) as caught:
        check(NAMES, found)
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("own", "found"), [(NAMES, NUMBERS), (NUMBERS, NAMES)])
def test_numbers_for_names_are_noted(own, found):
    with pytest.warns(UserWarning, match="has no class names: class k of m is taken for class k"):
        check(own, found)


def test_numbers_in_another_order_are_another_order():
    with pytest.raises(UserError, match="another order"):
        check(("0", "2", "1"), NUMBERS)

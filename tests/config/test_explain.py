"""`ltbench show explain=KEY`: meaning, range and default of any key of any recipe."""

from __future__ import annotations

import pytest

from ltbench import get_recipe
from ltbench.config.explain import explain
from ltbench.config.tree import leaves
from ltbench.errors import UserError


def test_every_key_is_explained():
    recipe = get_recipe("crt_mixup_plot")
    keys = [key for key, _ in leaves(recipe.tree())]
    found = explain(recipe, ["*"])
    assert [e.key for e in found] == keys
    assert all(e.values for e in found)
    mute = [e.key for e in found if not e.meaning]
    assert len(mute) < len(found) / 4, mute


def test_meaning_range_and_default():
    (rate,) = explain(get_recipe("quickstart"), ["stages.0.optim.lr"])
    assert (rate.meaning, rate.values, rate.default) == ("Base learning rate.", "number > 0", "")
    (method,) = explain(get_recipe("quickstart"), ["stages.1.method.name"])
    assert "crt: " in method.meaning
    assert "ltbench list methods" in method.values
    (device,) = explain(get_recipe("quickstart"), ["run.precision"])
    assert (device.values, device.default) == ("fp32 | bf16", "fp32")


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("lr", "stages.1.optim.lr"),
        ("stages.0.update", "stages.0.update.rho"),
        ("*.rho", "stages.0.update.rho"),
    ],
)
def test_keys_are_found_by_end_beginning_and_pattern(pattern, key):
    assert key in [e.key for e in explain(get_recipe("quickstart"), [pattern])]


def test_a_misspelt_key_is_one_line():
    with pytest.raises(UserError, match=r"no key `lrr` \(did you mean `lr`\?\)"):
        explain(get_recipe("quickstart"), ["lrr"])

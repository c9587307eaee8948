"""`ltbench show key=KEY`: every key that a recipe can have, without a recipe."""

from __future__ import annotations

import pytest

from ltbench import get_recipe
from ltbench.cli import main
from ltbench.config.files import list_recipes
from ltbench.config.keys import POSITION, all_keys, find_keys, uses
from ltbench.config.tree import leaves
from ltbench.errors import UserError


@pytest.fixture(scope="module")
def keys():
    return all_keys()


def test_every_key_has_a_meaning_and_values(keys):
    assert [e.key for e in keys if not e.meaning] == []
    assert all(e.values and e.values != "options" for e in keys)
    assert len({(e.key, e.parts) for e in keys}) == len(keys)


@pytest.mark.parametrize(
    "name", ["quickstart", "ldam_drw_sam_plot_cifar10", "mislas_plot_inat", "m2m_moo_cifar10_epo"]
)
def test_the_keys_of_a_recipe_are_among_them(name, keys):
    known = {e.key for e in keys}
    recipe = [POSITION.sub("N", key) for key, _ in leaves(get_recipe(name).tree())]
    for key in recipe:
        general = key.replace(".after.", ".").removesuffix(".name")
        inside = any(general.startswith(f"{e.key}.") for e in keys if e.values == "mapping")
        options = any(e.key.startswith(f"{key}.") for e in keys)  # these are null as a whole
        assert {key, general} & known or inside or options, key


def test_a_key_of_two_updates_is_explained_for_each():
    found = {entry.parts: entry for entry in find_keys(["stages.0.update.rho"])}
    plot, sam = found["update=plot",], found["update=focal_sam", "update=imb_sam", "update=sam"]
    assert plot.key == sam.key == "stages.N.update.rho"
    assert (plot.values, plot.default) == ("number >= 0", "0.0001")
    assert (sam.values, sam.default) == ("number > 0", "0.05")


def test_a_key_that_means_the_same_for_several_is_explained_once():
    (ratio,) = [e for e in find_keys(["data.imbalance_ratio"]) if "data=cifar10_lt" in e.parts]
    assert ratio.parts == ("data=cifar10_lt", "data=cifar100_lt")
    assert ratio.values.startswith("1 | 10 | 20")


def test_defaults_of_a_mode_are_named():
    (found,) = find_keys(["class_gradients"])
    assert found.default == "fast, exact with mode=official"
    assert get_recipe("ce_plot").stages[0].update.config.class_gradients == "fast"


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("stages.1.optim.lr", "stages.N.optim.lr"),
        ("micro_batch", "stages.N.micro_batch"),
        ("stages.0.update.after.rho", "stages.N.update.rho"),
        ("backbone.args.drop_path_rate", "backbone.args"),
        ("stages.0.method.name", "stages.N.method"),
        ("*.warmup*", "stages.N.schedule.warmup_shift"),
        ("solver.c", "stages.N.update.solver.c"),
    ],
)
def test_keys_are_found(pattern, key):
    assert key in [e.key for e in find_keys([pattern])]


def test_a_misspelt_key_is_one_line_with_the_nearest():
    with pytest.raises(
        UserError, match=r"no recipe has a key `micro_bach` \(did you mean `micro_batch`\?\)"
    ):
        find_keys(["micro_bach"])


def test_uses_count_what_recipe_files_set():
    found = find_keys(["stages.0.optim.lr", "stages.0.update.rho", "data.protocol"])
    rate, sam, plot, protocol = uses(found)
    assert rate.recipes == sum(any(s.optim for s in get_recipe(n).stages) for n in list_recipes())
    assert sum(count for _, count in plot.values) == plot.recipes > sam.recipes > 0
    assert get_recipe(sam.example).stages[0].update.name in ("focal_sam", "imb_sam", "sam")
    assert [count for _, count in plot.values] == sorted((c for _, c in plot.values), reverse=True)
    assert protocol.recipes == 0


def test_the_command_prints_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["show", "key=stages.0.update.rho"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stages.N.update.rho"
    assert "  with update=plot" in lines
    assert "    number > 0; default 0.05" in lines
    assert any("recipes set it, e.g. " in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_command_prints_those_of_a_recipe_with_value_and_origin(capsys):
    main(["show", "recipe=crt_mixup_plot", "key=rho"])
    assert capsys.readouterr().out.splitlines()[0] == (
        "stages.0.update.rho=0.0001  (crt_mixup_plot.yaml)"
    )
    main(["show", "recipe=crt_mixup_plot", "explain=rho"])  # as it was called before
    assert "stages.0.update.rho=0.0001" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["stages.0.update=sam"], ["key=rho", "seed=1"]])
def test_the_command_needs_a_recipe_or_a_key_alone(words, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["show", *words])
    assert refused.value.code == 2
    assert "expected `recipe=...`" in capsys.readouterr().err

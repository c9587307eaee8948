"""Several values of a key: what is a grid, what is a list, what is text."""

from __future__ import annotations

from typing import Any

import pytest

from ltbench.config.value_grid import Range, label, points, space
from ltbench.config.words import parse_words
from ltbench.errors import UserError
from ltbench.train.grid import make_grid

CE = "ce_cifar10"


def found(*words: str, recipe: str = CE) -> list[dict[str, str]]:
    return [dict(p.values) for p in points(recipe, [parse_words(words)])]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("stages.0.optim.lr=0.05,0.1", ["0.05", "0.1"]),
        ("stages.0.update=plain,sam", ["plain", "sam"]),
        ("stages.0.update.name=plain,sam", ["plain", "sam"]),
        ("stages.0.update={name: sam, rho: 0.1},plain", ["{name: sam, rho: 0.1}", "plain"]),
        ("stages.0.schedule=cosine,constant", ["cosine", "constant"]),
        ("backbone=resnet20_cifar,resnet32_cifar", ["resnet20_cifar", "resnet32_cifar"]),
        ("backbone.name=resnet20_cifar,resnet32_cifar", ["resnet20_cifar", "resnet32_cifar"]),
        ("data.imbalance_ratio=10,100", ["10", "100"]),
        ("run.deterministic=true,false", ["true", "false"]),
        ("run.max_steps=3,null", ["3", "null"]),
        ("epochs=20,40", ["20", "40"]),
        ("stages.0.optim.lr_factors.head=0.1,1", ["0.1", "1"]),
        ("backbone.args.drop_path_rate=0,0.1", ["0", "0.1"]),
        ("stages.0.schedule.milestones=[160,180],[80]", ["[160,180]", "[80]"]),
        ("backbone.args.widths=[4,8,16],[8,16,32]", ["[4,8,16]", "[8,16,32]"]),
    ],
)
def test_several_values_of_a_key_that_takes_one(word: str, values: list[str]) -> None:
    assert found(word) == [{word.partition("=")[0]: value} for value in values]


@pytest.mark.parametrize(
    "word",
    [
        "stages.0.optim.lr=0.1",
        "stages.0.schedule.milestones=160,180",
        "stages.0.schedule.milestones=[160,180]",
        "stages.0.freeze=backbone,head",
        "backbone.args.widths=[4,8,16]",
        "description=one, two",
        "data.root=images,more",
        "backbone.weights=a,b",
        "stages.0.optim={lr: 0.1, momentum: 0.9}",
        "stages.0.no_such_key=1,2",  # an unknown key, said as always
    ],
)
def test_lists_text_and_single_values_stay_whole(word: str) -> None:
    assert found(word) == [{}]


def test_options_of_a_part_that_the_same_command_picks() -> None:
    words = ["stages.0.update=sam", "stages.0.update.rho=0.05,0.1", "stages.0.optim.lr=0.1,0.2"]
    assert len(found(*words)) == 4
    cells = make_grid([CE], [0, 1], words)
    rhos = [c.recipe.stages[0].update.config.rho for c in cells]  # type: ignore[attr-defined]
    assert rhos == [0.05] * 4 + [0.1] * 4
    assert [c.recipe.seed for c in cells] == [0, 1] * 4
    assert [c.label for c in cells[::2]] == [
        f"{CE} rho={rho} lr={lr}" for rho in (0.05, 0.1) for lr in (0.1, 0.2)
    ]
    assert len({c.recipe.digest for c in cells}) == 4


def test_lists_of_a_grid_file_and_words_that_replace_them() -> None:
    shared: dict[str, Any] = {
        "stages.0.optim.lr": [0.05, 0.1],
        "stages.0.schedule.milestones": [160, 180],
    }
    cells = make_grid([CE], [0], shared=shared)
    assert [c.recipe.stages[0].optim.lr for c in cells] == [0.05, 0.1]  # type: ignore[union-attr]
    assert {c.recipe.stages[0].schedule.milestones for c in cells} == {(160, 180)}
    (cell,) = make_grid([CE], [0], ["stages.0.optim.lr=0.3"], shared)
    assert (cell.recipe.stages[0].optim.lr, cell.label) == (0.3, CE)  # type: ignore[union-attr]


def test_each_value_has_a_folder_of_its_own(tmp_path) -> None:
    cells = make_grid([CE], [0], ["stages.0.optim.lr=0.05,0.1", f"out={tmp_path}"])
    assert len({c.recipe.out for c in cells}) == 2
    with pytest.raises(UserError, match=r"`workers=1` and `workers=2` compute the same"):
        make_grid([CE], [0], ["run.workers=1,2"])
    with pytest.raises(UserError, match=r"`lr=0\.1` and `lr=0\.10` compute the same"):
        make_grid([CE], [0], ["stages.0.optim.lr=0.1,0.10"])


def test_mistakes_are_one_line_each() -> None:
    for word, text in (
        ("stages.0.optim.lr=0.05,,1", "expected values with commas between"),
        ("stages.0.optim.lr=0.05,high", "unable to parse string as a number, found 'high'"),
        ("stages.0.optim.lr=0.05..1", "is searched with select.metric"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            make_grid([CE], [0], [word])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="at most 10,000 runs"):
        make_grid([CE], range(2000), ["stages.0.optim.lr=1,2,3,4,5,6"])


def test_ranges() -> None:
    words = parse_words(["stages.0.optim.lr=log:1e-3..0.5", "stages.0.epochs=10..40"])
    assert space(CE, [words]) == {
        "stages.0.optim.lr": Range(0.001, 0.5, log=True),
        "stages.0.epochs": Range(10, 40, whole=True),
    }
    for word in ("stages.0.optim.lr=0.5..0.1", "stages.0.optim.lr=log:0..1", "epochs=1.5..3"):
        with pytest.raises(UserError, match="expected a range of"):
            space(CE, [parse_words([word])])
    assert space(CE, [parse_words(["data.root=../images", "out=../runs"])]) == {}


def test_labels_are_short_and_tell_keys_apart() -> None:
    assert label({"stages.0.optim.lr": "0.0712345678901"}) == "lr=0.07123"
    both = {"stages.0.optim.lr": "1", "stages.1.optim.lr": "2", "stages.0.update.rho": "3"}
    assert label(both) == "stages.0.optim.lr=1 stages.1.optim.lr=2 rho=3"

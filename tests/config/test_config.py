from __future__ import annotations

import pytest
import yaml

from ltbench import get_recipe, list_recipes
from ltbench.config import files
from ltbench.config.files import build_recipe, describe, family, recipe_summary
from ltbench.config.tree import assign
from ltbench.config.words import parse_words
from ltbench.errors import UserError

# Ratios of CIFAR-LT that a family of recipes leaves out: its options depend on the ratio, and its
# authors have none for these.
WITHOUT = {
    "plot_official": (10, 20),
    "ce_imb_sam": (10, 20),
    "cuda": (20, 200),
    "glmc": (20, 200),
    "lift": (20, 200),
    "zero_shot": (10, 20, 50, 200),  # trains on nothing
}


def errors_of(name: str, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        get_recipe(name, *words)
    return str(caught.value).splitlines()


def test_every_recipe_resolves_and_says_what_it_is():
    wrong = []
    for name in list_recipes():
        recipe = get_recipe(name)
        if recipe.name != name:
            wrong.append(f"{name} is called {recipe.name}")
        if not recipe.description:
            wrong.append(f"{name}: give it a `description:`")
        if not (recipe.target or recipe.note):
            wrong.append(f"{name}: name the result it aims at, or say in `note:` why there is none")
    assert not wrong, "\n".join(wrong)


def test_a_pattern_that_matches_no_recipe_is_compared_with_variants():
    assert list_recipes("ce_cifar*_small") == ["ce_cifar10_small", "ce_cifar100_small"]
    assert recipe_summary("ce_cifar10_small").endswith(", variant small")
    assert not [name for name in list_recipes("ce_*") if name.endswith("_small")]
    assert list_recipes("no_such_*") == []


def without_setting(name: str) -> tuple[int, ...]:
    """The ratios for which neither the authors nor we have a setting of a recipe."""
    found = [ratios for prefix, ratios in WITHOUT.items() if name.startswith(prefix)]
    return found[0] if found else ()


@pytest.mark.parametrize("ratio", [10, 20, 50, 200])
def test_ratio_suffix_changes_the_ratio(ratio):
    wrong = []
    for name in list_recipes("*cifar*"):
        if ratio in without_setting(name):
            assert "no variant" in errors_of(f"{name}_if{ratio}")[0]
            continue
        recipe = get_recipe(f"{name}_if{ratio}")
        same = recipe.digest == get_recipe(name).digest
        if recipe.data.config.imbalance_ratio != ratio or same:
            wrong.append(name)
    assert not wrong


def test_variant_values_follow_the_literature():
    assert get_recipe("mislas_cifar10_if50").stages[1].method.config.smooth_head == 0.2
    assert get_recipe("mislas_plot_cifar10_if200").stages[0].update.config.epochs == 80
    assert get_recipe("balanced_softmax_cifar10_if200").stages[0].epochs == 591
    assert get_recipe("balanced_softmax_cifar100_if200").stages[0].epochs == 685


def test_overrides_reach_lists_tags_and_nested_options():
    recipe = get_recipe(
        "mislas_plot_cifar10",
        "stages.0.optim.lr=5e-2",
        "stages.0.update.solver=mgda",
        "stages.1.epochs=3",
        "seed=7",
    )
    assert recipe.stages[0].optim.lr == 0.05
    assert recipe.stages[0].update.config.solver.name == "mgda"
    assert recipe.stages[0].update.config.rho == 1e-4  # the rest of the update stays
    assert recipe.stages[1].epochs == 3
    assert recipe.seed == 7


def test_naming_another_part_drops_the_old_options():
    recipe = get_recipe("mislas_plot_cifar10", "stages.0.update=sam")
    assert recipe.stages[0].update.name == "sam"
    assert get_recipe("mislas_plot_cifar10", "data=folder").data.name == "folder"


def test_keyword_overrides_equal_words():
    by_word = get_recipe("ce_cifar10", "data.imbalance_ratio=50", "seed=2")
    assert get_recipe("ce_cifar10", data__imbalance_ratio=50, seed=2) == by_word


def test_modes_of_plot_fill_in_what_they_imply():
    official = get_recipe("plot_official_cifar10").stages[0].update.config
    paper = get_recipe("crt_mixup_plot_cifar10").stages[0].update.config
    assert (official.from_features, official.mixed_labels, official.preference) == (
        True,
        False,
        "class_weights",
    )
    assert (paper.from_features, paper.mixed_labels, paper.preference) == (True, True, "equal")
    assert (official.class_gradients, paper.class_gradients) == ("exact", "fast")
    assert (official.collapse_divisor, paper.collapse_divisor) == ("official", "all")


def test_fields_that_came_later_count_only_where_they_are_not_at_their_default():
    base = get_recipe("ce_cifar10")
    assert "head_init" not in str(base.tree(digest_only=True))
    assert get_recipe("ce_cifar10", "stages.0.head_init=kaiming_normal").digest == base.digest
    assert get_recipe("ce_cifar10", "stages.0.head_init=pytorch").digest != base.digest
    later = get_recipe("ce_cifar10", "stages.0.schedule.warmup_extra=1")
    assert later.tree(digest_only=True)["stages"][0]["schedule"]["warmup_extra"] == 1


def test_a_revision_of_a_part_changes_digests(monkeypatch):
    recipe = get_recipe("ce_cifar10")
    before = recipe.digest
    monkeypatch.setattr(type(recipe.stages[0].sampler.config), "revision", 1)
    assert get_recipe("ce_cifar10").digest != before
    assert "revision" not in str(get_recipe("ce_cifar10").tree())


def test_a_resolved_recipe_names_revisions_and_is_read_again():
    recipe = get_recipe("crt_cifar10")
    tree = recipe.tree(digest_only=True)
    sampler = tree["stages"][1]["sampler"]
    assert sampler["revision"] == 1
    assert build_recipe({**tree, "name": "crt_cifar10"}).digest == recipe.digest
    sampler["revision"] = 0  # of an older version: its weights can still be loaded
    build_recipe({**tree, "name": "crt_cifar10"})
    sampler["revision"] = 2
    with pytest.raises(
        UserError, match=r"`stages.1.sampler.revision`: expected at most 1, .*found 2"
    ):
        build_recipe({**tree, "name": "crt_cifar10"})


def test_digest_ignores_seed_paths_and_workers_only():
    base = get_recipe("ce_cifar10")
    for word in ("seed=3", "data.root=x", "run.workers=7", "out=y", "run.device=cpu"):
        assert get_recipe("ce_cifar10", word).digest == base.digest, word
    for word in ("stages.0.optim.lr=0.2", "data.imbalance_ratio=50", "run.precision=bf16"):
        assert get_recipe("ce_cifar10", word).digest != base.digest, word


def test_all_mistakes_are_reported_at_once_with_path_and_suggestion():
    lines = errors_of(
        "mislas_plot_cifar10",
        "stages.0.optim.lr=-1",
        "stages.0.epochs=0",
        "stages.0.update.solvr=mgda",
        "stages.1.methd=ce",
        "backbone.nam=x",
        "sede=1",
    )
    text = "\n".join(lines)
    assert len(lines) == 6
    assert "`stages.0.optim.lr`: should be greater than 0, found -1" in text
    assert "`stages.0.epochs`: should be greater than or equal to 1, found 0" in text
    assert "`stages.0.update.solvr`: unknown key (did you mean `solver`?)" in text
    assert "`stages.1.methd`: unknown key (did you mean `method`?)" in text
    assert "`backbone.nam`: unknown key (did you mean `name`?)" in text
    assert "`sede`: unknown key (did you mean `seed`?)" in text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("stages.0.method=mixupp", "unknown method `mixupp` (did you mean `mixup`?)"),
        ("stages.0.update.solver=cagra", "unknown solver `cagra` (did you mean `cagrad`?)"),
        ("stages.0.sampler=clas_aware", "unknown sampler"),
        ("data=cifar", "unknown dataset"),
        ("stages.5.epochs=1", "`stages` is a list of 2"),
        ("stages.0.epochs=ten", "`stages.0.epochs`"),
        ("stages.0.epochs=true", "expected a number, found true"),
        ("seed.x=1", "`seed`"),
        ("stages.0.epochs.x=1", "has no field `x`"),
        ("stages.0.update.epochs=500", "longer than the stage's 200 epochs"),
        ("stages.0.method=tau_norm", "post-hoc and needs a stage before it"),
        ("run.device=gpu", "`run.device`"),
        ("nonsense", "expected `key=value`"),
    ],
)
def test_one_line_per_mistake(word, expected):
    assert any(expected in line for line in errors_of("mislas_plot_cifar10", word))


def test_unknown_recipe_suggests():
    assert "did you mean `mislas_plot_inat`?" in errors_of("mislas_plot_inatt")[0]


def test_show_says_where_values_come_from():
    _, rows = describe("mislas_plot_inat", ["stages.0.optim.lr=0.3"])
    origin = {path: source for path, _, source in rows}
    assert origin["stages.0.optim.lr"] == "command line"
    assert origin["stages.0.update.epochs"] == "mislas_plot_inat.yaml"
    assert origin["stages.0.batch_size"] == "mislas_inat.yaml"
    assert origin["stages.0.optim.momentum"] == "default"


def test_users_own_file_may_extend_a_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: ce_cifar10\noverride:\n  stages.0.optim.lr: 1e-3\n")
    assert get_recipe(str(file)).stages[0].optim.lr == 1e-3
    file.write_text("extends: mislas_plot_inat\n")
    with pytest.raises(UserError, match="one level only"):
        get_recipe(str(file))
    file.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match="given twice"):
        get_recipe(str(file))
    file.write_text("- a\n")
    with pytest.raises(UserError, match="holds no recipe"):
        get_recipe(str(file))


def test_recipes_are_found_in_any_folder_and_no_two_have_one_name(tmp_path, monkeypatch):
    assert family("mislas_plot_inat") == "mislas"
    assert family("quickstart") == ""
    monkeypatch.setattr(files, "recipes_dir", lambda: tmp_path)
    for place in ("ce/ce_x.yaml", "grids/ce_x.yaml", "mixup/mixup_x.yaml"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text("seed: 1\n")
    assert list_recipes() == ["ce_x", "mixup_x"]
    files._files.cache_clear()
    (tmp_path / "mixup" / "ce_x.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"two recipes are called `ce_x`: ce.ce_x.yaml and mixup"):
        list_recipes()


def test_changing_a_tree_changes_no_recipe():
    tree, _ = files.read_tree("quickstart")
    tree["stages"][0]["epochs"] = 1000
    assert files.read_tree("quickstart")[0]["stages"][0]["epochs"] != 1000


def test_words_keep_their_text_and_are_read_as_yaml():
    words = parse_words(["a.b=1e-4", "a=[1, 2]"])
    assert words == {"a.b": "1e-4", "a": "[1, 2]"}
    assert [word.read() for word in words.values()] == [1e-4, [1, 2]]


def test_several_texts_stand_between_commas_or_in_brackets():
    for words in ("head,layer1", "[head, layer1]"):
        assert get_recipe("ce", f"stages.0.freeze={words}").stages[0].freeze == ("head", "layer1")
    assert get_recipe("ce", "stages.0.freeze=null").stages[0].freeze is None
    assert get_recipe("ce_imagenet_lt", "data.val=null").data.config.val is None


def test_assign_opens_short_forms():
    tree, origins = {"update": "plot"}, {}
    assign(tree, origins, "update.rho", 0.1, "x")
    assert tree == {"update": {"name": "plot", "rho": 0.1}}


def test_resolved_tree_round_trips_through_yaml():

    recipe = get_recipe("mislas_plot_inat", "seed=3")
    again = build_recipe(yaml.safe_load(yaml.safe_dump(recipe.tree())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_targets_are_rows_of_the_published_table():
    from ltbench.leaderboard import target_row

    wrong = []
    for recipe in map(get_recipe, list_recipes()):
        if recipe.target is not None:
            row = target_row(recipe)
            if row is None or recipe.target.method.split(" (")[0] not in row:
                wrong.append(f"{recipe.name}: no row for {recipe.target}")
    assert not wrong, "\n".join(wrong)

"""Hostile words, recipes and grids: each gives a result or lines of one mistake each."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import yaml
from hypothesis import reject
from hypothesis import strategies as st
from strategies import (
    NAMES,
    changed,
    json_values,
    paths,
    printable,
    property_of,
    takes_or_refuses,
    text,
)

from ltbench import get_recipe
from ltbench.config import files
from ltbench.config.tree import leaves
from ltbench.config.yaml_text import LARGEST, MOST, read_yaml
from ltbench.errors import UserError
from ltbench.train import grid

BASE = "crt_mixup_plot_cifar10"
TREE = files.read_tree(BASE)[0]
KEYS = [path for path, _ in leaves(get_recipe(BASE).tree())]
KEYS += ["data", "backbone", "stages", "stages.0", "stages.0.update", "run", "epochs", "diagnose"]
KEYS += ["stages.0.update.solver.c", "backbone.args.drop_rate", "target", "stages.1.method.x"]
VALUES = ["sam", "plot", "folder", "list", "null", "{}", "[]", "{name: folder}", "{root: a}", "3"]
VALUES += [
    "{name: plot, rho: 1}",
    "[{epochs: 3}]",
    "[1",
    "1,2",
    "100",
    "0.5",
    "-1",
    "1e400",
    "true",
]

key = st.one_of(
    st.sampled_from(KEYS), text, st.lists(st.sampled_from(["data", "0", ""])).map(".".join)
)
value = st.one_of(st.sampled_from(VALUES), paths, json_values.map(repr))
word = st.one_of(st.tuples(key, value).map("=".join), text, st.sampled_from(["=", "a=", "=b"]))


@property_of(st.lists(word, max_size=5))
def test_any_words_give_a_recipe_or_a_refusal(words):
    takes_or_refuses(lambda: get_recipe(BASE, *words))


related = st.sampled_from(
    [
        *("stages.0.update=plot", "stages.0.update=sam", "stages.0.update=plain"),
        *("stages.0.update={name: plot, epochs: 4}", "stages.0.update.epochs=3"),
        *("stages.0.update.rho=0.1", "stages.0.update.solver=mgda", "stages.0.update.name=sam"),
        *("data=folder", "data=list", "data={root: a}", "data.root=a", "data.root=b", "data=null"),
        *("data.train=x", "data.imbalance_ratio=50", "data={name: folder, root: b}"),
        *("epochs=20", "stages.0.epochs=20", "stages.1.epochs=4", "stages.1.optim.lr=0.5"),
        *("stages.1.optim={lr: 0.5}", "stages.1.optim=null", "stages.0.schedule.warmup=2"),
        *("backbone=resnet50", "backbone.pretrained=true", "backbone={name: resnet50}"),
        *("backbone.args.drop_rate=0.1", "backbone.args={drop_rate: 0.1}", "backbone.args={}"),
        *("seed=3", "out=x", "stages.0.sampler=class_aware", "stages.0.sampler.per_class=7"),
    ]
)


@property_of(
    st.lists(related, min_size=2, max_size=5, unique=True).flatmap(
        lambda words: st.tuples(st.just(words), st.permutations(words))
    )
)
def test_the_order_of_words_means_nothing(orders):
    results = []
    for words in orders:
        recipe, lines = takes_or_refuses(lambda words=words: get_recipe(BASE, *words))
        results.append((recipe, recipe and recipe.tree(), sorted(lines)))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "words",
    [
        ["data={name: folder, root: a}", "data.root=b"],
        ["data=folder", "data.name=list"],
        ["stages.1.optim=null", "stages.1.optim.lr=1"],
        ["stages.0.update={name: sam}", "stages.0.update.name=plot"],
        ["stages.0={update: plot}", "stages.0.update=sam"],
        ["backbone.args={drop_rate: 0.1}", "backbone.args.drop_rate=0.2"],
    ],
)
def test_words_that_contradict_each_other_are_refused_in_each_order(words):
    for order in (words, words[::-1]):
        with pytest.raises(
            UserError, match="contradict each other; leave one of them out"
        ) as raised:
            get_recipe(BASE, *order)
        assert len(str(raised.value).splitlines()) == 1


def test_words_that_complete_each_other_mean_the_same_in_each_order():
    def recipe(*words):
        return get_recipe(BASE, *words)

    words = ["data={name: folder, root: a}", "data.root=a", "data.train=x"]
    assert recipe(*words) == recipe(*words[::-1])
    words = ["stages.0.update.rho=0.5", "stages.0.update=sam"]
    assert recipe(*words) == recipe(*words[::-1])
    assert recipe(*words).stages[0].update.config.rho == 0.5
    assert recipe("backbone.pretrained=true", "backbone=resnet50").backbone.pretrained


@pytest.mark.parametrize("suffix", ["if50_if50", "if50_if200"])
def test_a_variant_is_named_once(suffix):
    with pytest.raises(UserError, match="once, and one ratio"):
        get_recipe(f"mislas_cifar10_{suffix}")


@property_of(printable)
def test_names_of_folders_are_taken_as_they_are(name):
    recipe = get_recipe("ce", f"data.root={name}", f"out={name}", f"backbone.weights={name}")
    assert (recipe.data.config.root, recipe.out, recipe.backbone.weights) == (name, name, name)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_yaml_takes_for_something_else(name):
    recipe = get_recipe("ce", f"data.root={name}", f"out={name}")
    assert (recipe.data.config.root, recipe.out) == (name, name)


def written(tree, file):
    """Write a tree as YAML and return the file; trees that YAML cannot hold are left out."""
    try:
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    except (UnicodeError, yaml.YAMLError):
        reject()
    return file


@property_of(changed(TREE))
def test_any_tree_is_a_recipe_or_refused(tree):
    takes_or_refuses(lambda: files.build_recipe(tree))


@property_of(st.one_of(changed({**TREE, "override": {"seed": 1}}), changed({"extends": BASE})))
def test_any_file_of_a_tree_is_a_recipe_or_refused(tree, tmp_path):
    file = written(tree, tmp_path / "mine.yaml")
    takes_or_refuses(lambda: get_recipe(str(file)))


TOKENS = [
    "a",
    "b",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
]
TOKENS += ["!!bool ", "!!set ", "!!python/object:os.system ", "? ", "| ", "> ", "'", '"', "# ", "%"]
TOKENS += [
    "---",
    "...",
    "1",
    ".inf",
    "2024-13-45",
    "0b",
    "1:99",
    "=",
    "~",
    "\t",
    "\0",
    "\x85",
    "\\x00",
]


@property_of(st.one_of(st.lists(st.sampled_from(TOKENS), max_size=25).map("".join), st.text()))
def test_any_text_is_yaml_or_refused(content):
    value, _ = takes_or_refuses(lambda: read_yaml(content))
    assert "datetime" not in repr(value)


@property_of(st.binary(max_size=200))
def test_any_bytes_are_a_recipe_or_refused(content, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    takes_or_refuses(lambda: get_recipe(str(file)))


GRID = {"recipes": ["ce", BASE], "seeds": [0, 1], "set": {"epochs": 4, "data": "digits_lt"}}


@property_of(changed(GRID))
def test_any_grid_is_read_or_refused(tree, tmp_path):
    file = written(tree, tmp_path / "grid.yaml")
    takes_or_refuses(lambda: cells(file))


def cells(file):
    recipes, seeds, shared = grid.read_grid(file)
    return grid.make_grid(recipes, seeds, shared=shared)


def bombs():
    letters = "abcdefghij"
    levels = [
        f"{letters[i]}: &{letters[i]} [{','.join(['*' + letters[i - 1]] * 9)}]"
        for i in range(1, 10)
    ]
    merged = [
        f"{letters[i]}: &{letters[i]} {{<<: [{','.join(['*' + letters[i - 1]] * 9)}]}}"
        for i in range(1, 9)
    ]
    yield "anchors", "\n".join(["a: &a [x,x,x,x,x,x,x,x,x]", *levels])
    yield "merged anchors", "\n".join(["a: &a {x: 1}", *merged])
    yield "keys", f"note: {{{','.join(f'k{i}: 1' for i in range(60_000))}}}"
    yield "values", f"note: [{','.join('1' * 60_000)}]"
    yield "itself", "note: &n [*n]"
    yield "itself in a mapping", "note: &n {a: *n}"
    yield "deep", f"note: {'[' * 100_000}"
    yield "deep and closed", f"note: {'[' * 900}{']' * 900}"
    yield "deep mappings", f"note: {'{a: ' * 200}1{'}' * 200}"
    yield "digits", f"seed: {'9' * 5_000}"
    yield "many digits", f"seed: {'9' * 900_000}"
    yield "long", f"note: {'x' * (LARGEST + 1)}"
    yield "tag", "note: !!python/object/apply:os.system ['true']"
    yield "tag of a number", "seed: !!int x"
    yield "tag of a truth", "seed: !!bool x"
    yield "tag of a time", "note: !!timestamp x"
    yield "set", "note: !!set {a, b}"
    yield "binary", "note: !!binary AAAA"
    yield "key that is a list", "? [a]\n: 1"
    yield "NUL", 'note: "a\\0b"'
    yield "escape", 'note: "a\\e[31mb"'
    yield "infinity", "stages: [{optim: {lr: .inf}}]"
    yield "too large", "stages: [{optim: {lr: 1e999}}]"
    yield "twice", "seed: 1\nseed: 1"


@pytest.mark.parametrize(("what", "content"), list(bombs()))
def test_yaml_bombs_are_refused_in_a_moment(what, content, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: ce\n{content}\n", encoding="utf-8")
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(UserError, match=r"mine\.yaml") as raised:
        get_recipe(str(file))
    took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 400
    assert took < 5
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    "content",
    [
        *("override: [1]", "override: {1: 2}", "override: 5", "override: {a..b: 1}", "variants: 5"),
        *("variants: {a: 5}", "variants: [a]", "override: {data: folder, data.name: list}"),
        *(
            "name: ../x",
            "name: '..'",
            "name: ''",
            "name: a/b",
            "name: 'a b'",
            "name: 5",
            "seed: null",
        ),
        *(
            "1: 2",
            "null: 1",
            "true: 1",
            "stages: 5",
            "data: {1: 2}",
            "run: 5",
            "backbone: {name: resnet18, args: [1]}",
        ),
        *("run: {workers: 1025}", "run: {save_minutes: 1e9}", "seed: 9223372036854775808"),
        *("stages: {0: {epochs: 3}}", "extends: [1]", "epochs: 1:30", "out: 2024"),
    ],
)
def test_recipe_files_that_are_refused_with_one_line(content, tmp_path):
    file = tmp_path / "mine.yaml"
    base = "" if content.startswith("extends") else "extends: ce\n"
    file.write_text(f"{base}{content}\n")
    with pytest.raises(UserError) as raised:
        get_recipe(str(file))
    assert len(str(raised.value).splitlines()) == 1, raised.value


@pytest.mark.parametrize(
    "content",
    [
        *("5", "recipes: 5", "recipes: [5]", "recipes: [[ce]]", "recipes: [ce]\nseeds: [-1]"),
        *("recipes: [ce]\nseeds: [true]", "recipes: [ce]\nseeds: [9223372036854775808]"),
        *("recipes: [ce]\nseeds: ['²']", "recipes: [ce]\nset: [1]", "recipes: [ce]\nset: {1: 2}"),
        *("recipes: [ce]\n1: 2", "recipes: &r [*r]", "recipes: [ce]\nset: {data: x, data.name: y}"),
        *("recipes: [../x]", "recipes: ['']", f"recipes: [ce]\nseeds: [{','.join('1' * 30_000)}]"),
    ],
)
def test_grid_files_that_are_refused_with_one_line(content, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        cells(file)
    assert len(str(raised.value).splitlines()) == 1, raised.value


def test_a_grid_has_a_largest_size():
    with pytest.raises(UserError, match="at most 10,000 runs, found 1 recipes with 10,001 seeds"):
        grid.make_grid(["ce"], range(10_001))


def test_words_replace_what_a_grid_shares():
    shared = {"data": {"name": "folder", "root": "a"}, "stages.0.epochs": 4, "out": "x"}
    (cell,) = grid.make_grid(["ce"], [0], ["data.root=b", "out=y"], shared)
    assert cell.recipe.data.config.root == "b"
    assert cell.recipe.stages[0].epochs == 4
    assert cell.recipe.out.startswith("y/ce-")


def test_sizes_that_recipes_need_are_taken():
    assert len(read_yaml(f"[{','.join('1' * (MOST - 10))}]")) == MOST - 10
    assert read_yaml("a: [1e-4, 1_000, 0x10, -3, .5, true, ~]")["a"] == [
        1e-4,
        1000,
        16,
        -3,
        0.5,
        True,
        None,
    ]


def test_a_file_with_any_name_names_its_run(tmp_path):
    for stem, name in (
        ("my recipe", "my_recipe"),
        ("größe", "gr_e"),
        ("..", "recipe"),
        ("x.y", "x.y"),
    ):
        file = tmp_path / f"{stem}.yaml"
        file.write_text("extends: ce\n")
        assert get_recipe(str(file)).name == name

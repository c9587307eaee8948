"""Pages that are made from the code are as `python tools/docs.py` writes them."""

from __future__ import annotations

import re

import docs
import pytest
from marked_section import anchor, cell, replaced

from ltbench import get_recipe


@pytest.fixture(scope="module")
def stale():
    return docs.stale()


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda p: p.relative_to(docs.ROOT).as_posix())
def test_it_is_up_to_date(page, stale):
    assert page not in stale, "run `python tools/docs.py`"


def test_one_that_is_not_is_named_and_written(tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text("# Page\n\n<!-- a -->old<!-- b -->\n")
    made = "# Page\n\n<!-- a -->\n\nnew\n\n<!-- b -->\n"
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    pages = {page: lambda text: replaced(text, "<!-- a -->", "<!-- b -->", "new")}
    monkeypatch.setattr(docs, "PAGES", pages)
    assert docs.main(["--check"]) == 1
    assert capsys.readouterr().out == "README.md is out of date: run `python tools/docs.py`\n"
    assert docs.main([]) == 0
    assert page.read_text() == made
    assert docs.main(["--check"]) == 0
    assert docs.main(["all"]) == 2
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        docs.main(["--check"])


@pytest.mark.parametrize(
    ("heading", "name"),
    [  # as GitHub has them
        ("Balanced Softmax (`balanced_softmax`)", "balanced-softmax-balanced_softmax"),
        ("`stages.N.optim`: the optimizer", "stagesnoptim-the-optimizer"),
        ("A [link](x.md) & more", "a-link--more"),
    ],
)
def test_anchors(heading, name):
    assert anchor(heading) == name


def test_cells_hold_bars_and_angle_brackets():
    assert cell("a | b\n  c") == "a \\| b c"
    assert cell("runs/<recipe>, `<a>`, 1 < 2") == "runs/\\<recipe>, `<a>`, 1 < 2"


def test_the_example_of_the_recipes_page_is_a_recipe(tmp_path):
    page = (docs.ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "mine.yaml").write_text(text)
    recipe = get_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.name == "mine"
    assert recipe.data.config.image_size == 128
    assert [stage.epochs for stage in recipe.stages] == [60, 6]


def test_recipes_of_other_data_sets_take_a_folder_as_the_page_says():
    page = (docs.ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"takes them too: `ltbench run recipe=(.*?)`", page)
    name, *keys = words.split()
    assert get_recipe(name, *keys).data.name == "folder"

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from pydantic import Field

from ltbench import plotting as panels
from ltbench.cli.diagnose import diagnose
from ltbench.config import schema
from ltbench.config.registry import Part
from ltbench.diagnose import DIAGNOSTICS
from ltbench.diagnose.base import Diagnostic
from ltbench.diagnose.report import Section, drawing, picture, render
from ltbench.diagnose.run import PAGE, choose, run
from ltbench.diagnose.subject import open_subjects
from ltbench.errors import UserError

EVIL = '"><script>alert(1)</script>&$x_{<img src=http://evil.example/a.png>'


class Fake(Diagnostic):
    title = "A fake & a <b>title</b>"
    shown = "First paragraph\n   goes on.\n\nSecond."
    computed = "By hand."
    see = "Nothing."

    class Options(schema.Config):
        size: int = Field(3, ge=1, le=100)
        names: tuple[str, ...] = ("a",)

    options: Options

    def measure(self, subject):
        rows = range(self.options.size)
        table = pd.DataFrame({"class": [EVIL for _ in rows], "value": [1 / (i + 3) for i in rows]})
        return {"numbers": table, "long": pd.DataFrame({"i": range(1000)})}

    def draw(self, results):
        figure = panels.blank(4, 3)
        axis = figure.subplots()
        for name, tables in results.items():
            axis.plot(tables["numbers"]["value"], label=name)
        axis.set_title(EVIL)
        axis.legend()
        return {"lines": figure}


class Broken(Fake):
    title = "What cannot be measured"

    def measure(self, subject):
        raise UserError(f"needs {EVIL}")


class Page(HTMLParser):
    """Collects elements, their addresses and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        assert not any(k.startswith("on") for k, _ in attrs)

    def handle_data(self, data):
        self.text += data


def is_closed(page: str) -> Page:
    """Check that a page refers to nothing outside itself."""
    found = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert all(a.startswith(("data:image/", "#")) for a in found.addresses)
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    return found


def test_the_page_is_closed_and_hostile_names_are_text(subject, tmp_path):
    one, two = replace(subject, name=EVIL), replace(subject, name="../../two")
    lines: list[str] = []
    made = run(
        {"fake": Fake(Fake.Options()), "broken": Broken(Fake.Options())},
        [one, two],
        tmp_path,
        lines.append,
    )
    page = (tmp_path / PAGE).read_text()
    found = is_closed(page)
    assert found.tags.count("img") == 1
    assert found.text.count(EVIL) >= 7  # title, head, times, problems; long cells are cut
    assert "needs" in found.text
    assert page.index('id="fake"') < page.index('id="broken"')
    assert found.text.index("Not measured") < found.text.index("What this shows")
    assert "Second." in found.text
    assert "long (2,000 rows)" in found.text
    assert [len(s.results) for s in made] == [2, 0]
    assert sum("not measured" in line for line in lines) == 2
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    slug = next(n.split("/")[1] for n in names if "script" in n)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", slug)
    assert names == sorted(
        [PAGE, "fake/lines.png", "fake/lines.svg"]
        + [
            f"fake/{s}/{t}.{e}"
            for s in (slug, "two")
            for t in ("long", "numbers")
            for e in ("csv", "parquet")
        ]
    )
    for kind in (pd.read_csv, pd.read_parquet):
        table = kind(tmp_path / f"fake/two/numbers.{kind.__name__.removeprefix('read_')}")
        assert table["class"].tolist() == [EVIL] * 3
        assert table["value"].tolist() == [1 / 3, 1 / 4, 1 / 5]


def test_if_nothing_can_be_measured_the_page_says_why(subject, tmp_path):
    with pytest.raises(UserError, match="nothing could be measured"):
        run({"broken": Broken(Fake.Options())}, [subject], tmp_path)
    assert "not measured" in is_closed((tmp_path / PAGE).read_text()).text


def test_the_same_page_twice_is_the_same_bytes(subject):
    def page() -> str:
        section = Section("fake", Fake, {})
        section.results = {"a": Fake(Fake.Options()).measure(subject)}
        section.seconds = {"a": 1.0}
        with drawing():
            figures = Fake(Fake.Options()).draw(section.results)
            section.pictures = [picture(n, f) for n, f in figures.items()]
        return render("twice", [subject], [section])

    assert page() == page()


def test_the_smaller_picture_is_put_into_the_page():
    simple, crowded = Figure(figsize=(3, 2)), Figure(figsize=(3, 2))
    simple.subplots().plot([1, 2])
    crowded.subplots().plot([(i * 7919) % 1000 for i in range(5000)], "o", markersize=1)
    assert picture("simple", simple).source.startswith("data:image/svg+xml;base64,")
    assert picture("crowded", crowded).source.startswith("data:image/png;base64,")


def test_options_are_checked_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(DIAGNOSTICS._parts, "fake", Part("nowhere"))
    monkeypatch.setitem(DIAGNOSTICS._loaded, "fake", Fake)
    chosen = choose(["fake"], {"fake": {"size": 5, "names": "x,y"}})["fake"]
    assert chosen.options == Fake.Options(size=5, names=("x", "y"))
    assert choose(["fake"], {"fake": {"names": "x"}})["fake"].options.names == ("x",)
    with pytest.raises(UserError, match="unknown diagnostic `fkae`"):
        choose(["fkae"], {})
    with pytest.raises(UserError) as caught:
        choose(["fake"], {"fake": {"size": 0, "sice": 1}, "norms": {"x": 1}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "`norms.*` is given, but `what` does not name norms" in lines[0]
    assert any("`fake.size`: should be greater than or equal to 1, found 0" in x for x in lines)
    assert any("`fake.sice`: unknown key" in x and "`size`" in x for x in lines)


def test_every_registered_diagnostic_has_its_texts_and_is_made_from_defaults():
    for name in DIAGNOSTICS.names():
        cls = DIAGNOSTICS.get(name)
        for text in (cls.title, cls.shown, cls.computed, cls.see):
            assert text.strip(), name
        assert DIAGNOSTICS.summary(name).endswith(".")
        choose([name], {})


def test_a_subject_is_opened_from_its_folder_and_its_file(make_subject):
    made = make_subject()
    folder, file = made.folder, made.folder / "model.safetensors"
    one, two = open_subjects([str(folder), str(file)], {}, "cpu")
    assert one.folder == two.folder == folder
    assert one.record is not None
    assert one.record.metrics == made.record.metrics
    assert one.name != two.name
    assert one.data is two.data
    with pytest.raises(UserError, match="give the data"):
        open_subjects([str(folder)], {"imbalance_ratio": 5}, "cpu")
    with pytest.raises(UserError, match="given twice"):
        open_subjects([str(folder)] * 2, {}, "cpu")


def test_the_command_compares_two_models(make_subject, tmp_path):
    one, two = make_subject("crt"), make_subject()
    words = ["compare", str(one.folder), str(two.folder), "what=conflicts", "device=cpu"]
    words += ["conflicts.batches=1", "conflicts.checkpoints=false", f"out={tmp_path / 'out'}"]
    done = CliRunner().invoke(diagnose, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = is_closed((tmp_path / "out" / PAGE).read_text())
    assert "tiny_crt and tiny_ce" in found.text
    assert found.tags.count("img") == 3
    summary = pd.read_csv(tmp_path / "out" / "conflicts" / "tiny_ce" / "summary.csv")
    assert summary["state"].tolist() == ["stage 1, epoch 3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["what=norms"], "expected `model=...` or `run=...`"),
        (["model=a", "run=b"], "expected one of model= and run="),
        (["compare", "a"], "`compare` needs two models or more"),
        (["compare", "a", "b", "model=c"], "`model`: unknown key"),
        (["run=nowhere"], "`run`: expected the folder of a run"),
        (["model=a", "wat=norms"], "`wat`: unknown key (did you mean `what`?)"),
        (["model=a", "model=b"], "given twice"),
        (["model=a", "what=conflict"], "did you mean `conflicts`"),
        (["model=a", "what=conflicts", "conflicts.batches=0"], "`conflicts.batches`"),
    ],
)
def test_mistakes_in_words_are_one_line(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        diagnose.main(args=words, standalone_mode=False)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from click.testing import CliRunner

from ltbench.cli.leaderboard import leaderboard as commands
from ltbench.hub import zoo
from ltbench.leaderboard import figures, published, view
from ltbench.leaderboard.details import run_details
from ltbench.leaderboard.page import build_page
from ltbench.leaderboard.tables import board_rows
from tests.leaderboard import boards

EMPTY = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and their own text; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs), []))
        if tag not in EMPTY:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for index in self.open:
            self.elements[index][2].append(data)

    def all(self, tag: str = "", **attributes: str) -> list[tuple[dict[str, str], str]]:
        """Return attributes and text of the elements that have some attributes."""
        return [
            (found, " ".join("".join(text).split()))
            for name, found, text in self.elements
            if tag in ("", name)
            and all(found.get(k.strip("_").replace("_", "-")) == v for k, v in attributes.items())
        ]

    def below(self, ident: str) -> str:
        (found,) = self.all(id=ident)
        return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        records = boards.confirmed(boards.some_of_everything(), patch)
        yield boards.write(tmp_path_factory.mktemp("board"), records)


@pytest.fixture(scope="module")
def text():
    return boards.page_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_one_file_that_loads_nothing(text, page):
    for tag, attributes, _ in page.elements:
        assert "src" not in attributes, tag
        if tag == "link":
            assert attributes["href"].startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    (style,) = page.all("style")
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0][0]["content"]
    assert policy.startswith("default-src 'none'; ")
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:  # nothing else may run
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(text.encode()) < 3 * 2**20


def test_it_is_the_same_but_for_a_date_that_is_given(text, folder, monkeypatch):
    date = '<time datetime="2026-02-03">2026-02-03</time>'  # of the newest record
    assert date in text
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert build_page(folder) == text.replace(date, date.replace("2026-02-03", "1970-01-02"))


def test_hostile_texts_are_shown_not_obeyed(text, page):
    assert not page.all("img")
    assert len(page.all("script")) == 2
    shown = [found for found in page.elements if any(boards.HOSTILE in t for t in found[2])]
    assert {tag for tag, _, _ in shown} >= {"td", "option"}
    assert boards.HOSTILE in details_of(page, "other-data")[0]["hardware"][0][1]
    assert boards.HOSTILE not in text  # in data as well, signs of markup are escaped
    assert text.count("<img") == 0
    assert "$a_b$" in page.below("other-data")


def test_identifiers_are_unique_and_references_lead_somewhere(page):
    idents = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(set(idents)) == len(idents)
    for _, found, _ in page.elements:
        if found.get("href", "").startswith("#"):
            assert found["href"][1:] in idents
        if "xlink:href" in found:
            assert found["xlink:href"][1:] in idents
        for name in ("aria-controls", "aria-labelledby"):
            assert found.get(name, idents[0]) in idents
    for tab in [found["id"] for found, _ in page.all("section") if found["id"] != "literature"]:
        known = details_by_row(page, tab)
        shown = {f["data-detail"] for f, _ in page.all("button") if "data-detail" in f}
        assert known.keys() == {ident for ident in shown if ident.rpartition("-")[0] == tab}
        for row in known.values():
            assert {f"note-{mark}" for mark in row.get("notes", ())} <= set(idents)
    tabs = [name for _, name in page.all("button", role="tab")]
    assert tabs[:5] == [
        "CIFAR-10-LT",
        "CIFAR-100-LT",
        "ImageNet-LT",
        "Places-LT",
        "iNaturalist-2018",
    ]
    assert tabs[5:] == ["Other data", "Literature"]


def test_all_published_rows_are_there_as_printed(page):
    rows = page.all("tr")
    shown = [text for found, text in rows if "data-metric" in found]
    assert len(shown) == len(published(None)) == 573
    for row, line in zip(published(None), shown, strict=True):
        for value in (row["method"].removesuffix(" + PLOT"), row["backbone"], row["overall"]):
            assert value in line
    sources = {found["data-source"] for found, _ in rows if "data-source" in found}
    assert sources == {row["source"] for row in published(None)}
    crt = [
        found for found, _ in rows if found.get("data-footnote") and found["data-ratio"] == "996"
    ]
    assert len(crt) >= 8
    notes = page.below("literature")
    assert "38.5 in the main text and as 38.1 in the appendix" in notes


def test_counts_of_a_paper_are_no_run_of_ours(page):
    (line,) = [(f, t) for f, t in page.all("tr") if "Someone, Table 1" in t]
    assert "class" not in line[0]
    assert line[0]["data-track"] == "as published"
    assert "80.00" in line[1]
    (facts,) = page.all("dl", class_="facts")
    assert "runs (seeds)10" in facts[1]


def test_links_to_papers_and_repositories(page):
    links = {found["href"]: text for found, text in page.all("a") if "http" in found["href"]}
    assert {link.split("/")[2] for link in links} == {"arxiv.org", "github.com", "iclr.cc"}
    assert "https://arxiv.org/abs/2104.00466" in links  # MiSLAS
    rows = view.literature(view.papers_by_method())["rows"]
    papers = {row["method"]: row["paper"] and row["paper"]["link"][-10:] for row in rows}
    assert papers["cRT+Mixup w/ EPO (early stop)"] == "1910.09217"
    assert papers["Decouple-tau-norm"] == papers["cRT"] == "1910.09217"
    assert papers["RIDE + distill (3 experts)"] == "2010.01809"
    assert papers["NCM"] == "1910.09217"
    assert papers["CE-DRW + SAM"] is None
    assert "https://github.com/dvlab-research/MiSLAS" in links
    for found, _ in page.all("a"):
        if "http" in found["href"]:
            assert found["rel"] == "noopener noreferrer"


def row_of(page: Page, tab: str, method: str, track: str) -> tuple[dict[str, str], str]:
    cells = [
        (found, text)
        for found, text in page.all("tr")
        if found.get("data-track", "").startswith(track) and text.startswith(method)
    ]
    known = {
        found["data-detail"]: found for found, _ in page.all("button") if "data-detail" in found
    }
    assert cells
    assert any(ident.startswith(tab) for ident in known)
    return cells[0]


def test_a_row_of_ours_has_mean_spread_bars_tie_and_status(page):
    plain = "Ratio 100, one network, crop and flip, at most 200 epochs; 200 epochs"
    found, line = row_of(page, "cifar-10-lt", plain, "200 epochs")
    assert (found["class"], found["data-plot"], found["data-status"]) == ("ours", "with", "claimed")
    assert "MiSLAS PLOT" in line
    assert "78.00 ± 0.33" in line
    assert "93.00 ± 0.00" in line
    verified = [t for f, t in page.all("tr", data_status="verified")]
    assert len(verified) == 1
    assert "≈" not in verified[0]  # 74.33 ± 0.33 is resolved
    bars = page.all("i", class_="few", style="width:66.0%")
    assert len(bars) == 1
    assert not [
        f
        for f, _ in page.all("tr")
        if f.get("data-method") == "BBN" and "ours" in f.get("class", "")
    ]


def details_by_row(page: Page, tab: str) -> dict[str, dict[str, Any]]:
    (found,) = [t for f, t in page.all("template", class_="details") if f["id"] == f"details-{tab}"]
    return json.loads(found)


def details_of(page: Page, tab: str) -> list[dict[str, Any]]:
    """Return the details of the rows of ours in a tab."""
    return [row for row in details_by_row(page, tab).values() if "command" in row]


def test_details_of_a_row_of_ours(page):
    (row,) = [
        row for row in details_of(page, "cifar-10-lt") if "org/mislas" in row["seeds"][0]["load"]
    ]
    assert row["command"] == "ltbench run recipe=mislas_cifar10 seed=0,1,2 data.root=DIR"
    hardware = dict(row["hardware"])
    assert hardware["device"] == "2 \N{MULTIPLICATION SIGN} Some GPU"
    assert hardware["wall time"] == "30.0 min per seed"
    assert hardware["memory"] == "1.0 GiB at most"
    seeds = row["seeds"]
    assert seeds[0]["load"] == f'ltbench.load("hf-hub:org/mislas@{"d" * 40}")'
    assert seeds[0]["verified"] == "2026-01-02, ltbench 0.1.0, some: 0 predictions differ"
    assert [seed["values"][0] for seed in seeds] == ["74.00", "74.33", "74.67"]
    assert row["resolved"]["stages"][1]["method"]["name"] == "mislas"
    assert row["classes"]["recall"] == [92.0, 71.0, 60.0]
    assert "arXiv:2104.00466" in row["paper"]["text"]
    (short,) = [row for row in details_of(page, "cifar-10-lt") if "gcl" in row["recipe"]]
    assert "epochs=20" in short["command"]
    assert "not published" in short["seeds"][0]["size"]


def test_a_published_row_says_where_its_facts_come_from(page):
    rows = details_by_row(page, "cifar-100-lt").values()
    (proco,) = [r for r in rows if r.get("facts", [[0, 0]])[0][1] == "400" and "ProCo" in str(r)]
    assert proco["facts"] == [
        ["epochs", "400", "as printed"],
        ["augmentation", "AutoAugment, Cutout, SimCLR", "from the authors' code"],
        ["selection", "best on test", "from the authors' code"],
    ]
    lines = [f for f, t in page.all("tr") if "data-status" in f and "ProCo (400 epochs)" in t]
    assert [line["data-longest"] for line in lines] == ["400"]
    known = [f for f, _ in page.all("tr", data_status="paper") if "data-longest" in f]
    assert 80 < len(known) < 200  # the others are unknown, and fit no limit


def test_the_first_tab_has_runs_of_ours_and_they_come_first(page, tmp_path):
    (first,) = [f["id"] for f, _ in page.all("section") if "data-first" in f]
    assert first == "cifar-10-lt"
    cifar100 = [r for r in boards.some_of_everything() if r.recipe.name == "ce_cifar100"]
    other = boards.write(tmp_path, cifar100)
    page = Page(build_page(other))
    (first,) = [f["id"] for f, _ in page.all("section") if "data-first" in f]
    assert first == "cifar-100-lt"
    rows = view.tab("CIFAR-100-LT", ["CIFAR-100-LT"], board_rows(other), {}, {})["rows"]
    ours = [row["ours"] for row in rows if row["ratio"] == "100"]
    assert ours == sorted(ours, reverse=True)
    assert any(ours)
    assert not all(ours)


def test_weights_of_the_zoo_are_loaded_by_name(monkeypatch):
    record = boards.some_of_everything()[0]
    entry = zoo.Entry(sha256="c" * 64, bytes=1, embedded="models/mislas_cifar10-seed0")
    other = entry.model_copy(update={"sha256": "d" * 64})
    for known, text in (
        (entry, 'ltbench.load("mislas_cifar10", seed=0)'),
        (other, 'ltbench.load("hf-hub:org/mislas@'),
    ):
        index = {"mislas_cifar10": {0: known}}
        monkeypatch.setattr(zoo, "read_index", lambda index=index: index)
        loaded = details(record)["seeds"][0]["load"]
        assert loaded.startswith(text)
    bare = record.checkpoint.model_copy(update={"repository": None, "revision": None})
    assert details(record.model_copy(update={"checkpoint": bare}))["seeds"][0]["load"] == ""


def details(record):
    return run_details([record], zoo.read_index())


def test_what_tables_print_alike_is_one_row(page):
    rows = [
        text
        for found, text in page.all("tr")
        if found.get("data-track") == "as published" and "GCL" in text and "82.85" in text
    ]
    assert len(rows) == 1
    assert "PLOT Table 1, 2, app. 4" in rows[0]


def test_gains_pair_what_differs_in_plot_only(folder):
    found = figures.gains([r for r in board_rows(folder) if r["dataset"] == "CIFAR-10-LT"])
    (own,) = [gain for gain in found if gain.ours]
    assert (own.method, own.ratio) == ("MiSLAS", 100)
    assert own.value == pytest.approx((93 + 75 + 66 - 92 - 71 - 60) / 3)
    assert own.spread == pytest.approx((2 * (100 / 300) ** 2) ** 0.5)
    printed = {(g.method, g.ratio): g.value for g in found if not g.ours}
    assert printed["cRT+Mixup", 200] == pytest.approx(78.99 - 73.06)
    assert printed["GCL", 50] == pytest.approx(-0.1)
    assert len(printed) == len(found) - 1 == 19  # tables 2 and 4 print most of them twice


def test_networks_are_not_mixed_in_a_gain():
    rows = [r for r in board_rows() if r["dataset"] == "ImageNet-LT"]
    (crt,) = [g for g in figures.gains(rows) if g.method == "cRT+Mixup"]
    assert "ResNeXt-50: 51.70 → 54.30" in crt.label  # not the ResNet-50 of the main text


def test_costs_and_their_front(folder):
    rows = [r for r in board_rows(folder) if r["dataset"] == "CIFAR-10-LT"]
    where, found = figures.costs(rows)
    assert where.startswith("ratio 100, one network, crop and flip, at most 200 epochs, 200 epochs")
    hours = {cost.method: cost.hours for cost in found}
    assert hours == pytest.approx({"MiSLAS": 1.0, "MiSLAS + PLOT": 1.5, "CE": 0.5})  # two devices
    assert [cost.method for cost in figures.front(found)] == ["CE", "MiSLAS", "MiSLAS + PLOT"]
    dearer = [figures.Cost("x", False, 9.0, 50.0, ""), *found]
    assert "x" not in [cost.method for cost in figures.front(dearer)]


def test_figures_take_their_colours_from_the_page(page, text):
    figures_ = re.findall(r'<svg class="figure".*?</svg>', text, re.DOTALL)
    assert len(figures_) == 6  # gains of five data sets, costs of one
    for svg in figures_:
        assert not re.findall(r"(?:fill|stroke): ?(?:#|black|white)", svg)
        assert "var(--ink)" in svg
        assert "<style" not in svg
        assert svg.count("<title>") >= 3
    labels = [found["aria-label"] for found, _ in page.all("svg", role="img")]
    assert any("MiSLAS, ratio 100, ResNet-32: 81.33 → 81.88 (+0.55)" in label for label in labels)


@pytest.mark.parametrize(
    ("hours", "text"), [(0.001, "3.6 s"), (0.5, "30.0 min"), (1, "1.0 h"), (30, "30.0 h")]
)
def test_duration(hours, text):
    assert figures.duration(hours) == text


def test_the_command_writes_the_page_of_the_committed_records(tmp_path):
    out = tmp_path / "page.html"
    done = CliRunner().invoke(commands, ["build", f"out={out}"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"{out} (" in done.output
    page = Page(out.read_text())
    for word in ("nan", "None", "Undefined"):
        assert not [t for t in page.all("td") if t[1] == word]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_record_that_was_edited_is_left_out_of_the_page_with_a_note(tmp_path):
    boards.write(tmp_path, boards.some_of_everything()[:2])
    path = tmp_path / "0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.warns(UserWarning, match=r"0\.json left aside: .*was edited"):
        page = Page(build_page(tmp_path))
    assert [t for f, t in page.all("tr") if "MiSLAS PLOT" in t and f.get("class") == "ours"]
    assert "org/mislas" not in page.below("cifar-10-lt")

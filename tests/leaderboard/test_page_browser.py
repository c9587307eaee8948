"""The page in headless Chromium, from a file, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ltbench.leaderboard.settings import SETTINGS
from tests.leaderboard import boards

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
TAB = "#cifar-10-lt"
ROWS = f"{TAB} tbody tr[data-status]:visible"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = str(CHROMIUM) if CHROMIUM.is_file() else shutil.which("chromium")
    if path is None:
        pytest.skip("needs an installed chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(boards.page_text())
    return path


@pytest.fixture
def visit(browser, file):
    """Open the page; at the end nothing may have been complained of or asked for."""
    contexts, complaints, requests = [], [], []

    def opened(width=1280, height=800, scheme="light", anchor=""):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri() + anchor)
        page.wait_for_selector(".panel.shown .table.ready")
        return page

    yield opened
    titles = [page.title() for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url.split("#")[0] for url in requests} == {file.as_uri()}
    assert len(requests) == len(titles)
    assert not any("owned" in title for title in titles)


def texts(page, selector: str) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(selector).all_inner_texts()]


def overalls(page) -> list[float]:
    """Numbers of the column Overall of the rows of ours with full budget."""
    cells = page.locator(f"{TAB} tr.ours[data-track^='200 epochs']:visible .value")
    return [float(text.strip("≈").split()[0]) for text in cells.all_inner_texts()]


def test_tabs_by_mouse_keyboard_and_address(visit):
    page = visit()
    assert texts(page, ".panel:visible caption") == [
        "Results on CIFAR-10-LT, in percent, by ratio, setting and track"
    ]
    page.click("#tab-places-lt")
    assert page.locator("#places-lt").is_visible()
    assert not page.locator(TAB).is_visible()
    assert page.url.endswith("#places-lt")
    page.keyboard.press("End")
    assert page.locator("#literature").is_visible()
    assert page.evaluate("document.activeElement.id") == "tab-literature"
    page.keyboard.press("ArrowRight")
    assert page.locator(TAB).is_visible()
    assert page.locator("[role=tab][aria-selected=true]").count() == 1
    assert page.locator("[role=tab][tabindex='-1']").count() == 6
    page.click("#tab-other-data")
    assert boards.HOSTILE in page.locator("#other-data td.wide").first.inner_text()
    other = visit(anchor="#note-3")
    assert other.locator("#note-3").is_visible()


@pytest.mark.slow
def test_sorting_stays_within_tracks(visit):
    from playwright.sync_api import expect

    page = visit()
    assert overalls(page) == sorted(overalls(page), reverse=True)
    sections = texts(page, f"{TAB} tr.dtrg-group")
    plain = "Ratio 100, one network, crop and flip, at most 200 epochs; "
    assert sections[0].startswith(f"{plain}200 epochs")
    assert "shortened" in sections[1]
    assert sections[2].startswith(f"{plain}as published")
    assert sections[3].startswith("Ratio 100, strong augmentation, experts, a larger network")
    head = page.locator(f"{TAB} thead th", has_text="Overall")
    head.click()
    assert overalls(page) == sorted(overalls(page))
    assert head.get_attribute("aria-sort") == "ascending"
    assert texts(page, f"{TAB} tr.dtrg-group") == sections
    page.select_option(f"{TAB} select[data-facet=setting]", SETTINGS["strong"])
    few = page.locator(f"{TAB} thead th", has_text="Few")
    few.locator("[role=button]").focus()
    for direction in ("descending", "ascending"):
        page.keyboard.press("Enter")
        expect(few).to_have_attribute("aria-sort", direction)
        cells = f"{TAB} tr[data-status=paper]:visible td:nth-child(7)"
        first = "85.00" if direction == "descending" else "70.00"
        expect(page.locator(cells).first).to_have_text(first)
        assert set(texts(page, cells)[2:]) == {"\N{EN DASH}"}  # missing values stay last
    page.select_option(f"{TAB} select[data-facet=setting]", "")
    page.select_option(f"{TAB} select[data-facet=status]", "claimed")  # published rows fill a page
    assert ["shortened" in s for s in texts(page, f"{TAB} tr.dtrg-group")] == [False, True]


@pytest.mark.slow
def test_filters_search_and_reset(visit):
    page = visit()

    def shown() -> int:
        return page.locator(ROWS).count()

    def choose(facet: str, value: str) -> None:
        page.select_option(f"{TAB} select[data-facet={facet}]", value)

    assert page.locator(f"{TAB} select[data-facet=ratio]").input_value() == "100"
    choose("status", "claimed")
    assert shown() == 3
    choose("plot", "with")
    assert shown() == 1
    assert "MiSLAS" in page.locator(f"{ROWS} td.method").inner_text()
    choose("status", "verified")
    assert "No row fits these filters." in page.locator(f"{TAB} tbody").inner_text()
    page.click(f"{TAB} button[type=reset]")
    assert page.locator(f"{TAB} .dt-info").inner_text().startswith("1 to 25 of ")
    assert page.locator(f"{TAB} select.set").count() == 0
    choose("ratio", "10")
    assert shown() == 7
    page.select_option(f"{TAB} select[data-most]", "200")
    assert shown() == 5  # rows that state no epochs are left out
    choose("augmentation", "AutoAugment, Cutout, SimCLR")
    assert shown() == 1
    choose("augmentation", "")
    page.select_option(f"{TAB} select[data-most]", "")
    choose("ratio", "50")
    page.fill(f"{TAB} input[type=search]", "bbn")
    assert {text.split()[0] for text in texts(page, f"{ROWS} td.method")} == {"BBN"}
    page.click("#tab-literature")
    page.select_option("#literature select[data-facet=metric]", "GPU hours")
    assert page.locator("#literature tbody tr:visible").count() == 5
    page.click("#literature button[type=reset]")
    page.select_option("#literature select[data-facet=footnote]", "with a footnote")
    assert page.locator("#literature tbody tr .mark").count() >= 25


@pytest.mark.slow
def test_a_row_unfolds_and_folds(visit):
    page = visit()
    button = page.locator(f"{TAB} tr[data-status=verified] button[data-detail]")
    head = page.locator(f"{TAB} .board > thead th").last
    before = head.bounding_box()
    button.focus()
    page.keyboard.press("Enter")
    after = head.bounding_box()
    assert (after["x"], after["width"]) == (before["x"], before["width"])  # nothing moves aside
    detail = page.locator(f"{TAB} .detail")
    assert button.get_attribute("aria-expanded") == "true"
    assert "recipe=mislas_cifar10" in detail.inner_text()
    assert "0 predictions differ" in detail.inner_text()
    assert detail.locator(".seeds tbody tr").count() == 3
    page.locator(f"{TAB} summary").click()
    assert detail.locator("pre").is_visible()
    button.click()
    assert detail.count() == 0
    assert button.get_attribute("aria-expanded") == "false"
    page.fill(f"{TAB} input[type=search]", "MiSLAS w/ CAGrad (early")
    page.locator(f"{ROWS} td.method").click()  # anywhere in the row
    assert "Solvers without the rest of PLOT" in detail.inner_text()
    assert "PLOT main Table 1" in detail.inner_text()
    assert "epochs, augmentation, selection" in detail.inner_text()  # not stated
    page.locator(f"{TAB} tbody .mark").first.click()
    assert page.locator("#note-8").is_visible()
    assert "Solvers without" in page.locator("#note-8").inner_text()


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [
        (390, 844, "dark"),
        pytest.param(1280, 800, "light", marks=pytest.mark.slow),
        pytest.param(390, 844, "light", marks=pytest.mark.slow),
        pytest.param(1280, 800, "dark", marks=pytest.mark.slow),
    ],
)
def test_it_fits_and_can_be_read(visit, width, height, scheme):
    page = visit(width, height, scheme)
    for tab in page.locator("[role=tab]").all():
        tab.click()
        panel = page.locator(".panel.shown")
        panel.locator(".table.ready").wait_for()
        first = panel.locator("button[data-detail]")
        if first.count():
            first.first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(WIDER_THAN_THEIR_BOX) == []
        assert page.evaluate(POOR_CONTRAST) == []


def test_it_can_be_read_without_scripts(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(TAB).is_visible()
    assert page.locator("#literature").is_visible()
    assert not page.locator("nav.tabs").is_visible()
    context.close()


# Tables that would have to be scrolled sideways.
WIDER_THAN_THEIR_BOX = """
[...document.querySelectorAll(".panel.shown .table")]
  .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.parentElement.id)
"""

# Texts whose contrast with what is behind them is under 4.5, as WCAG computes it.
POOR_CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = numbers(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, .disabled, option")) continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5)
      poor.add(element.className + ": " + element.textContent.trim().slice(0, 30));
  }
  return [...poor];
})()"""

"""The report in headless Chromium, from a file, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ltbench.diagnose.errors import Errors
from ltbench.diagnose.run import PAGE, run

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


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
def report(make_subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run({"errors": Errors(Errors.Options(example_classes=2))}, [make_subject()], folder)
    return folder


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark")])
def test_report_at_several_widths_and_in_the_dark(browser, report, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((report / PAGE).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".summary li").count() == 1
    folded = page.locator("details:not([open]) td.number")
    assert folded.count() > 10
    assert not any(cell.is_visible() for cell in folded.all()[:5])
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
    for cell in page.locator("td.number").all()[:40]:
        assert cell.bounding_box()["height"] < 36, cell.text_content()  # a single line
    images = page.locator("figure img")
    used = images.evaluate_all("all => all.map(one => [one.currentSrc, one.src, one.complete])")
    assert len(used) == 4
    assert all(complete for _, _, complete in used)
    assert all((current != light) == (scheme == "dark") for current, light, _ in used)
    assert page.locator("figure img").first.bounding_box()["width"] <= max(width, 576)
    assert complaints == []
    context.close()


def test_no_encoded_text_is_in_a_table_or_a_csv_file(browser, report):
    page = browser.new_page()
    page.goto((report / PAGE).as_uri())
    cells = page.locator("td").all_text_contents()
    assert max(map(len, cells)) <= 120
    assert not any("iVBOR" in cell or "e+0" in cell for cell in cells)
    files = list(report.rglob("*.csv"))
    assert len(files) == 4
    assert not any("PNG" in file.read_text() for file in files)
    page.close()

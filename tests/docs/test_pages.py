"""Documentation pages: links lead somewhere, commands and keys exist, Python blocks run."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest
from doc_commands import ROOT, SHELL, command_lines, command_problems
from marked_section import anchors

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for place in (
        *("*.md", "ltbench/**/*.md", "recipes/*.md", "leaderboard/*.md", "tests/**/*.md"),
        "tools/**/*.md",
    )
    for path in ROOT.glob(place)
)
WITH_PYTHON = [p for p in PAGES if "```python" in (ROOT / p).read_text(encoding="utf-8")]
EXAMPLES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tools/examples/*.*"))
PYTHON = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text( varies)?\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# Python ---------------------------------------------------------------------------------------


def run_blocks(folder: str, blocks: list[tuple[str, str, str]]) -> None:
    """Run the blocks of a page, which share their names, and compare what they print."""
    os.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    for source, varies, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "page", "exec"), names)
        found = printed.getvalue()
        same = without_numbers(expected) == without_numbers(found) if varies else expected == found
        assert same or not expected, f"{source}\nexpected:\n{expected}\nfound:\n{found}"


def without_numbers(text: str) -> str:
    return " ".join(re.sub(r"[\d.]+", "0", text).split())


@pytest.mark.parametrize("steps", [3, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_and_print_what_the_page_says(page, steps, tmp_path, fork):
    blocks = PYTHON.findall(text_of(page))
    if steps:  # of a training show as much as all of them
        cut = f", run__max_steps={steps}, out="
        blocks = [
            (re.sub(r",\s+out=", cut, source) if "get_recipe(" in source else source, *rest)
            for source, *rest in blocks
        ]
    process = fork(run_blocks, str(tmp_path), blocks)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_the_first_two_shell_blocks_are_what_ci_runs():
    blocks = SHELL.findall(text_of("README.md"))
    assert blocks[0] == "pip install -e . && ltbench run recipe=quickstart\n"
    assert blocks[1] == "pip install -e '.[test]' && pytest\n"


# Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    assert broken_links(ROOT / page, text_of(page)) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("## Here\n")
    text = "[a](other.md#here) [b](other.md#there) [c](none.md) [d](https://example.org)"
    assert broken_links(tmp_path / "page.md", text) == ["other.md#there", "none.md"]


def broken_links(page: Path, text: str) -> list[str]:
    """Return the links of a page to files of the repository that lack the file or the heading."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(
        r'(?:src|srcset|href)="([^"]+)"', prose
    )
    broken = []
    for link in found:
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        content = text if not name else ""
        if name and target.suffix == ".md" and target.is_file():
            content = target.read_text(encoding="utf-8")
        if not (target.exists() or not name) or (heading and heading not in headings(content)):
            broken.append(link)
    return broken


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return set(anchors(re.findall(r"^#+ (.*)$", prose, re.MULTILINE)))


# Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES])
def test_commands_and_keys_exist(page):
    if page == "CHANGELOG.md":  # tells of commands as they were
        return
    problems = [f"{line}: {p}" for line in command_lines(page) for p in command_problems(line)]
    assert problems == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ltbench rum recipe=quickstart", "no command `rum`"),
        ("ltbench run recipe=quickstart sead=1", "`sead`"),
        ("ltbench run recipe=ce_cifar10 stages.0.optim.lrr=1", "`stages.0.optim.lrr`"),
        ("ltbench predict model=quickstart image=x", "`image`"),
        ("ltbench leaderboard data=cifar10", "`data`"),
        ("ltbench list methods --short", "--short"),
        ("torchrun --standalone -m ltbench run recipe=quickstrat", "quickstrat"),
    ],
)
def test_a_wrong_command_is_found(line, problem):
    assert any(problem in found for found in command_problems(line))


def test_pages_have_commands():
    lines = [line for page in PAGES for line in command_lines(page)]
    assert len(lines) > 40
    assert {"run", "predict", "leaderboard", "diagnose"} <= {line.split()[1] for line in lines}

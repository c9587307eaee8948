"""Documentation pages: links lead somewhere, commands and keys exist, Python blocks run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from marked_section import anchor

from ltbench import UserError, get_recipe
from ltbench.cli.app import cli
from ltbench.cli.command import DefaultGroup
from ltbench.config.words import PLAIN, REST

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for place in ("*.md", "ltbench/**/*.md", "recipes/*.md", "leaderboard/*.md", "tools/**/*.md")
    for path in ROOT.glob(place)
)
WITH_PYTHON = [p for p in PAGES if "```python" in (ROOT / p).read_text(encoding="utf-8")]
EXAMPLES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tools/examples/*.*"))
PYTHON = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
LAUNCHERS = ("tools/launch/one_node.sh", "tools/launch/two_nodes.sh", "tools/launch/slurm.sbatch")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# Python ---------------------------------------------------------------------------------------


def run_blocks(folder: str, blocks: list[tuple[str, str]]) -> None:
    """Run the blocks of a page, which share their names, and compare what they print."""
    os.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    for source, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "page", "exec"), names)
        found = printed.getvalue()
        assert expected in ("", found), f"{source}\nexpected:\n{expected}\nfound:\n{found}"


@pytest.mark.parametrize("steps", [3, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_and_print_what_the_page_says(page, steps, tmp_path, fork):
    blocks = PYTHON.findall(text_of(page))
    if steps:  # of a training show as much as all of them
        cut = f", run__max_steps={steps}, out="
        blocks = [(re.sub(r",\s+out=", cut, source), expected) for source, expected in blocks]
    process = fork(run_blocks, str(tmp_path), blocks)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


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
    return {anchor(line) for line in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


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


def command_lines(page: str) -> Iterator[str]:
    """Yield the commands of a page's shell blocks, of a script, or of a Python file's comments."""
    text = text_of(page)
    if page.endswith(".md"):
        text = "\n".join(SHELL.findall(text))
    elif page.endswith(".py"):
        text = "\n".join(re.findall(r"^#\s+(ltbench .*)$", text, re.MULTILINE))
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for part in re.split(r"&&|\|", line):
            part = re.sub(r"\s#.*", "", part).strip().removeprefix("$ ")
            if re.match(r"ltbench |torchrun |tools/launch/", part):
                yield part


def command_problems(line: str) -> list[str]:
    """Return what is wrong with a command line: the command, its words or a recipe's keys."""
    words = shlex.split(line)
    if words[0] in LAUNCHERS:
        words = ["ltbench", "run", *(w for w in words[1:] if "=" in w)]
    elif words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    command: click.Command = cli
    words = words[1:]
    while isinstance(command, click.Group):
        if words and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        elif isinstance(command, DefaultGroup):
            command = command.commands[command.default]
        elif not words or words[0].startswith("--"):
            return []
        else:
            return [f"no command `{words[0]}`"]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    problems = [f"no option {w}" for w in words if w.startswith("-") and w not in known]
    options = getattr(command, "words", None)
    fields = options.model_fields if options else {}
    marks = {name: field.json_schema_extra or {} for name, field in fields.items()}
    rest = any(mark == REST for mark in marks.values())
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if not any(mark == PLAIN for mark in marks.values()) and options:
        problems += [f"no word `{w}`" for w in words if "=" not in w and not w.startswith("-")]
    others = []
    for key in given:
        first = key.partition(".")[0]
        if key in fields or (first in fields and first != key):
            continue
        if rest:
            others.append(f"{key}={given[key]}")
        else:
            problems.append(f"no key `{key}`")
    files = given.get("recipe", ".yaml").endswith(".yaml") or "plugins" in given  # of the reader
    if command.name in ("run", "show") and not files:
        for name in given["recipe"].split(","):
            problems += recipe_problems(name, others)
    return problems


def recipe_problems(name: str, words: list[str]) -> list[str]:
    """Return the mistakes of a recipe with words."""
    try:
        get_recipe(name, *words)
    except UserError as error:
        return str(error).splitlines()
    return []

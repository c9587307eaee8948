"""Commands in documentation pages and scripts, and what is wrong with them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from ltbench import UserError
from ltbench.cli.app import cli
from ltbench.cli.command import DefaultGroup
from ltbench.config.words import PLAIN, REST
from ltbench.train.grid import make_grid

ROOT = Path(__file__).parent.parent
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
LAUNCHERS = ("tools/launch/one_node.sh", "tools/launch/two_nodes.sh", "tools/launch/slurm.sbatch")


def command_lines(page: str) -> Iterator[str]:
    """Yield the commands of a page's shell blocks, of a script, or of a Python file's comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".md"):
        text = "\n".join(SHELL.findall(text))
    elif page.endswith(".py"):
        text = re.sub(r"\\\n#\s*", " ", text)
        text = "\n".join(re.findall(r"^#\s+(ltbench .*)$", text, re.MULTILINE))
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text)
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
        others = [w for w in others if not w.startswith("launcher.") and ".." not in w]
        try:
            make_grid(given["recipe"].split(","), [0], others)
        except UserError as error:
            problems += str(error).splitlines()
    return problems

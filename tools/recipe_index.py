"""Write the families of recipes to recipes/README.md, between its two marks.

python tools/recipe_index.py            writes them
python tools/recipe_index.py --check    exits with 1 if the file is out of date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from marked_section import replaced, write_or_check

from ltbench.config.files import family, list_recipes
from ltbench.data import DATASETS
from ltbench.leaderboard.catalogue import catalogue
from ltbench.methods import METHODS
from ltbench.records.titles import split_name

README = Path(__file__).parent.parent / "recipes" / "README.md"
BEGIN, END = "<!-- families: tools/recipe_index.py -->", "<!-- end of families -->"
HEADS = ("family", "paper", "kind", "data sets", "recipes")


def index() -> str:
    """Return the table in Markdown: a line per folder of recipes."""
    families: dict[str, list[str]] = {}
    for recipe in list_recipes():
        if family(recipe):
            families.setdefault(family(recipe), []).append(recipe)
    entries = {}
    for entry in catalogue():
        entries.setdefault(METHODS.facts(entry.name).stage_of or entry.name, entry)
    lines = [HEADS, ("---", "---", "---", "---", "---:")]
    for name, recipes in sorted(families.items()):
        entry = entries[name]
        lines.append(
            (f"[{name}]({name})", cite(entry.paper), entry.kind, data(recipes), str(len(recipes)))
        )
    titles = ", ".join(part.title for part in DATASETS.parts().values() if part.suffix)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"`all` data sets are {titles}.\n\n{table}"


def cite(paper: str) -> str:
    """Return the first reference of a docstring without its sections, linked where it can be."""
    first = paper.partition(";")[0].rstrip(".")
    number = re.search(r"arXiv:(\d{4}\.\d{4,5})", first)
    text = re.split(r", (?:arXiv:|section )", first)[0]
    return f"[{text}](https://arxiv.org/abs/{number[1]})" if number else text


def data(recipes: list[str]) -> str:
    """Return the data sets of some recipes."""
    named = {split_name(recipe).dataset for recipe in recipes}
    every = {name: part.title for name, part in DATASETS.parts().items() if part.suffix}
    found = [title for name, title in every.items() if name in named]
    texts = ["all"] if len(found) == len(every) else found
    return ", ".join([*texts, "own images"] if "" in named else texts)


def updated(text: str) -> str:
    """Return the README with the table as it should be.

    Raises:
        SystemExit: the marks are missing.
    """
    return replaced(text, BEGIN, END, index())


def main(arguments: list[str]) -> int:
    """Write or check the table and return the exit status."""
    return write_or_check(arguments, README, updated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

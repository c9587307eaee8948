"""The lists of recipes/README.md; `python tools/docs.py` writes them."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from marked_section import cell, replaced, table

from ltbench.config.files import family, list_recipes, list_variants, recipe_summary
from ltbench.config.resources import recipes_dir
from ltbench.data import DATASETS
from ltbench.leaderboard.catalogue import catalogue
from ltbench.methods import METHODS
from ltbench.records.titles import split_name

PAGE = Path(__file__).parent.parent / "recipes" / "README.md"
MARK = "<!-- {}: tools/recipe_index.py -->", "<!-- end of {} -->"


def families() -> str:
    """Return a line per folder of recipes."""
    members: dict[str, list[str]] = {}
    for recipe in list_recipes():
        if family(recipe):
            members.setdefault(family(recipe), []).append(recipe)
    entries = {}
    for entry in catalogue():
        entries.setdefault(METHODS.facts(entry.name).stage_of or entry.name, entry)
    rows = [
        (
            f"[{name}]({name})",
            cite(entries[name].paper),
            entries[name].kind,
            f"{len(recipes)}: {data(recipes)}",
        )
        for name, recipes in sorted(members.items())
    ]
    titles = ", ".join(part.title for part in DATASETS.parts().values() if part.suffix)
    heads = ("family", "paper", "kind", "recipes")
    return f"`all` data sets are {titles}.\n\n{table(heads, rows)}"


def own_images() -> str:
    """Return a line per recipe for images of one's own."""
    names = [name for name in list_recipes() if family(name) and not split_name(name).dataset]
    return table(
        ("recipe", "trains"), [(linked(name), cell(recipe_summary(name))) for name in names]
    )


def small() -> str:
    """Return the methods of the small track that are there with and without PLOT."""
    names = {name for name in list_recipes() if "small" in list_variants(name)}
    lines: dict[str, list[str]] = {}
    for data in ("cifar10", "cifar100"):
        stems = sorted(n.removesuffix(f"_{data}") for n in names if n.endswith(f"_{data}"))
        both = [stem for stem in stems if f"{stem}_plot_{data}" in names]
        recipes = f"`<method>_{data}_small` and `<method>_plot_{data}_small`"
        lines.setdefault(", ".join(f"`{stem}`" for stem in both), []).append(recipes)
    return "\n\n".join(f"{'; '.join(recipes)}: {text}." for text, recipes in lines.items())


def grids() -> str:
    """Return a line per grid."""
    rows = []
    for path in sorted((recipes_dir() / "grids").glob("*.yaml")):
        grid = yaml.safe_load(path.read_text(encoding="utf-8"))
        size = f"{len(grid['recipes'])} x {len(grid.get('seeds', [0]))}"
        text = cell(grid.get("description", ""))
        rows.append((f"[{path.stem}](grids/{path.name})", text, size))
    return table(("grid", "runs", "recipes x seeds"), rows, (2,))


def linked(name: str) -> str:
    """Return a recipe's name as a link to its file."""
    return f"[{name}]({family(name)}/{name}.yaml)"


def cite(paper: str) -> str:
    """Return authors and venue of the first reference of a docstring, linked where it can be."""
    first = paper.partition(";")[0].rstrip(".")
    number = re.search(r"arXiv:(\d{4}\.\d{4,5})", first)
    text = re.split(r", (?:arXiv:|https?:|section )", first)[0]
    authors, _, rest = text.partition(", ")
    text = f"{authors}, {rest.rpartition(', ')[2]}" if rest else authors
    return f"[{text}](https://arxiv.org/abs/{number[1]})" if number else text


def data(recipes: list[str]) -> str:
    """Return the data sets of some recipes."""
    named = {split_name(recipe).dataset for recipe in recipes}
    every = {name: part.title for name, part in DATASETS.parts().items() if part.suffix}
    found = [title for name, title in every.items() if name in named]
    texts = ["all"] if len(found) == len(every) else found
    return ", ".join([*texts, "own images"] if "" in named else texts)


def updated(text: str) -> str:
    """Return the page with the lists as they should be.

    Raises:
        SystemExit: marks are missing.
    """
    for name, made in {
        "families": families,
        "own images": own_images,
        "small": small,
        "grids": grids,
    }.items():
        begin, end = (mark.format(name) for mark in MARK)
        text = replaced(text, begin, end, made())
    return text

"""The gallery of ltbench/methods/README.md; `python tools/docs.py` writes it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from marked_section import anchor, anchors, cell, replaced, table

from ltbench.config.files import family, list_recipes, read_tree
from ltbench.config.registry import docstring_section, first_sentence
from ltbench.leaderboard.catalogue import Entry, catalogue
from ltbench.methods import METHODS
from ltbench.records.aggregate import average_seeds
from ltbench.records.store import records
from ltbench.updates import UPDATES

PAGE = Path(__file__).parent.parent / "ltbench" / "methods" / "README.md"
BEGIN, END = "<!-- methods: tools/method_gallery.py -->", "<!-- end of methods -->"
KINDS = {  # heading by kind
    "loss": "Losses",
    "sampler": "Sampling",
    "two-stage": "Two-stage training",
    "post-hoc": "Post-hoc corrections",
    "architecture": "Architectures",
    "contrastive": "Contrastive learning",
    "meta": "Meta-learning",
}
COLUMN = ("CIFAR-100-LT", 100.0, "ResNet-32")  # the column of the table that most papers print
UPDATE_TEXT = (
    "An update turns the loss rows of a batch into one step of the optimizer. Any method can be "
    "trained with any of them: `stages.0.update=plot`."
)
VENUE = r"\b(?:NeurIPS|ICLR|CVPR|ICCV|WACV|TPAMI) (?:19|20)\d\d\b"
PLOT = " + PLOT"
Row = dict[str, Any]


def gallery() -> str:
    """Return the table of all methods and a section for each, in Markdown."""
    entries = catalogue()
    kinds = sorted({entry.kind for entry in entries}, key=[*KINDS].index)
    rows: list[tuple[str, ...]] = []
    sections: list[str] = []
    for kind in kinds:
        rows.append((f"**{KINDS[kind]}**", "", ""))
        sections.append(f"## {KINDS[kind]}")
        for entry in (entry for entry in entries if entry.kind == kind):
            rows.append(_line(entry))
            sections.append(_section(entry))
    heads = ("method", "idea", "printed")
    dataset, ratio, network = COLUMN
    label = (
        f"*Printed* is the accuracy in percent on {dataset}, ratio {ratio:g}, {network}, alone and "
        "with PLOT, as papers and their repositories print it. Their budgets differ, and none is a "
        "result of ltbench."
    )
    updates = [f"## Updates\n\n{UPDATE_TEXT}", *(_update(name) for name in UPDATES.names())]
    return "\n\n".join([table(heads, rows), label, *sections, *updates])


def places() -> dict[str, str]:
    """Return the anchor of each method's section, by its name."""
    entries = sorted(catalogue(), key=lambda entry: [*KINDS].index(entry.kind))
    return dict(
        zip(
            [entry.name for entry in entries],
            anchors(METHODS.title(entry.name) for entry in entries),
            strict=True,
        )
    )


def _line(entry: Entry) -> tuple[str, ...]:
    """Return the row of a method in the table."""
    title = METHODS.title(entry.name)
    venue = re.search(VENUE, entry.paper) if entry.paper[0].isupper() else None  # of its own paper
    at = [row for row in entry.published if _place(row) == COLUMN]
    bases = dict.fromkeys(row["method"].removesuffix(PLOT) for row in at)
    base = title if title in bases else next(iter(bases), title)
    named = "" if base == title else f" ({base})"
    alone, plot = (_printed([r for r in at if r["method"] == m]) for m in (base, base + PLOT))
    link = f"[{title}](#{places()[entry.name]}){f', {venue[0]}' if venue else ''}"
    texts = [f"{alone}{named}"] * bool(alone) + [f"+{PLOT.split()[-1]} {plot}"] * bool(plot)
    return link, cell(entry.summary), ", ".join(texts)


def _section(entry: Entry) -> str:
    """Return the section of a method."""
    title = METHODS.title(entry.name)
    facts = [("Name", f"`{entry.name}`, {_options(entry.name)}")]
    facts += [("Paper", _linked(entry.paper)), ("Departures", _sentence(entry.departures))]
    if entry.recipes:
        facts.append((f"Recipes ({len(entry.recipes)})", ", ".join(map(_recipe, entry.recipes))))
    elif METHODS.facts(entry.name).stage_of:
        folder = METHODS.facts(entry.name).stage_of
        facts.append(("Recipes", f"a stage of those in [{folder}](../../recipes/{folder})"))
    facts.append(("Results of ltbench", "; ".join(map(_ours, entry.ours)) or "none committed yet"))
    lines = "\n".join(f"- **{name}:** {text}" for name, text in facts)
    printed = _table(entry)
    text = f"### {title}\n\n{entry.summary}\n\n{lines}"
    return f"{text}\n\n{printed}" if printed else text


def _options(name: str) -> str:
    fields = METHODS.options(name).model_fields
    page = "../../recipes/KEYS.md"
    if not fields:
        return f"[no options]({page}#methods-stagesnmethod)"
    named = METHODS.facts(name).title
    link = f"{page}#{anchor(f'{named} ({name})' if named else name)}"
    return f"[{len(fields)} option{'s' * (len(fields) > 1)}]({link})"


def _update(name: str) -> str:
    """Return the section of an update."""
    doc = inspect.getdoc(UPDATES.get(name)) or ""
    body = doc.partition("\nReference:")[0].split("\n\n")
    recipes = [recipe for recipe in list_recipes() if name in _updates(recipe)]
    facts = [("Name", f"`{name}`"), ("Paper", _linked(docstring_section(doc, "Reference")))]
    facts.append(("Departures", _sentence(docstring_section(doc, "Departures"))))
    count = f"{len(recipes)}, the first of them {_recipe(recipes[0])}" if recipes else "none"
    facts.append(("Recipes", count))
    ours = [row for row in average_seeds(records()) if name in _updates(row["recipe"])]
    if ours and name != "plain":  # those of plain steps stand with their methods
        facts.append(("Results of ltbench", "; ".join(map(_ours, ours))))
    if UPDATES.options(name).model_fields:
        count = len(UPDATES.options(name).model_fields)
        facts.insert(1, ("Options", f"[{count}](../../recipes/KEYS.md#{name})"))
    lines = "\n".join(f"- **{label}:** {text}" for label, text in facts)
    more = "\n\n".join(" ".join(part.replace("``", "`").split()) for part in body[1:] if part)
    parts = [f"### `{name}`", first_sentence(doc), more, lines]
    return "\n\n".join(part for part in parts if part)


def _updates(recipe: str) -> set[str]:
    """Return the names of a recipe's updates."""
    tree, _ = read_tree(recipe)
    found: set[str] = set()
    for stage in tree["stages"]:
        update = stage.get("update", "plain")
        while update:
            mapping = update if isinstance(update, dict) else {"name": update}
            found.add(mapping["name"])
            update = mapping.get("after")
    return found


def _table(entry: Entry) -> str:
    """Return a table of the printed results of a method; empty if there are none."""
    places: dict[str, list[Row]] = {}
    for row in entry.published:
        dataset, ratio, network = _place(row)
        base = row["method"].removesuffix(PLOT)
        named = "" if base == METHODS.title(entry.name) else f"{base}: "
        places.setdefault(f"{named}{dataset}, {ratio:g}, {network}", []).append(row)
    rows = []
    for place, found in places.items():
        values = [
            _printed([r for r in found if r["method"].endswith(PLOT) is plot])
            for plot in (False, True)
        ]
        rows.append((cell(place), *values))
    heads = ("data set, ratio, network", "printed", "with PLOT")
    return table(heads, rows, (1, 2)) if rows else ""


def _printed(rows: list[Row]) -> str:
    """Return the overall accuracies of rows, each once."""
    return " / ".join(dict.fromkeys(str(row["overall"]) for row in rows))


def _place(row: Row) -> tuple[str, float, str]:
    return row["dataset"], float(row["imbalance_ratio"] or 0), row["backbone"]


def _ours(row: Row) -> str:
    """Return a result of ours with what it needs to be read."""
    dataset, ratio, network = _place(row)
    spread = "" if row["overall_std"] is None else f" ± {row['overall_std']:.2f}"
    seeds = f"{row['n']} seed{'s' * (row['n'] > 1)}"
    note = re.sub("^shortened [^;]*", f"shortened to {row['epochs']} epochs", row["note"])
    notes = f", {note}" if note else ""
    return (
        f"{row['method']} {row['overall']:.2f}{spread} on {dataset}, ratio {ratio:g}, {network} "
        f"({seeds}, {row['status']}{notes})"
    )


def _recipe(name: str) -> str:
    return f"[{name}](../../recipes/{family(name)}{'/' * bool(family(name))}{name}.yaml)"


def _linked(paper: str) -> str:
    """Return a reference with its numbers on arXiv as links."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
    return _sentence(re.sub(r"(?<![(\[])(https://\S+[^\s.,;])", r"<\1>", text))


def _sentence(text: str) -> str:
    """Return a docstring's section as it stands in Markdown, with a capital."""
    return f"{text[:1].upper()}{text[1:]}".replace("``", "`")


def updated(text: str) -> str:
    """Return the page with the gallery as it should be.

    Raises:
        SystemExit: the marks are missing.
    """
    return replaced(text, BEGIN, END, gallery())

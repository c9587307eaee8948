"""Catalogue of methods: paper, kind, hooks they override, results."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.config.files import list_recipes
from ltbench.config.registry import docstring_section
from ltbench.methods import METHODS
from ltbench.records.titles import method_title

if TYPE_CHECKING:
    from ltbench.records.aggregate import Row

HOOKS = (
    *("views", "streams", "streams_for", "freeze", "frozen_bn", "trains", "make_head", "setup"),
    *("on_epoch", "examine", "strengths", "prepare", "loss", "after_step", "predict", "export"),
)


@dataclass(frozen=True)
class Entry:
    """One method of the catalogue.

    Args:
        name: as registered.
        summary: first sentence of its documentation.
        kind: category in the literature.
        paper: the reference, as one line.
        year: of the paper; ``None`` where the reference names none.
        overrides: parts of the contract that it fills in.
        departures: from paper or authors' code, as one line.
        recipes: names of those that are about this method.
        published: printed top-1 results, best known first within a data set.
        ours: committed records, averaged over seeds.
    """

    name: str
    summary: str
    kind: str
    paper: str
    year: int | None
    overrides: tuple[str, ...]
    departures: str
    recipes: tuple[str, ...]
    published: tuple[Row, ...]
    ours: tuple[Row, ...]


def paper_of(name: str) -> str:
    """Return the reference of a registered method."""
    return docstring_section(inspect.getdoc(METHODS.get(name)) or "", "Reference")


def catalogue(pattern: str = "*") -> list[Entry]:
    """Return the methods whose name matches a shell pattern, in the registry's order."""
    from ltbench.records.aggregate import average_seeds
    from ltbench.records.literature import published
    from ltbench.records.store import records

    cited, ours = published(), average_seeds(records())
    names, every = METHODS.names(), list_recipes()
    entries = []
    for name in METHODS.names(pattern):
        own = _recipes_of(name, names, every)
        titles = {method_title(recipe) for recipe in own}
        cls = METHODS.get(name)
        doc = inspect.getdoc(cls) or ""
        paper = paper_of(name)
        year = re.search(r"\b(?:19|20)\d\d\b", re.sub(r"arXiv:\S+", "", paper))
        entries.append(
            Entry(
                name=name,
                summary=" ".join(doc.split("\n\n")[0].split()),
                kind=cls.kind,
                paper=paper,
                year=int(year[0]) if year else None,
                overrides=tuple(hook for hook in HOOKS if _fills_in(cls, hook)),
                departures=docstring_section(doc, "Departures"),
                recipes=own,
                published=tuple(row for row in cited if row["method"] in titles),
                ours=tuple(row for row in ours if row["recipe"] in own),
            )
        )
    return entries


def describe(entry: Entry) -> list[tuple[str, str]]:
    """Return an entry as labelled lines."""
    return [
        ("kind", entry.kind),
        ("paper", entry.paper),
        ("overrides", ", ".join(entry.overrides) or "nothing"),
        ("departures", entry.departures),
        ("recipes", f"{len(entry.recipes)}: {', '.join(entry.recipes)}" if entry.recipes else "-"),
        ("published", _results(entry.published)),
        ("ours", _results(entry.ours)),
    ]


def _recipes_of(name: str, methods: list[str], recipes: list[str]) -> tuple[str, ...]:
    """Return the recipes whose names begin with a method's, and with that of no longer one."""
    longer = [m for m in methods if m.startswith(f"{name}_")]
    return tuple(
        recipe
        for recipe in recipes
        if f"{recipe}_".startswith(f"{name}_")
        and not any(f"{recipe}_".startswith(f"{m}_") for m in longer)
    )


def _fills_in(cls: Any, hook: str) -> bool:
    from ltbench.methods.base import Method

    return bool(getattr(cls, hook) != getattr(Method, hook))


def _results(rows: tuple[Row, ...]) -> str:
    """Return overall results on one line: those of a method, data set and network together."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        overall = row["overall"]
        value = overall if isinstance(overall, str) else f"{overall:.2f}"
        if str(row.get("note", "")).startswith("shortened"):
            value += f" (shortened, {row['epochs']} epochs)"
        place = (row["method"], row["dataset"], row["backbone"])
        values = found.setdefault(place, {}).setdefault(f"{float(row['imbalance_ratio']):g}", [])
        if value not in values:
            values.append(value)
    return (
        "; ".join(
            f"{', '.join(place)}: "
            + ", ".join(f"{'/'.join(values)} at {ratio}" for ratio, values in by_ratio.items())
            for place, by_ratio in found.items()
        )
        or "-"
    )

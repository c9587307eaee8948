"""Template values of the page: rows, details, published results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltbench.config import plugins
from ltbench.config.files import list_recipes
from ltbench.config.registry import natural
from ltbench.data import DATASETS
from ltbench.data.shots import GROUPS
from ltbench.leaderboard import figures
from ltbench.leaderboard.details import ORIGINS, details, modified, source_link
from ltbench.leaderboard.merged import merged
from ltbench.leaderboard.settings import SETTINGS, published_setting
from ltbench.leaderboard.tables import section_order
from ltbench.leaderboard.text import short_sources
from ltbench.records.aggregate import VALUES, Row, plus_minus
from ltbench.records.literature import FACTS, UNKNOWN, longest_stage, marks, published, short_source
from ltbench.records.record import Record
from ltbench.records.titles import (
    backbone_title,
    dataset_name,
    dataset_title,
    key,
    method_title,
    split_name,
    usual_title,
)

METRICS = {
    "top1": "top-1, %",
    "open_set_f": "open-set F",
    "open_set_f_percent": "open-set F, %",
    "gpu_hours": "GPU hours",
}
BUDGETS = (30, 90, 100, 200, 300, 400, 600, 1000)  # epochs to filter by


def tab(
    title: str,
    names: Sequence[str],
    rows: Sequence[Row],
    papers: dict[str, dict[str, str]],
    aims: dict[tuple[str, str, str], list[str]],
) -> dict[str, Any]:
    """Return the template values of a tab: one data set, or several."""
    from ltbench.hub.zoo import read_index

    here = sorted((row for row in rows if row["dataset"] in names), key=section_order)
    zoo = read_index()
    name = _slug(title)
    sections = list(dict.fromkeys(map(_section, here)))
    bests = {
        section: max(row["overall"] for row in here if _section(row) == section)
        for section in sections
    }
    order = {section: number for number, section in enumerate(sections)}
    shown, more = [], {}
    for number, row in enumerate(merged(here)):
        section = _section(row)
        shown.append(
            {
                **_shown(row),
                "id": f"{name}-{number}",
                "order": order[section],
                "best": row["overall"] == bests[section] and row["setting"] != UNKNOWN,
            }
        )
        paper = _paper(_base(row), papers)
        known = _recipes_for(row, aims)
        more[f"{name}-{number}"] = details(row, paper, known, zoo)
    shown.sort(key=lambda row: (row["order"], -row["overall"]))
    measured = [row for row in here if row["origin"] != "imported"]
    pairs = figures.gains(measured)
    where, costs = figures.costs(measured)
    ratios = sorted({row["ratio"] for row in shown}, key=float)
    return {
        "id": name,
        "title": title,
        "several": len(names) > 1,
        "columns": [v for v in VALUES if any(row[v] is not None for row in here)],
        "rows": shown,
        "ours": sum(row["ours"] and not row["imported"] for row in shown),
        "ratio": "100" if "100" in ratios and len(ratios) > 1 else "",
        "facets": {
            "ratio": ratios,
            "method": _sorted({row["family"] for row in shown}),
            "backbone": _sorted({row["backbone"] for row in shown}),
            "status": _sorted({row["status"] for row in shown}),
            "setting": _settings(shown),
            "track": _sorted({row["track"] for row in shown}),
            "augmentation": _sorted({row["augmentation"] for row in shown}),
            "selection": _sorted({row["selection"] for row in shown}),
            "budget": _budgets(shown),
        },
        "details": _for_html(more),
        "gain": figures.gain_figure(pairs, f"{name}-gain") if pairs else "",
        "gains_ours": sum(gain.ours for gain in pairs),
        "cost": figures.cost_figure(costs, f"{name}-cost") if figures.resolved(costs) else "",
        "cost_of": where,
        "example": next(iter(_recipes_of_data(names[0])), ""),
    }


def _shown(row: Row) -> dict[str, Any]:
    """Return a row with all texts that the template needs."""
    ours = bool(row.get("records"))
    base = _base(row)
    return {
        **{k: row[k] for k in ("dataset", "method", "plot", "backbone", "overall", "status")},
        **{k: row[k] for k in ("track", "tie", "epochs", "augmentation", "selection")},
        "setting": SETTINGS[row["setting"]],
        "longest": longest_stage(row["epochs"]),
        "where": _origins(row),
        "imported": row["origin"] == "imported",
        "from": _from(row),
        "ratio": f"{row['imbalance_ratio']:g}",
        "name": base,
        "family": _family(base),
        "values": [{"name": v, "number": row[v], "text": _text(row, v)} for v in VALUES],
        "bars": _bars(row),
        "n": row["n"] if ours else None,
        "ours": ours,
        "marks": [m for m in row["footnotes"].split(",") if m],
        "modified": modified(row["records"][0]) if ours else 0,
        "outside": _outside(row["records"][0]) if ours else "",
    }


def _from(row: Row) -> str:
    """Return where a row comes from, in few words."""
    if row["origin"] == "reproduced":
        return "ours"
    if row["origin"] == "imported":
        name = row["records"][0].imported.release
        return name or f"imported from {short_source(row['source'])}"
    return short_sources(row.get("sources", [row["source"]]))


def _base(row: Row) -> str:
    method: str = row["method"]
    return method.removesuffix(" + PLOT") if row["plot"] else method


def _origins(row: Row) -> str:
    """Return the origins of what is known of a row's training, as one line."""
    return "; ".join(f"{fact}: {row[fact]} ({ORIGINS[row[f'{fact}_from']]})" for fact in FACTS)


def _budgets(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the numbers of epochs to filter by."""
    known = sorted({row["longest"] for row in rows} - {None})
    return [n for n in BUDGETS if known and known[0] <= n < known[-1]]


def _for_html(tree: Any) -> str:
    """Return data as JSON that HTML shows as it stands."""
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _outside(record: Record) -> str:
    """Return the plugins that a record's recipe uses; empty for code of ltbench only."""
    return ", ".join(map(plugins.title, plugins.marks(record.recipe.resolved)))


def literature(papers: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return all rows of ``published.csv`` for the template, and their filters."""
    rows = []
    for row in published(None):
        plot = row["method"].endswith(" + PLOT")
        base = row["method"].removesuffix(" + PLOT")
        rows.append(
            {
                **row,
                "longest": longest_stage(row["epochs"]),
                "setting": SETTINGS[published_setting(row).name],
                "where": _origins(row),
                "dataset": row["dataset"] or "not stated",
                "plot": plot,
                "name": base,
                "family": _family(base),
                "metric": METRICS[row["metric"]],
                "source": source_link(row["source"]),
                "paper": _paper(base, papers),
                "marks": marks(row),
                "table_marks": marks(row, "table"),
            }
        )
    facets = {
        "dataset": "dataset",
        "ratio": "imbalance_ratio",
        "method": "family",
        "backbone": "backbone",
        "metric": "metric",
    }
    return {
        "rows": rows,
        "facets": {
            **{name: _sorted({row[k] for row in rows if row[k]}) for name, k in facets.items()},
            "source": _sorted({row["source"]["text"] for row in rows}),
            "setting": _settings(rows),
            "augmentation": _sorted({row["augmentation"] for row in rows}),
            "selection": _sorted({row["selection"] for row in rows}),
            "budget": _budgets(rows),
        },
    }


def papers_by_method() -> dict[str, dict[str, str]]:
    """Return reference and address of the paper of each method, by the method's title."""
    from ltbench.leaderboard.papers import paper_in_source
    from ltbench.methods import METHODS

    found = {}
    for name in METHODS.names():
        paper = paper_in_source(name)
        number = re.search(r"arXiv:(\d{4}\.\d{4,5})", paper)
        link = f"https://arxiv.org/abs/{number[1]}" if number else ""
        found[method_title(name)] = {"text": paper, "link": link}
    return found


def _paper(method: str, papers: dict[str, dict[str, str]]) -> dict[str, str] | None:
    """Return the paper of a published or registered method, if the catalogue knows it."""
    name = usual_title(method)
    fitting = [t for t in papers if name == t or re.match(rf"{re.escape(t)}(?:[ +]|$)", name)]
    return papers[max(fitting, key=len)] if fitting else None


def _family(method: str) -> str:
    """Return a method without the variant that follows its name."""
    return re.split(r" w/ | \(| stage \d| \+ temporal| \+ distill", method)[0]


def recipes_by_aim() -> dict[tuple[str, str, str], list[str]]:
    """Return names of recipes by method's title, data set's title and ratio ("" if it has one)."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in list_recipes():
        parts = split_name(name)
        if parts.dataset:
            data = dataset_title(parts.dataset)
            ratio = (parts.ratio or "100") if data.startswith("CIFAR") else ""
            found.setdefault((key(method_title(name)), data, ratio), []).append(name)
    return found


def _recipes_for(row: Row, aims: dict[tuple[str, str, str], list[str]]) -> list[str]:
    """Return recipes of a published row's method on its data."""
    if row.get("records"):
        return []
    method = usual_title(row["method"])
    ratio = f"{row['imbalance_ratio']:g}" if row["dataset"].startswith("CIFAR") else ""
    names = aims.get((key(method), row["dataset"], ratio), [])
    network = [n for n in names if backbone_title(split_name(n).backbone) == row["backbone"]]
    plain = [n for n in names if not split_name(n).backbone]
    return network or plain


def _recipes_of_data(title: str) -> list[str]:
    """Return recipes to begin with on a data set."""
    return list_recipes(f"crt_mixup_plot_{DATASETS.facts(dataset_name(title)).suffix}")


def _bars(row: Row) -> list[dict[str, Any]]:
    """Return the shot groups that a row has, for its bars."""
    return [{"name": g, "number": row[g]} for g in GROUPS if row[g] is not None]


def _text(row: Row, value: str) -> str:
    spread = None if value == "ece" else row[f"{value}_std"]  # that of each seed unfolds
    return plus_minus(row[value], spread, missing="")


def _section(row: Row) -> tuple[str, str, str, str]:
    return row["dataset"], f"{row['imbalance_ratio']:g}", row["setting"], row["track"]


def _settings(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the settings that rows have, in the order of their tables."""
    there = {row["setting"] for row in rows}
    return [text for text in SETTINGS.values() if text in there]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _sorted(texts: Iterable[str]) -> list[str]:
    return sorted(filter(None, texts), key=lambda text: natural(text.lower()))

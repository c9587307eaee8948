"""Template values of the page: rows, details, published results."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltbench.config import plugins
from ltbench.config.files import list_recipes
from ltbench.config.registry import natural
from ltbench.data import DATASETS
from ltbench.data.shots import GROUPS, shot_groups
from ltbench.leaderboard import figures, reproduce
from ltbench.leaderboard.tables import AS_PUBLISHED, section_order
from ltbench.records.aggregate import VALUES, Row, percentages, plus_minus
from ltbench.records.claims import initial_weights
from ltbench.records.literature import marks, published, short_source
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

if TYPE_CHECKING:
    from ltbench.hub.zoo import Entry

METRICS = {
    "top1": "top-1, %",
    "open_set_f": "open-set F",
    "open_set_f_percent": "open-set F, %",
    "gpu_hours": "GPU hours",
}
MOST_CLASSES = 200  # whose recalls still make a picture
PLOT_PAPER = "https://iclr.cc/virtual/2024/poster/18344"


def tab(
    title: str,
    names: Sequence[str],
    rows: Sequence[Row],
    papers: dict[str, dict[str, str]],
    aims: dict[tuple[str, str, str], list[str]],
) -> dict[str, Any]:
    """Return the template values of a tab: one data set, or several."""
    here = sorted((row for row in rows if row["dataset"] in names), key=section_order)
    name = _slug(title)
    sections = list(dict.fromkeys(map(_section, here)))
    bests = {
        section: max(row["overall"] for row in here if _section(row) == section)
        for section in sections
    }
    shown = [
        {
            **_shown(row, papers),
            "id": f"{name}-{number}",
            "section": _section(row),
            "order": sections.index(_section(row)),
            "best": row["overall"] == bests[_section(row)],
            "recipes": _recipes_for(row, aims),
        }
        for number, row in enumerate(_merged(here))
    ]
    shown.sort(key=lambda row: (row["order"], -row["overall"]))
    pairs = figures.gains(here)
    where, costs = figures.costs(here)
    ratios = sorted({row["ratio"] for row in shown}, key=float)
    return {
        "id": name,
        "title": title,
        "several": len(names) > 1,
        "columns": [v for v in VALUES if any(row[v] is not None for row in here)],
        "rows": shown,
        "ours": sum(row["ours"] for row in shown),
        "ratio": "100" if "100" in ratios and len(ratios) > 1 else "",
        "facets": {
            "ratio": ratios,
            "method": _sorted({row["family"] for row in shown}),
            "backbone": _sorted({row["backbone"] for row in shown}),
            "status": _sorted({row["status"] for row in shown}),
            "track": _sorted({row["track"] for row in shown}),
        },
        "gain": figures.gain_figure(pairs, f"{name}-gain") if pairs else "",
        "gains_ours": sum(gain.ours for gain in pairs),
        "cost": figures.cost_figure(costs, f"{name}-cost") if len(costs) > 1 else "",
        "cost_of": where,
        "example": next(iter(_recipes_of_data(names[0])), ""),
    }


def _shown(row: Row, papers: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return a row with all texts that the template needs."""
    ours = bool(row.get("records"))
    base = row["method"].removesuffix(" + PLOT") if row["plot"] else row["method"]
    return {
        **{k: row[k] for k in ("dataset", "method", "plot", "backbone", "overall", "status")},
        **{k: row[k] for k in ("track", "tie", "epochs")},
        "sources": row.get("sources", [_source(row["source"])]),
        "ratio": f"{row['imbalance_ratio']:g}",
        "name": base if row["plot"] else row["method"],
        "family": _family(base),
        "values": [{"name": v, "number": row[v], "text": _text(row, v)} for v in VALUES],
        "bars": _bars(row),
        "n": row["n"] if ours else None,
        "ours": ours,
        "paper": _paper(base, papers),
        "marks": [m for m in row["footnotes"].split(",") if m],
        "table_marks": row.get("table_marks", []),
        "modified": _modified(row["records"][0]) if ours else 0,
        "outside": _outside(row["records"][0]) if ours else "",
        "run": run_details(row["records"]) if ours else None,
    }


def run_details(seeds: Sequence[Record]) -> dict[str, Any]:
    """Return the details that unfold below a row of ours."""
    from ltbench.hub.zoo import read_index

    zoo = read_index()
    first = seeds[-1]
    execution = first.execution
    seconds = [record.execution.wall_seconds for record in seeds]
    return {
        "recipe": first.recipe.name,
        "digest": first.recipe.digest,
        "changed": ", ".join(f"{k}={v}" for k, v in reproduce.changed(first).items()),
        "resolved": _yaml(first.recipe.resolved),
        "command": reproduce.command(seeds),
        "hardware": list(
            dict.fromkeys(
                (r.execution.ranks[-1], r.execution.gpu or f"{r.execution.cpu} (CPU)")
                for r in seeds
            )
        ),
        "execution": execution,
        "hours": statistics.fmean(seconds) / 3600,
        "code": list(dict.fromkeys(_code(record) for record in seeds)),
        "start": initial_weights(first.recipe.resolved),
        "dataset": first.dataset,
        "classes": _classes(seeds),
        "seeds": [
            {
                "record": record,
                "values": [
                    {"name": v, "text": "" if x is None else f"{x:.2f}"}
                    for v, x in percentages(record).items()
                ],
                "load": _load(record, zoo),
            }
            for record in seeds
        ],
    }


def _outside(record: Record) -> str:
    """Return the plugins that a record's recipe uses; empty for code of ltbench only."""
    return ", ".join(map(plugins.title, plugins.marks(record.recipe.resolved)))


def _modified(record: Record) -> int:
    """Return the number of changed options, without the data's and those that follow a budget."""
    keys = reproduce.changed(record).keys() - set(record.shortened)
    follow = (".schedule.", ".epochs") if record.shortened else ()
    return sum(not key.startswith("data.") and not any(f in key for f in follow) for key in keys)


def _load(record: Record, zoo: Mapping[str, Mapping[int, Entry]]) -> str | None:
    """Return the code that loads the weights of a record; ``None`` if they were not published."""
    facts, name = record.checkpoint, record.recipe.name
    if facts is None:
        return None
    known = zoo.get(name, {}).get(record.seed)
    if known is not None and known.sha256 == facts.sha256:
        return f'ltbench.load("{name}", seed={record.seed})'
    if facts.repository is None or facts.revision is None:
        return None
    return f'ltbench.load("hf-hub:{facts.repository}@{facts.revision}")'


def _classes(seeds: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the recall of each class, mean over seeds, largest class first, by shot group."""
    counts = seeds[0].metrics.class_counts
    if len(counts) > MOST_CLASSES:
        return []
    groups = shot_groups(counts)
    group_of = {k: group for group in GROUPS for k in groups[group]}
    order = sorted(range(len(counts)), key=lambda k: -counts[k])
    recalls = [
        statistics.fmean(100 * r.metrics.correct[k] / max(r.metrics.total[k], 1) for r in seeds)
        for k in order
    ]
    return [
        {"count": counts[k], "group": group_of[k], "recall": recall}
        for k, recall in zip(order, recalls, strict=True)
    ]


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Return rows with results that several tables print alike made one."""
    done: list[Row] = []
    by_place: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.get("records") or row["track"] != AS_PUBLISHED:
            done.append(row)
            continue
        place = tuple(row[k] for k in ("dataset", "imbalance_ratio", "method", "backbone"))
        same = by_place.setdefault((*place, row["overall"]), [])
        twin = next((other for other in same if _agree(row, other)), None)
        if twin is None:
            twin = {**row, "sources": [], "table_marks": []}
            same.append(twin)
            done.append(twin)
        twin.update({g: row[g] for g in GROUPS if twin[g] is None})
        twin["sources"].append(_source(row["source"]))
        twin["footnotes"] = _joined(twin["footnotes"], row["footnotes"])
        twin["table_marks"] = sorted(
            {*twin["table_marks"], *marks(_as_printed(row), "table")}, key=int
        )
    return done


def _as_printed(row: Row) -> Row:
    """Return a row with the ratio as text and a metric, as in ``published.csv``."""
    return {**row, "imbalance_ratio": f"{row['imbalance_ratio']:g}", "metric": "top1"}


def _agree(one: Row, other: Row) -> bool:
    return all(None in (one[g], other[g]) or one[g] == other[g] for g in GROUPS)


def _joined(one: str, other: str) -> str:
    return ",".join(sorted({m for m in f"{one},{other}".split(",") if m}, key=int))


def literature(papers: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return all rows of ``published.csv`` for the template, and their filters."""
    rows = []
    for row in published(None):
        plot = row["method"].endswith(" + PLOT")
        base = row["method"].removesuffix(" + PLOT")
        rows.append(
            {
                **row,
                "dataset": row["dataset"] or "not stated",
                "plot": plot,
                "name": base,
                "family": _family(base),
                "metric": METRICS[row["metric"]],
                "source": _source(row["source"]),
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
        },
    }


def papers_by_method() -> dict[str, dict[str, str]]:
    """Return reference and address of the paper of each method, by the method's title."""
    from ltbench.leaderboard.catalogue import paper_of
    from ltbench.methods import METHODS

    found = {}
    for name in METHODS.names():
        paper = paper_of(name)
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


def _source(source: str) -> dict[str, str]:
    """Return a source's full and short text, and the address of a repository."""
    repository = re.match(r"[\w.-]+/[\w.-]+(?= )", source)
    link = f"https://github.com/{repository[0]}" if repository else ""
    if source.startswith("PLOT "):
        link = PLOT_PAPER
    return {"text": source, "short": short_source(source), "link": link}


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
    return plus_minus(row[value], row[f"{value}_std"], missing="")


def _section(row: Row) -> tuple[str, str, str]:
    return row["dataset"], f"{row['imbalance_ratio']:g}", row["track"]


def _code(record: Record) -> str:
    code = record.code
    commit = f", commit {code.commit[:12]}" if code.commit else ""
    return f"ltbench {code.version}{commit}{' with changes' if code.dirty else ''}"


def _yaml(tree: dict[str, Any]) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the fast one, where it was built
    text: str = yaml.dump(tree, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def size_text(count: int) -> str:
    """Return a number of bytes as a reader would say it."""
    power = min(int(math.log(max(count, 1), 1024)), 3)
    return f"{count / 1024**power:.{1 if power else 0}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _sorted(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: natural(text.lower()))

"""HTML page of the leaderboard: one file, no requests."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ltbench.data import DATASETS
from ltbench.errors import UserError
from ltbench.leaderboard import view
from ltbench.leaderboard.findings import findings
from ltbench.leaderboard.findings_text import summary
from ltbench.leaderboard.tables import board_rows
from ltbench.machine import environment
from ltbench.records.literature import footnotes, published
from ltbench.records.record import Record
from ltbench.version import __version__

TABS = tuple(part.title for part in DATASETS.parts().values() if part.suffix)  # with recipes
EARLY = 'document.documentElement.classList.add("js")'  # before anything is drawn


def build_page(folder: Path | None = None) -> str:
    """Return the page: a tab per data set, the literature, figures; the same for the same records.

    Its date is that of the newest record, or SOURCE_DATE_EPOCH.

    Args:
        folder: folder of the records, by default the committed ones.

    Raises:
        UserError: the table library is missing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    rows = board_rows(folder, checked=True)
    ours = [row for row in rows if row.get("records")]
    runs = [record for row in ours for record in row["records"]]
    found = findings(runs)
    papers, aims = view.papers_by_method(), view.recipes_by_aim()
    others = {row["dataset"] for row in ours} - set(TABS)
    filled = {row["dataset"] for row in rows}
    tabs = [view.tab(name, [name], rows, papers, aims) for name in TABS if name in filled]
    if others:
        tabs.append(view.tab("Other data", sorted(others), rows, papers, aims))
    script = _script()
    code = environment()["code"]
    template = Environment(
        loader=PackageLoader("ltbench.leaderboard", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = next((tab["id"] for tab in tabs if tab["ours"]), tabs[0]["id"])
    return template.get_template("page.html.jinja").render(
        tabs=tabs,
        first=first,
        found=summary(found) if found.places else [],
        literature=view.literature(papers),
        notes=footnotes(),
        date=_date(runs),
        version=__version__,
        commit=code["commit"],
        dirty=code["dirty"],
        runs=len(runs),
        ours=len(ours),
        verified=sum(row["status"] == "verified" for row in ours),
        printed=len(published(None)),
        sources=len({row["source"] for row in published(None)}),
        style=_part("page.css"),
        script=script,
        hashes=[_csp_hash(EARLY), _csp_hash(script)],
        early=EARLY,
    )


def _date(runs: Sequence[Record]) -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdigit():
        return datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).date().isoformat()
    return max((record.date for record in runs), default="")


def _part(name: str) -> str:
    return (resources.files("ltbench.leaderboard") / name).read_text(encoding="utf-8")


def _script() -> str:
    """Return the table library and our script as one module: what it exports stays inside."""
    bundle = (resources.files("itables") / "html" / "dt_bundle.js").read_text(encoding="utf-8")
    exported = re.search(r"export\s*\{[^}]*?([\w$]+) as jQuery\b", bundle)
    if exported is None:
        raise UserError(
            "the installed itables has another table library than this page knows; install "
            "itables 2.5 or newer of major version 2"
        )
    script = f"{bundle}\n({_part('page.js').strip()})({exported[1]}.fn.dataTable);\n"
    # HTML must not see tags in it.
    return re.sub("<(?=!--|/?script)", r"\\x3C", script, flags=re.IGNORECASE)


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

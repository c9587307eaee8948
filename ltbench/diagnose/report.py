"""The page of a diagnosis: one file that needs no other and no network."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench import __version__
from ltbench.diagnose.base import Diagnostic, Subject, Tables
from ltbench.names import dataset_title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROWS, COLUMNS = 30, 12  # of a table that is shown in the page
DPI = 144


@dataclass(frozen=True)
class Picture:
    """A figure as it is written.

    Args:
        name: of the figure.
        png: its pixels.
        svg: its lines.
        width: in CSS pixels.
    """

    name: str
    png: bytes
    svg: bytes
    width: int

    @property
    def source(self) -> str:
        """The smaller of the two as the address of an image."""
        kind, content = min(
            ("png", self.png), ("svg+xml", self.svg), key=lambda found: len(found[1])
        )
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Shown:
    """A table as text: its name, its columns, its rows, and which columns are numbers."""

    name: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]


@dataclass
class Section:
    """What came of one diagnostic.

    Args:
        name: of the diagnostic.
        about: its class, for the texts.
        options: with their values.
        pictures: its figures.
        results: tables of each subject, by the subjects' names.
        seconds: what measuring took, by the subjects' names.
        problems: why something could not be measured or drawn, one line each.
    """

    name: str
    about: type[Diagnostic]
    options: Mapping[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    results: dict[str, Tables] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def small(self) -> list[Shown]:
        """The tables that fit the page, those of all subjects together."""
        found = [_shown(name, self._together(name)) for name in self._names()]
        return [t for t in found if len(t.rows) <= ROWS and len(t.columns) <= COLUMNS]

    @property
    def files(self) -> list[str]:
        """One line for each table: its name and how many rows it has."""
        return [f"{name} ({len(self._together(name)):,} rows)" for name in self._names()]

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for tables in self.results.values() for name in tables))

    def _together(self, name: str) -> pd.DataFrame:
        import pandas as pd

        own = {s: tables[name] for s, tables in self.results.items() if name in tables}
        if len(self.results) == 1:
            return next(iter(own.values()))
        return pd.concat([t.assign(subject=s) for s, t in own.items()])[
            ["subject", *next(iter(own.values())).columns]
        ]


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, figures are drawn alike; names are never read as formulas, whatever they hold."""
    import matplotlib as mpl

    style: dict[Any, Any] = {
        "text.parse_math": False,
        "text.usetex": False,
        "svg.hashsalt": "ltbench",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def picture(name: str, figure: Figure) -> Picture:
    """Return a figure as PNG and SVG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    _plain_ticks(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Picture(name, png.getvalue(), svg.getvalue(), round(figure.get_figwidth() * 96))


def _plain_ticks(figure: Figure) -> None:
    """Write the ticks of logarithmic axes as numbers; matplotlib writes them as formulas."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if isinstance(axis.get_minor_formatter(), LogFormatter):
                axis.set_minor_formatter(NullFormatter())


def render(title: str, subjects: Sequence[Subject], sections: Sequence[Section]) -> str:
    """Return the page.

    Args:
        title: of the page.
        subjects: what was looked at.
        sections: what came of it, in order.
    """
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    ).from_string(template)
    return page.render(
        title=title,
        version=__version__,
        facts=[_facts(s) for s in subjects],
        sections=sections,
        paragraphs=_paragraphs,
        seconds=duration,
    )


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _facts(subject: Subject) -> dict[str, str]:
    recipe, counts = subject.recipe, subject.data.info.class_counts
    stages = [
        f"{s.method.name}, update {s.update.name}" + (f", {s.epochs} epochs" if s.epochs else "")
        for s in recipe.stages
    ]
    groups = {}
    if subject.record is not None:
        metrics = subject.record.metrics
        groups = {n: getattr(metrics, n) for n in ("top1", "many", "medium", "few")}
    return {
        "model": subject.name,
        "stages": "; ".join(stages),
        "data": f"{dataset_title(subject.data.info.name)}, {len(counts):,} classes of "
        f"{max(counts):,} to {min(counts):,} images",
        "backbone": recipe.backbone.name,
        "seed": str(recipe.seed),
        "accuracy, %": ", ".join(
            f"{name} {100 * value:.1f}" for name, value in groups.items() if value is not None
        ),
    }


def _shown(name: str, table: pd.DataFrame) -> Shown:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numeric = [is_numeric_dtype(d) and not is_bool_dtype(d) for d in table.dtypes]
    rows = [[_text(v) for v in row] for row in table.head(ROWS + 1).itertuples(index=False)]
    return Shown(name, [str(c) for c in table.columns], rows, numeric)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = "" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]

"""Self-contained HTML report of diagnostics."""

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

from ltbench.diagnose.base import Diagnostic, Subject, Tables
from ltbench.records.titles import dataset_title
from ltbench.version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROWS, COLUMNS = 30, 12  # limits of tables shown in the report
DPI = 144


@dataclass(frozen=True)
class Picture:
    """Rendered figure.

    Args:
        name: name of the figure.
        png: PNG file.
        svg: SVG file.
        width: width in CSS pixels.
    """

    name: str
    png: bytes
    svg: bytes
    width: int

    @property
    def source(self) -> str:
        """Data URL of the smaller of the two files."""
        kind, content = min(
            ("png", self.png), ("svg+xml", self.svg), key=lambda found: len(found[1])
        )
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Shown:
    """Table as text: name, columns, rows, and a mask of numeric columns."""

    name: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]


@dataclass
class Section:
    """Results of one diagnostic.

    Args:
        name: name of the diagnostic.
        about: class of the diagnostic, for its texts.
        options: values of its options.
        pictures: its figures.
        results: tables by name of the subject.
        seconds: duration of the measurement by name of the subject.
        problems: one line for each failed measurement or figure.
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
        """Tables of all subjects that are small enough for the report."""
        found = [_shown(name, self._together(name)) for name in self._names()]
        return [t for t in found if len(t.rows) <= ROWS and len(t.columns) <= COLUMNS]

    @property
    def files(self) -> list[str]:
        """Name and number of rows of each table, as text."""
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
    """Context manager with the style of figures; text is never parsed as math."""
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
    """Render a figure as PNG and SVG, deterministically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    _plain_ticks(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Picture(name, png.getvalue(), svg.getvalue(), round(figure.get_figwidth() * 96))


def _plain_ticks(figure: Figure) -> None:
    """Format the ticks of logarithmic axes as plain numbers instead of math text."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if isinstance(axis.get_minor_formatter(), LogFormatter):
                axis.set_minor_formatter(NullFormatter())


def render(title: str, subjects: Sequence[Subject], sections: Sequence[Section]) -> str:
    """Return the HTML report.

    Args:
        title: title of the report.
        subjects: the diagnosed models.
        sections: results of the diagnostics, in order.
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
    """Return a duration in seconds or minutes as text."""
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

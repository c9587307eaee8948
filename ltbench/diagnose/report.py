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
from typing import TYPE_CHECKING, Any, Literal

from ltbench.diagnose.base import Diagnostic, Subject, Tables
from ltbench.diagnose.tables import COLUMNS, ROWS, Shown, heading, shown, superscript, title_of
from ltbench.records.titles import dataset_title
from ltbench.version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 144
DARK = "#16181b"  # background of the page in a dark scheme
# Sections whose sentences begin the summary; those after the first five are folded.
FIRST = ("errors", "calibration", "conflicts", "hessian", "shift")
HEADLINES = 5
Kind = Literal["png", "svg+xml"]


@dataclass(frozen=True)
class Picture:
    """Rendered figure.

    Args:
        name: name of the figure.
        png: PNG file.
        svg: SVG file.
        width: width in CSS pixels.
        dark: file for a dark scheme, of the same kind as ``source``; none if not given.
    """

    name: str
    png: bytes
    svg: bytes
    width: int
    dark: bytes | None = None

    @property
    def kind(self) -> Kind:
        """Format of the smaller of the two files."""
        return "png" if len(self.png) <= len(self.svg) else "svg+xml"

    @property
    def source(self) -> str:
        """Data URL of the smaller of the two files."""
        return _url(self.kind, self.png if self.kind == "png" else self.svg)

    @property
    def dark_source(self) -> str | None:
        """Data URL of the file for a dark scheme."""
        return None if self.dark is None else _url(self.kind, self.dark)


@dataclass
class Section:
    """Results of one diagnostic.

    Args:
        name: name of the diagnostic.
        about: class of the diagnostic, for its texts.
        options: values of its options.
        pictures: its figures.
        findings: sentences about the results by name of the subject, the main one first.
        compared: sentences about differences between the subjects.
        results: tables by name of the subject.
        seconds: duration of the measurement by name of the subject.
        problems: one line for each failed measurement or figure.
    """

    name: str
    about: type[Diagnostic]
    options: Mapping[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)
    results: dict[str, Tables] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """All sentences, those about one of several subjects with its name."""
        own = [s for name in self.findings for s in self._said(name)]
        return [*map(_capital, self.compared), *own]

    @property
    def main(self) -> list[str]:
        """Sentences for the summary: comparisons, else the main sentence of each subject."""
        found = [s for name in self.findings for s in self._said(name)[:1]]
        return [*map(_capital, self.compared)] or found

    def _said(self, name: str) -> list[str]:
        several = len(self.results) > 1
        return [f"{name}: {s}" if several else _capital(s) for s in self.findings[name]]

    @property
    def small(self) -> list[Shown]:
        """Tables of all subjects that are small enough for the report."""
        titles = self.about.headings
        found = [shown(title_of(name, titles), self._together(name)) for name in self._names()]
        return [t for t in found if 0 < len(t.rows) <= ROWS and len(t.columns) <= COLUMNS]

    @property
    def files(self) -> list[str]:
        """Name and number of rows of each table, as text."""
        return [f"{name} ({len(self._together(name)):,} rows)" for name in self._names()]

    @property
    def settings(self) -> list[str]:
        """Options and their values, as words of the command line."""
        return [f"{self.name}.{key}={_word(value)}" for key, value in self.options.items()]

    def caption(self, picture: str) -> str:
        """Return the caption of a figure."""
        return self.about.captions.get(picture, f"{heading(picture)}.").strip()

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for tables in self.results.values() for name in tables))

    def _together(self, name: str) -> pd.DataFrame:
        import pandas as pd

        own = {s: tables[name] for s, tables in self.results.items() if name in tables}
        if len(self.results) == 1:
            return next(iter(own.values()))
        return pd.concat([t.assign(model=s) for s, t in own.items()])[
            ["model", *next(iter(own.values())).columns]
        ]


@contextmanager
def drawing(dark: bool = False) -> Iterator[None]:
    """Context manager with the style of figures; text is never parsed as math.

    Args:
        dark: light text on a dark background.
    """
    import matplotlib as mpl

    style: dict[Any, Any] = {
        "text.parse_math": False,
        "text.usetex": False,
        "svg.hashsalt": "ltbench",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",
    }
    if dark:
        back = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        lines = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        text = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
        style |= dict.fromkeys(back, DARK) | dict.fromkeys(lines, "#8f959c")
        style |= dict.fromkeys(text, "#e8e8e8")
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def pictures(diagnostic: Diagnostic, results: Mapping[str, Tables]) -> list[Picture]:
    """Draw the figures of a diagnostic for a light and for a dark scheme."""
    with drawing():
        light = [picture(name, figure) for name, figure in diagnostic.draw(results).items()]
    with drawing(dark=True):
        dark = diagnostic.draw(results) if light else {}
        return [_with_dark(one, dark[one.name]) for one in light]


def picture(name: str, figure: Figure) -> Picture:
    """Render a figure as PNG and SVG, deterministically."""
    width = round(figure.get_figwidth() * 96)
    return Picture(name, _rendered(figure, "png"), _rendered(figure, "svg+xml"), width)


def _with_dark(light: Picture, figure: Figure) -> Picture:
    dark = _rendered(figure, light.kind)
    return Picture(light.name, light.png, light.svg, light.width, dark)


def _rendered(figure: Figure, kind: Kind) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    _plain_ticks(figure)
    file = io.BytesIO()
    if kind == "png":
        figure.savefig(file, format="png", dpi=DPI)
    else:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _plain_ticks(figure: Figure) -> None:
    """Format the ticks of logarithmic axes as plain numbers instead of math text."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
            if isinstance(axis.get_minor_formatter(), LogFormatter):
                axis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    """Return a power of ten as one if it is small, else as a plain number."""
    power = round(math.log10(value)) if value > 0 else 0
    return f"10{superscript(power)}" if power < -3 and value == 10.0**power else f"{value:g}"


def render(
    title: str, subjects: Sequence[Subject], sections: Sequence[Section], left: Sequence[str] = ()
) -> str:
    """Return the HTML report.

    Args:
        title: title of the report.
        subjects: the diagnosed models.
        sections: results of the diagnostics, in order.
        left: names of diagnostics that have not run yet.
    """
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    ).from_string(template)
    return page.render(
        title=title,
        version=__version__,
        dark=DARK,
        facts=[_facts(s) for s in subjects],
        sections=sections,
        summary=_summary(sections),
        headlines=HEADLINES,
        left=left,
        paragraphs=_paragraphs,
        tight=_tight,
        seconds=duration,
    )


def _summary(sections: Sequence[Section]) -> list[Section]:
    """Return the sections with sentences, those of `FIRST` before the others."""
    order = {name: i for i, name in enumerate(FIRST)}
    return sorted((s for s in sections if s.main), key=lambda s: order.get(s.name, len(order)))


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours as text."""
    if seconds < 0.1:
        return "less than 0.1 s"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _url(kind: Kind, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


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
            f"{'overall' if name == 'top1' else name} {100 * value:.1f}"
            for name, value in groups.items()
            if value is not None
        ),
    }


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _tight(text: str) -> str:
    """Return a sentence in which numbers are not parted from their units and errors."""
    space = "\N{NO-BREAK SPACE}"
    return text.replace(" %", f"{space}%").replace(" ± ", f"{space}±{space}")


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]

"""Run of diagnostics on models, which writes tables, figures and the report."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltbench.config.validation import find_mistakes
from ltbench.config.values import split_values
from ltbench.diagnose import DIAGNOSTICS
from ltbench.diagnose.base import Diagnostic, Subject, Tables
from ltbench.diagnose.report import Section, drawing, duration, picture, render
from ltbench.errors import UserError
from ltbench.files import write_atomic

PAGE = "report.html"
Say = Callable[[str], None]


def choose(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Diagnostic]:
    """Return diagnostics with their options, in the order of the names.

    Args:
        names: of diagnostics.
        options: values by the name of the diagnostic and of the option.

    Raises:
        UserError: a name is unknown, or a value is not what an option takes; all of them at once.
    """
    chosen: dict[str, Diagnostic] = {}
    errors: list[str] = []
    for name in options:
        if name not in names:
            DIAGNOSTICS.get(name)
            errors.append(f"`{name}.*` is given, but `what` does not name {name}; add it")
    for name in names:
        cls = DIAGNOSTICS.get(name)
        fields = cls.Options.model_fields
        given = {
            key: split_values(value, fields[key]) if key in fields else value
            for key, value in options.get(name, {}).items()
        }
        checked, mistakes = find_mistakes(cls.Options, given, name)
        errors += mistakes
        if checked is not None:
            chosen[name] = cls(checked)
    if errors:
        raise UserError("\n".join(errors))
    return chosen


def run(
    diagnostics: Mapping[str, Diagnostic],
    subjects: Sequence[Subject],
    out: Path,
    say: Say = lambda line: None,
) -> list[Section]:
    """Measure and draw, and write everything to a folder.

    A failed measurement is reported, also in the page, and the others go on. The page is rewritten
    after each diagnostic, so that an interrupted run leaves the results so far.

    Args:
        diagnostics: by name, in order.
        subjects: models, of different names.
        out: folder; made if it does not exist.
        say: called with one line of progress at a time.

    Raises:
        UserError: the folder cannot be written, or nothing at all could be measured.
    """
    title = f"Diagnosis of {' and '.join(s.name for s in subjects)}"
    sections: list[Section] = []
    slugs = dict(zip((s.name for s in subjects), _slugs([s.name for s in subjects]), strict=True))
    _make(out)
    for name, diagnostic in diagnostics.items():
        section = Section(name, type(diagnostic), diagnostic.options.model_dump())
        sections.append(section)
        for subject in subjects:
            began = time.monotonic()
            try:
                tables = diagnostic.measure(subject)
            except UserError as error:
                section.problems.append(f"{subject.name}: {error}")
                say(f"{name}: {subject.name}: not measured: {error}")
                continue
            section.seconds[subject.name] = time.monotonic() - began
            section.results[subject.name] = tables
            _write_tables(out / name / slugs[subject.name], tables)
            say(f"{name}: {subject.name}: {duration(section.seconds[subject.name])}")
        if section.results:
            _draw(section, diagnostic, out / name, say)
        page = render(title, subjects, sections)
        write_atomic(out / PAGE, page.encode())
    if not any(section.results for section in sections):
        raise UserError(f"nothing could be measured; {out / PAGE} has the reasons")
    return sections


def _draw(section: Section, diagnostic: Diagnostic, folder: Path, say: Say) -> None:
    try:
        with drawing():
            figures = diagnostic.draw(section.results)
            section.pictures = [picture(name, figure) for name, figure in figures.items()]
    except UserError as error:
        section.problems.append(f"not drawn: {error}")
        say(f"{section.name}: not drawn: {error}")
        return
    _make(folder)
    for drawn in section.pictures:
        write_atomic(folder / f"{drawn.name}.png", drawn.png)
        write_atomic(folder / f"{drawn.name}.svg", drawn.svg)


def _write_tables(folder: Path, tables: Tables) -> None:
    _make(folder)
    for name, table in tables.items():
        parquet = io.BytesIO()
        table.to_parquet(parquet, index=False)
        write_atomic(folder / f"{name}.parquet", parquet.getvalue())
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False).encode())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; pass another `out=`"
        ) from error


def _slugs(names: Sequence[str]) -> list[str]:
    """Return names of folders: letters, digits, dots and dashes, all different."""
    found: list[str] = []
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "model"
        while slug in found:
            slug += "-"
        found.append(slug)
    return found

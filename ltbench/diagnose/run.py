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
from ltbench.diagnose import DIAGNOSTICS, PAGE
from ltbench.diagnose.base import Diagnostic, Subject, Tables
from ltbench.diagnose.report import Section, duration, pictures, render
from ltbench.diagnose.tables import without_files
from ltbench.errors import UserError
from ltbench.files import write_atomic

Say = Callable[[str], None]
Count = Callable[[str, int, int], None]


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
    count: Count = lambda name, done, total: None,
) -> list[Section]:
    """Measure and draw, and write everything to a folder.

    A failed measurement is reported, also in the page, and the others go on. The page is rewritten
    after each diagnostic, so that an interrupted run leaves the results so far.

    Args:
        diagnostics: by name, in order.
        subjects: models, of different names.
        out: folder; made if it does not exist.
        say: called with one line at a time.
        count: called with a name, the steps done and their total during long measurements.

    Raises:
        UserError: the folder cannot be written, or nothing at all could be measured.
    """
    title = f"Diagnosis of {' and '.join(s.name for s in subjects)}"
    sections: list[Section] = []
    left = list(diagnostics)
    slugs = dict(zip((s.name for s in subjects), _slugs([s.name for s in subjects]), strict=True))

    def write() -> None:
        write_atomic(out / PAGE, render(title, subjects, sections, left).encode())

    _make(out)
    try:
        for name, diagnostic in diagnostics.items():
            section = Section(name, type(diagnostic), diagnostic.options.model_dump())
            for subject in subjects:
                _measure(section, diagnostic, subject, say, count)
                if subject.name in section.results:
                    _write_tables(out / name / slugs[subject.name], section.results[subject.name])
            if section.results:
                _present(section, diagnostic, out / name, say)
            sections.append(section)
            left.remove(name)
            write()
    except KeyboardInterrupt:
        done = ", ".join(section.name for section in sections) or "nothing"
        if sections:
            write()
        say(f"interrupted; finished: {done}; left out: what={','.join(left)}")
        if sections:
            say(str(out / PAGE))
        raise
    if not any(section.results for section in sections):
        raise UserError(f"nothing could be measured; {out / PAGE} has the reasons")
    return sections


def _measure(
    section: Section, diagnostic: Diagnostic, subject: Subject, say: Say, count: Count
) -> None:
    """Measure one subject, and note the results or the reason why there are none."""
    where = f"{section.name}: {subject.name}"
    diagnostic.report = lambda done, total: count(where, done, total)
    began = time.monotonic()
    try:
        tables = diagnostic.measure(subject)
    except UserError as error:
        section.problems.append(f"{subject.name}: {error}")
        say(f"{where}: not measured: {error}")
        return
    section.seconds[subject.name] = time.monotonic() - began
    section.results[subject.name] = tables
    say(f"{where}: {duration(section.seconds[subject.name])}")


def _present(section: Section, diagnostic: Diagnostic, folder: Path, say: Say) -> None:
    """Describe and draw the results of a diagnostic."""
    results = section.results
    section.findings = {name: list(diagnostic.describe(t)) for name, t in results.items()}
    if len(results) > 1:
        section.compared = list(diagnostic.compare(results))
    try:
        section.pictures = pictures(diagnostic, results)
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
        write_atomic(folder / f"{name}.csv", without_files(table).to_csv(index=False).encode())


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

"""Runs diagnostics on models, and writes tables, figures and the page."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from ltbench.atomic import write_atomic
from ltbench.diagnose import DIAGNOSTICS
from ltbench.diagnose.base import Diagnostic, Subject, Tables
from ltbench.diagnose.report import Section, drawing, duration, picture, render
from ltbench.errors import UserError, did_you_mean

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
    errors = []
    for name in options:
        if name not in names:
            DIAGNOSTICS.get(name)
            errors.append(f"`{name}.*` is given, but `what` does not name {name}; add it")
    for name in names:
        cls = DIAGNOSTICS.get(name)
        given = {key: _listed(cls, key, value) for key, value in options.get(name, {}).items()}
        try:
            chosen[name] = cls(cls.Options.model_validate(given))
        except ValidationError as error:
            errors += [_explain(name, cls, found) for found in error.errors()]
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

    What cannot be measured is said and stands in the page; the others go on. The page is written
    anew after each diagnostic, so that what is interrupted leaves what was done.

    Args:
        diagnostics: by name, in order.
        subjects: models, of different names.
        out: folder; made if it does not exist.
        say: is given a line when something is done.

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
        raise UserError(f"nothing could be measured; {out / PAGE} says why")
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


def _listed(cls: type[Diagnostic], key: str, value: Any) -> Any:
    """Return ``a,b`` as a list where the option is one."""
    field = cls.Options.model_fields.get(key)
    kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
    if isinstance(value, str | int | float) and any(get_origin(kind) is tuple for kind in kinds):
        return [int(v) if v.isdigit() else v for v in str(value).split(",")]
    return value


def _explain(name: str, cls: type[Diagnostic], error: Any) -> str:
    where = ".".join([name, *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        known = cls.Options.model_fields
        hint = did_you_mean(str(error["loc"][-1]), known) or (
            f"; known: {', '.join(known) or 'none'}"
        )
        return f"`{where}`: unknown option{hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"`{where}`: {message[0].lower()}{message[1:]}, found {error['input']!r}"

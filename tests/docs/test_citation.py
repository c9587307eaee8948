"""CITATION.cff has what the format requires and what the licence says."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_it_has_the_required_fields():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(CITATION)
    assert CITATION["type"] == "software"


def test_the_authors_and_the_licence_are_those_of_the_licence():
    licence = (ROOT / "LICENSE").read_text()
    (author,) = CITATION["authors"]
    assert f"Copyright (c) 2026 {author['name'].replace('The', 'the')}" in licence
    assert licence.startswith(f"{CITATION['license']} License")


def test_it_refers_to_the_paper_of_plot():
    (paper,) = CITATION["references"]
    from ltbench.updates.plot import Plot

    doc = " ".join((Plot.__doc__ or "").split())
    assert paper["title"] in doc
    assert paper["url"] in doc
    assert str(paper["year"]) in doc
    assert [a["family-names"] for a in paper["authors"]] == ["Zhou", "Liu", "Zhao", "Gong"]

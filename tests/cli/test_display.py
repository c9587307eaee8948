"""Text on its way to the terminal: no control characters, no passwords."""

from __future__ import annotations

import io
import shlex
import warnings
from pathlib import Path

import pytest
from PIL import Image

from ltbench.cli import app, display
from ltbench.cli.display import CleanConsole, clean, metrics_table
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.records.results_table import Entry, table_rows
from tests.records.made import made

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\x08\r\u202egnp"


def test_control_characters_are_escaped() -> None:
    assert clean(HOSTILE).isprintable()
    assert clean(HOSTILE).startswith(r"a\x1b]0;title\x07\x1b[2J\x9b31m\x08\r\u202e")
    assert clean("a b\tc\n\u00e9\u00a0\u2500\u6f22") == "a b\tc\n\u00e9\u00a0\u2500\u6f22"


def test_passwords_of_addresses_are_left_out() -> None:
    assert clean("at http://me:pa55@host/x, hf://u@h") == "at http://host/x, hf://h"
    assert (
        clean("mail me@host.org, see https://host/@me") == "mail me@host.org, see https://host/@me"
    )


@pytest.mark.parametrize("colour", [True, False])
def test_the_console_writes_only_its_own_sequences(colour: bool) -> None:
    out = io.StringIO()
    console = CleanConsole(
        file=out, force_terminal=colour, width=200, color_system="standard" if colour else None
    )
    metrics = Metrics(
        class_counts=(3, 2), correct=(1, 1), total=(2, 2), bin_count=(0,) * 7 + (4,) + (0,) * 7,
        bin_correct=(0,) * 7 + (2,) + (0,) * 7, bin_confidence=(0.0,) * 7 + (2.0,) + (0.0,) * 7,
    )  # fmt: skip
    console.print(metrics_table(f"{HOSTILE}[link=file:///etc]x[/link]", metrics))
    console.print(f"[bold]{HOSTILE}[/bold]")
    text = out.getvalue()
    for sequence in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\x08", "\u202e"):
        assert sequence not in text
    assert "[link=file:///etc]" in text
    assert ("\x1b[1m" in text) is colour


def test_errors_and_notes_are_cleaned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise UserError(f"{HOSTILE} at http://me:pa55@host/x")

    monkeypatch.setattr(app.cli, "main", fail)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit, match="2"):
        app.main([])
    note = app._note(HOSTILE, UserWarning, "f", 1)
    for text in (capsys.readouterr().err, note):
        assert r"\x1b[2J" in text
        assert "\x1b" not in text
        assert "pa55" not in text


@pytest.mark.parametrize("name", ["[/b] x", "run #1", "a;b"])
def test_commands_of_the_data_room_show_paths_as_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup in a path is text, and a command to copy is quoted."""
    for part in ("train", "test"):
        for label in "ab":
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (len(part), ord(label), 0)).save(folder / "0.png")
    out = tmp_path / name
    root = tmp_path / "images"
    app.cli.main(
        ["data", "prepare", "dataset=folder", f"root={root}", f"out={out}", "workers=1"],
        standalone_mode=False,
    )
    said = capsys.readouterr().out
    assert f"{out}/train/manifest.json" in said
    assert ["ltbench", "data", "show", str(out)] in [shlex.split(x) for x in said.splitlines()]
    app.cli.main(["data", "check", str(out), "workers=1"], standalone_mode=False)
    assert f"{out}: 4 images" in capsys.readouterr().out


def test_a_deleted_current_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit, match="2"):
        app.main(["list"])
    line = "error: cannot use the current folder (No such file or directory); change to another one"
    assert capsys.readouterr().err == f"{line}\n"


# Grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, None])
def test_a_grid_is_shown_whole_and_written(
    width: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = CleanConsole(force_terminal=width is not None, width=width or 40, color_system=None)
    monkeypatch.setattr(display, "console", shown)
    name = "a_method_with_a_long_name_plot_cifar100"
    records = [made(n, seed, (90, 5 * seed, 0)) for n in ("ce", name) for seed in (0, 1)]
    rows = table_rows(Entry(r.recipe.name, r.recipe.digest, r.seed, r) for r in records)
    rows += table_rows([Entry("none", "0" * 16, 3, reason="failed")])
    display.show_grid(rows, tmp_path / "grid")
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("90.00 ± 0.00") == 2
    assert (f"{name}  2  " in text) is (width is None)
    assert (f"{name}, n = 2, 200 epochs\n" in text) is (width == 80)
    table = text.partition("\nnone: ")[0].splitlines()
    assert (max(map(len, table)) <= 80) is (width == 80)
    assert "none: no result of seed 3 (failed)" in text
    assert f"table  {tmp_path}/grid/results.csv, .md, .tex, .json\n" in text
    assert "baseline=ce " in text
    assert len(list((tmp_path / "grid").iterdir())) == 4


def test_long_names_do_not_cut_the_table_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = made("ce", 0, (90, 50, 10)).metrics
    table = metrics_table("x" * 70, metrics)
    source = "a_source_of_published_numbers_without_any_space, Table 2"
    table.add_row(source, *("100.00",) * 5)
    CleanConsole(width=80, color_system=None).print(table)
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("100.00") == 5
    assert "x" * 50 in text

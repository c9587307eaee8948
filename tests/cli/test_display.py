"""Text on its way to the terminal: no control characters, no passwords."""

from __future__ import annotations

import io
import shlex
import warnings
from pathlib import Path

import pytest
from PIL import Image

from ltbench.cli import app
from ltbench.cli.display import CleanConsole, clean, metrics_table
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics

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

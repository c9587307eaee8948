"""Help, errors and `show` as a person at 80 columns sees them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from ltbench.cli import app
from ltbench.cli.show import _show_rows


def printed(capsys, *words) -> tuple[int, str, str]:
    code = 0
    try:
        app.main(list(words))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run recipe=quickstart lr=0.1", "`stages.0.optim.lr`, `stages.1.optim.lr`"),
        ("run recipe=quickstart stages.0.lr=0.1", "did you mean `stages.0.optim.lr`?"),
        ("run recipe=quickstart batch_size=8", "`stages.0.batch_size`, `stages.1.batch_size`"),
        ("run recipe=quickstart device=cpu", "did you mean `run.device`?"),
        ("run recipe=crt_mixup root=here", "did you mean `data.root`?"),
        ("run recipe=quickstart run.device=gpu", "auto, cpu, cuda or cuda:N (did you mean `cuda`"),
        ("run --recipe quickstart", "write recipe=quickstart"),
        ("run --recipe=quickstart", "write recipe=quickstart"),
        ("run --dry-run recipe=quickstart", "write dry_run=true"),
        ("show --explain lr recipe=quickstart", "write explain=lr"),
        ("run --foo", "no option `--foo`"),
        ("list recipe", "is not one of"),
        ("predct", "no such command"),
        ("eval model=quickstart device=gpu", "expected auto, cpu, cuda or cuda:N, found `gpu`"),
    ],
)
def test_mistakes_are_one_line_of_one_style(words, expected, capsys):
    code, _, err = printed(capsys, *words.split())
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def groups(command: click.Command, path: str = "ltbench"):
    if isinstance(command, click.Group):
        yield path, command
        for name, inner in command.commands.items():
            yield from groups(inner, f"{path} {name}")


def test_summaries_of_commands_are_not_cut(capsys):
    for path, group in groups(app.cli):
        _, out, _ = printed(capsys, *path.split()[1:], "--help")
        listed = out.partition("Commands:")[2]
        assert "..." not in listed, path
        words = " ".join(listed.split())
        for command in group.commands.values():
            first = (command.help or "").strip().partition(".")[0]
            assert " ".join(first.split()) in words, path


def test_a_dry_run_checks_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = printed(capsys, "run", "recipe=quickstart", "dry_run=true", "seed=0,1")
    assert code == 0
    assert out.count("dry run: nothing was trained or written") == 2
    lines = out.splitlines()
    assert lines[0].startswith("quickstart, seed 0, digest ")
    assert [line.split()[0] for line in lines[1:6]] == ["data", "counts", "test", "run", "folder"]
    assert list(Path().iterdir()) == []
    code, _, err = printed(capsys, "run", "recipe=crt_mixup", "data.root=absent", "dry_run=true")
    assert code == 2
    assert "absent" in err


def test_keys_are_never_cut_or_broken(capsys, monkeypatch):
    key = "stages.0.update.collapse_in_class_gradients"
    for live in (False, True):
        monkeypatch.setattr("ltbench.cli.show.console._force_terminal", live)
        monkeypatch.setattr("ltbench.cli.show.console._width", 80)
        _show_rows([(f"{key}=true", "crt_mixup_plot_cifar10.yaml"), ("note=" + "word " * 40, "x")])
        lines = capsys.readouterr().out.splitlines()
        assert f"{key}=true" in lines[0]
        assert (max(map(len, lines)) <= 80) is live


def test_show_without_defaults(capsys):
    _, out, _ = printed(capsys, "show", "recipe=quickstart", "changed=true", "epochs=8")
    rows = out.partition("\n\n")[0].splitlines()
    assert any(row.startswith("stages.0.optim.lr=") for row in rows)
    assert not any(row.endswith("default") for row in rows)
    _, whole, _ = printed(capsys, "show", "recipe=quickstart", "epochs=8")
    assert len(whole.splitlines()) > 2 * len(rows)


def test_show_explains_keys(capsys):
    code, out, _ = printed(capsys, "show", "recipe=quickstart", "explain=rho")
    assert code == 0
    assert out.splitlines()[0].startswith("stages.0.update.rho=")
    assert "Radius of the perturbation" in out
    assert "default 0.0001" in out


def test_any_timm_name_is_said_beside_the_list(capsys):
    _, out, err = printed(capsys, "list", "backbones")
    assert "timm" not in out.splitlines()[1]
    assert "any name of timm works too" in err
    _, _, err = printed(capsys, "list", "updates")
    assert err.strip() == f"{len(printed(capsys, 'list', 'updates')[1].splitlines())} updates"

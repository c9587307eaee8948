"""A rank that has no group, or a variable that is no number, is one line."""

from __future__ import annotations

import pytest

from ltbench.cli import app
from ltbench.distributed.launch import Launch, read_launch
from ltbench.errors import UserError

HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a rank, and no others."""

    def give(**values: str) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *HERE):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Launch()),
        ({"WORLD_SIZE": "1"}, Launch()),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Launch()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", **HERE}, Launch(3, 4, 1)),
    ],
)
def test_the_position_is_that_of_torchrun(given, wanted, environment):
    environment(**given)
    assert read_launch() == wanted


WRONG = [
    {"RANK": "0"},
    {"RANK": "1"},
    {"RANK": "x"},
    {"RANK": "0", "WORLD_SIZE": ""},
    {"RANK": "1", "WORLD_SIZE": "1"},
    {"RANK": "2", "WORLD_SIZE": "2", **HERE},
    {"RANK": "-1", "WORLD_SIZE": "2", **HERE},
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": "2", **HERE},
    {"WORLD_SIZE": "2", "RANK": "0"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "70000"},
    {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": "two"},
    {"WORLD_SIZE": "²"},
    {"WORLD_SIZE": "9" * 5000},
    {"LOCAL_RANK": "x"},
    {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "7", **HERE},
]


@pytest.mark.parametrize("given", WRONG, ids=str)
def test_a_rank_without_a_group_is_one_line(given, environment, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    environment(**given)
    with pytest.raises(UserError, match="torchrun") as caught:
        read_launch()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SystemExit) as ended:
        app.main(["run", "recipe=quickstart"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())

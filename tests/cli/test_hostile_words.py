"""Hostile words on the command line: every command ends with code 0 or 2 and no traceback."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import pkgutil

import pytest
from hypothesis import strategies as st
from pydantic import BaseModel
from strategies import json_values, paths, property_of, takes_or_refuses, text

import ltbench.cli as rooms
from ltbench.cli.app import MACHINE, main
from ltbench.config.words import read_words

MODULES = [
    importlib.import_module(f"ltbench.cli.{found.name}")
    for found in pkgutil.iter_modules(rooms.__path__)
]
OPTIONS = sorted(
    {
        cls
        for module in MODULES
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, BaseModel) and cls.__module__ == module.__name__
    },
    key=str,
)
KEYS = sorted({name for options in OPTIONS for name in options.model_fields})

key = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda k: f"{k}.root"), text)
value = st.one_of(
    paths, text, json_values.map(repr), st.sampled_from(["1,2", ",", "[1", "{}", "null"])
)
word = st.one_of(st.tuples(key, value).map("=".join), paths)


def test_the_options_of_all_commands_are_found():
    assert {"Run", "Show", "List", "Evaluate", "Prepare", "Submit"} <= {c.__name__ for c in OPTIONS}


@property_of(st.tuples(st.sampled_from(OPTIONS), st.lists(word, max_size=4)), few=150)
def test_any_words_are_options_of_a_command_or_refused(case):
    options, words = case
    given, _ = takes_or_refuses(lambda: read_words(words, options))
    assert given is None or isinstance(given, options)


@property_of(
    st.tuples(
        st.sampled_from(
            [["show"], ["show", "recipe=ce"], ["list", "recipes"], ["list", "methods"]]
        ),
        st.lists(word, min_size=1, max_size=3),
    )
)
def test_any_words_end_with_a_result_or_lines_of_mistakes(case, capsys):
    command, words = case
    try:
        main([*command, *(word for word in words if not word.startswith("-"))])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    out = capsys.readouterr()
    assert code in (0, 2)
    if code:
        assert all(x.startswith("error: ") and x.isprintable() for x in out.err.split("\n")[:-1])


@pytest.mark.parametrize("word", ["out=a\udcff", "\udcff=a", "out=\0", "out=\x1b[31m", "\udcff"])
def test_words_that_no_file_could_hold(word, capsys):
    with pytest.raises(SystemExit) as end:
        main(["show", "recipe=ce", word])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "expected words of UTF-8 without control characters" in lines[0]
    assert lines[0].isprintable()


@pytest.mark.parametrize(
    "command", ["run recipe=quickstart out=", "eval model=", "diagnose model="]
)
def test_a_name_that_is_too_long(command, capsys):
    *verb, last = command.split()
    with pytest.raises(SystemExit) as end:
        main([*verb, last + "x" * 300])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_what_the_machine_does_not_allow_is_one_line(number, capsys, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number), "some\x1bwhere")

    monkeypatch.setattr("ltbench.cli.show.read_words", fail)
    with pytest.raises(SystemExit) as end:
        main(["show", "recipe=ce"])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line == f"error: {os.strerror(number)}: some\\x1bwhere; use another path or make room\n"


def test_other_errors_of_files_are_ours(monkeypatch):
    def fail(*_):
        raise OSError(errno.EBADF, "bad descriptor")

    assert errno.EBADF not in MACHINE
    monkeypatch.setattr("ltbench.cli.show.read_words", fail)
    with pytest.raises(OSError, match="bad descriptor"):
        main(["show", "recipe=ce"])

"""Published models whose config.json was written by somebody hostile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ltbench.cli.app import cli
from ltbench.config.resources import leaderboard_dir
from ltbench.errors import UserError
from ltbench.hub.folder import CONFIG, read_config
from ltbench.hub.load import load_described
from ltbench.methods.description import described_data

MODEL = leaderboard_dir() / "models" / "quickstart-seed0"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def changed(folder: Path, change: Change) -> Path:
    content = json.loads((folder / CONFIG).read_text())
    change(content)
    (folder / CONFIG).write_text(json.dumps(content))
    return folder / CONFIG


def recipe(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["model_args"]["recipe"]
    return found


def data(**options: Any) -> Change:
    return lambda c: recipe(c).update(data=options)


def network(**options: Any) -> Change:
    return lambda c: recipe(c)["backbone"].update(options)


REFUSED: dict[str, tuple[Change, str]] = {
    "a pickle": (network(args={"checkpoint_path": "README.md"}), "`checkpoint_path`"),
    "any other option": (network(args={"foo": 1}), "`foo`"),
    "arguments that are none": (network(args=[1]), "backbone.args"),
    "a source": (network(name="hf-hub:a/b"), "plain name"),
    "a folder": (network(name="local-dir:/x"), "plain name"),
    "no backbone": (lambda c: recipe(c).pop("backbone"), "no backbone"),
    "a name that leaves": (lambda c: recipe(c).update(name=".."), "plain name"),
    "a name that draws": (lambda c: recipe(c).update(name="a\x1b[2J"), "plain name"),
    "a recipe that is none": (lambda c: c["model_args"].update(recipe=[1]), "no backbone"),
    "an absolute folder": (data(name="folder", train="/etc"), "names no places"),
    "a folder outside": (data(name="folder", train="a/../../b"), "names no places"),
    "a drive": (data(name="folder", train="C:x"), "names no places"),
    "an address": (data(name="folder", test="http://h/x"), "names no places"),
    "no data": (data(), "no data set"),
    "a module as data": (data(name="os:system"), "not imported"),
    "parts of other types": (lambda c: c.update(ltbench=[1]), "mappings"),
    "a lost part": (lambda c: c.pop("label_names"), "label_names"),
    "not a number": (lambda c: c["pretrained_cfg"].update(mean=[float("nan")] * 3), "NaN"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_line_says_what_a_model_may_not(folder: Path, kind: str) -> None:
    change, part = REFUSED[kind]
    path = changed(folder, change)
    with pytest.raises(UserError) as error:
        read_config(path)
    text = str(error.value)
    assert part in text
    assert str(path) in text
    assert text.isprintable()


FACTS: dict[str, dict[str, Any]] = {
    "counts of text": {"class_counts": ["a", "b"]},
    "negative counts": {"class_counts": [-1, 2]},
    "counts without end": {"class_counts": [10**13, 2]},
    "no classes": {"class_counts": [], "class_names": []},
    "a mapping": {"class_counts": {}},
    "other names": {"class_names": ["a"]},
    "numbers as names": {"class_names": [1, 2]},
    "infinity": {"mean": [float("inf")] * 3},
    "two channels": {"std": [0.1, 0.1]},
    "no deviation": {"std": [0.0, 0.1, 0.1]},
    "text for a mean": {"mean": "abc"},
    "a path as data set": {"dataset": "../x"},
    "nothing": {"dataset": None},
}


@pytest.mark.parametrize("kind", FACTS)
def test_facts_have_types_and_ranges(kind: str) -> None:
    facts: dict[str, Any] = {
        "dataset": "digits_lt", "class_counts": [5, 2], "class_names": ["a", "b"],
        "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    }  # fmt: skip
    assert described_data(facts, "m").class_counts == (5, 2)
    with pytest.raises(UserError, match=r"^m is not the description of a model: ") as error:
        described_data({**facts, **FACTS[kind]}, "m")
    assert "\n" not in str(error.value)
    facts.pop(next(iter(FACTS[kind])))
    with pytest.raises(UserError, match="required"):
        described_data(facts, "m")


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x", "hf://datasets/a/b", "/etc", "~"])
@pytest.mark.parametrize("command", ["eval", "diagnose"])
def test_places_of_a_published_model_are_not_opened(
    folder: Path, place: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltbench.data.shards.dataset.open_parts", lambda *_: pytest.fail("opened"))
    path = changed(folder, data(name="shards", root=place))
    assert read_config(path)["recipe"]["data"] == {"name": "shards"}
    done = CliRunner().invoke(cli, [command, f"model={folder}"])
    assert isinstance(done.exception, UserError), done.exception
    assert "data.root=" in str(done.exception)
    assert place not in str(done.exception)


def test_all_places_are_left_out(folder: Path) -> None:
    for name, places in (
        ("cifar10_lt", {"root": "/x", "download": True}),
        ("list", {"root": "/x", "train": "/a", "test": "http://h/b", "val": "../c"}),
        ("inat18", {"root": "/x", "train": "/a", "test": "~/b"}),
    ):
        path = changed(folder, data(name=name, **places))
        assert read_config(path)["recipe"]["data"] == {"name": name}


def test_a_network_that_does_not_fit_takes_no_memory(folder: Path) -> None:
    changed(folder, network(name="resnet20_cifar", args={"widths": [90_000, 90_000, 90_000]}))
    with pytest.raises(UserError, match="belongs to another model"):
        load_described(folder)


def test_a_data_set_written_short_still_loads(folder: Path) -> None:
    changed(folder, lambda c: recipe(c).update(data="digits_lt"))
    changed(folder, lambda c: recipe(c).pop("shot_rule"))
    done = CliRunner().invoke(cli, ["eval", f"model={folder}"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "quickstart on digits_lt" in done.output


@pytest.mark.parametrize("options", [{"train": "/etc"}, {"test": "../x"}, {"val": "hf://a"}])
def test_a_submission_names_no_places_either(options: dict[str, str]) -> None:
    from ltbench.leaderboard.steps import read_data

    with pytest.raises(UserError, match=r"recipe\.resolved: .* names no places"):
        read_data({"data": {"name": "folder", **options}}, {"root": "/"})


@pytest.mark.parametrize("args", [{"checkpoint_path": "x"}, {"foo": 1}, {"widths": [10**9]}])
def test_a_submission_is_checked_before_anything_is_built(args: dict[str, Any]) -> None:
    from ltbench.digest import digest_of
    from ltbench.leaderboard.verify import verify
    from ltbench.records.record import load_content
    from ltbench.records.sealing import checksums_of, run_id_of

    content = load_content(MODEL / "record.json")
    content["recipe"]["resolved"]["backbone"]["args"] = args
    content["recipe"]["digest"] = digest_of(content["recipe"]["resolved"])
    content["checksums"] = checksums_of(content)
    content["run_id"] = run_id_of(content)
    failed = verify(content).failed
    assert failed is not None
    assert failed.number == 1
    assert f"`{next(iter(args))}`" in failed.text

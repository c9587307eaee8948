from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ltbench.cli.leaderboard import submit as command
from ltbench.digest import digest_of
from ltbench.errors import UserError
from ltbench.leaderboard.recipe_check import check_recipe
from ltbench.leaderboard.submit import submit
from ltbench.leaderboard.verify import verify
from ltbench.records.record import Record, record_text


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def edited(finished_run, tmp_path, seal):
    """A copy of the run whose record says something else, its hashes computed anew."""

    def edit(change) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(finished_run, folder, dirs_exist_ok=True)
        content = json.loads((finished_run / "record.json").read_text())
        change(content)
        (folder / "record.json").write_bytes(record_text(seal(content)))
        return folder

    return edit


def test_a_run_becomes_a_record_of_the_leaderboard(finished_run, board):
    done = submit(finished_run)
    record = Record.load(finished_run / "record.json")
    assert done.path == board / "records" / "digits_lt" / f"{record.run_id}.json"
    assert done.path.read_bytes() == (finished_run / "record.json").read_bytes()
    assert done.record == record
    assert done.pull_request is None
    said = "\n".join(done.checks)
    assert f"run {record.run_id[:12]}, recipe ce" in said
    assert f"top-1 {100 * record.metrics.top1:.2f} %" in said
    assert "recipe ce is what was run but for backbone.name, data." in said
    assert "digits_lt: both hashes and all counts are those of the images" in said
    marked = {**json.loads(done.path.read_text()), "status": "withdrawn"}
    done.path.write_bytes(record_text(marked))
    assert submit(finished_run).path == done.path  # once more changes nothing
    assert done.path.read_bytes() == record_text(marked)
    assert files_under(board / "records") == [done.path]


def test_a_publish_folder_and_a_record_can_be_submitted_too(publish_folder, finished_run, board):
    first = submit(publish_folder)
    assert submit(finished_run / "record.json").path == first.path


def test_what_the_submitter_adds_is_sealed(finished_run, board):
    done = submit(finished_run, submitted_by="A. Name", licence="cc-by-4.0")
    record = Record.load(done.path)
    assert (record.submitted_by, record.licence) == ("A. Name", "cc-by-4.0")
    assert record.run_id == done.path.stem != Record.load(finished_run / "record.json").run_id
    with pytest.raises(UserError, match=r"which is of the same recipe, data, code and seed"):
        submit(finished_run)  # without the name: another record of the same run
    assert files_under(board / "records") == [done.path]


def test_a_claim_is_only_a_claim(finished_run, board, tmp_path):
    content = json.loads((finished_run / "record.json").read_text())
    content["status"] = "verified"
    content["verification"] = {
        "date": "2026-01-01",
        "code": {"version": "0.1.0"},
        "device": "x",
        "differing": 0,
        "ece_difference": 0.0,
    }
    (tmp_path / "record.json").write_bytes(record_text(content))
    record = Record.load(submit(tmp_path).path)
    assert (record.status, record.verification) == ("claimed", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["dataset"].update(train_sha256="0" * 64), "hash of the training images"),
        (lambda c: c["metrics"]["class_counts"].__setitem__(0, 7), "training images of each class"),
        (
            lambda c: c["checkpoint"].update(sha256="0" * 64),
            "is not the file that record.json describes",
        ),
        (lambda c: c["dataset"].update(name="../../x"), "`dataset.name`"),
        (lambda c: c["dataset"].update(name=".."), "`dataset.name`"),
        (lambda c: c["recipe"].update(name="/etc/x.yaml"), "`recipe.name`"),
        (lambda c: c["recipe"].update(overrides=[]), "the record names as overrides nothing"),
        (
            lambda c: c.update(complete=True, shortened=[]),
            "`run.max_steps` in shortened: expected True",
        ),
        (lambda c: c["recipe"]["resolved"].update(x=1), "recipe.resolved gives"),
        (lambda c: c.update(origin="paper"), "origin paper cannot have status claimed"),
    ],
)
def test_records_that_are_not_sound_are_refused(edited, board, change, message):
    before = files_under(board)
    with pytest.raises(UserError) as caught:
        submit(edited(change))
    assert message in str(caught.value)
    assert files_under(board) == before


def test_a_record_edited_without_sealing_is_refused(finished_run, board, tmp_path):
    content = json.loads((finished_run / "record.json").read_text())
    content["seed"] = 1
    (tmp_path / "record.json").write_bytes(record_text(content))
    with pytest.raises(UserError, match="do not trust `seed`"):
        submit(tmp_path)


def test_a_recipe_of_another_version_is_refused(edited):
    def change(content) -> None:
        del content["recipe"]["resolved"]["run"]["channels_last"]
        content["recipe"]["digest"] = digest_of(content["recipe"]["resolved"])

    record = Record.load(edited(change) / "record.json")
    with pytest.raises(UserError, match="submit it with the version that ran it"):
        check_recipe(record)


def test_images_that_are_not_here_are_said_not_to_be_compared(finished_run, board, monkeypatch):
    def nothing(self) -> None:
        raise UserError("no digits here")

    monkeypatch.setattr("ltbench.data.digits.DigitsLT.load", nothing)
    done = submit(finished_run)
    assert any(line.startswith("images not compared: no images here") for line in done.checks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"repository": "alice/m"}, "go together"),
        ({"revision": "a" * 40}, "go together"),
        ({"repository": "alice/m", "revision": "main"}, "expected a commit, 40 hex digits"),
        ({"repository": "x", "revision": "a" * 40}, "is no repository"),
    ],
)
def test_mistakes_in_what_is_added(finished_run, board, hub, words, message):
    with pytest.raises(UserError, match=message):
        submit(finished_run, **words)
    assert files_under(board / "records") == []


def test_weights_are_looked_up_before_they_are_named(finished_run, publish_folder, board, hub):
    files = {p.name: p.read_bytes() for p in publish_folder.iterdir() if p.is_file()}
    other = hub.add("alice/m", {**files, "model.safetensors": b"other"})
    with pytest.raises(UserError, match=r"lists model\.safetensors with SHA-256"):
        submit(finished_run, repository="alice/m", revision=other)
    assert files_under(board / "records") == []
    right = hub.add("alice/m", files)
    done = submit(finished_run, repository="alice/m", revision=right)
    assert (done.record.checkpoint.repository, done.record.checkpoint.revision) == (
        "alice/m",
        right,
    )
    assert verify(json.loads(done.path.read_text())).passed


def test_a_pull_request_holds_the_record_and_nothing_else(finished_run, board, hub):
    hub.add("lab/results", {"README.md": b"x"}, kind="dataset")
    done = submit(finished_run, repo="lab/results")
    assert "lab/results" in done.pull_request
    number = 1
    path = f"runs/digits_lt/{done.record.run_id}.json"
    assert path not in hub.files("lab/results", kind="dataset")
    offered = hub.files("lab/results", f"refs/pr/{number}", kind="dataset")
    assert offered == {"README.md": b"x", path: done.path.read_bytes()}
    hub.merge("lab/results", number, kind="dataset")
    with pytest.raises(UserError, match=f"lab/results holds digits_lt/{done.record.run_id}"):
        submit(finished_run, repo="lab/results")


def test_a_pull_request_that_fails_says_where_the_record_is(finished_run, board, hub):
    hub.add("lab/results", {"README.md": b"x"}, kind="dataset")
    hub.fault("POST", "/commit/", "status", times=100, status=403)
    with pytest.raises(UserError, match="the record was written to") as caught:
        submit(finished_run, repo="lab/results")
    assert "\n" not in str(caught.value)
    hub.faults.clear()
    assert submit(finished_run, repo="lab/results").pull_request  # again, as it is


def test_the_command(finished_run, board):
    done = CliRunner().invoke(
        command, [f"run={finished_run}", "submitted_by=[red]me"], catch_exceptions=False
    )
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 4 + ["record"]
    written = Path(lines[-1].split()[1])
    assert Record.load(written).submitted_by == "[red]me"
    for words, message in (
        ([], "expected `run=...`"),
        (["run=x", "rum=y"], "`rum`: unknown key .did you mean `run`"),
        ([f"run={board}"], "cannot read the record"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(words, standalone_mode=False)

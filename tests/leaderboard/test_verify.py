from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ltbench.cli import main
from ltbench.cli.leaderboard import verify as command
from ltbench.digest import digest_of, file_sha256
from ltbench.errors import UserError
from ltbench.leaderboard import verify as v
from ltbench.leaderboard.steps import read_data
from ltbench.records.record import Record
from ltbench.records.store import sound_records

NAMES = ("digest", "metrics", "data", "pinned", "listing", "download", "evaluation")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def pinned(hub, publish_folder, content, seal):
    """The run's record with its weights published."""
    revision = hub.add("alice/quick", files_of(publish_folder))
    content["checkpoint"].update(repository="alice/quick", revision=revision)
    return seal(content)


def failed_at(content, **words) -> tuple[str, str]:
    """Return name and reason of the step that refuses a record, all before it having passed."""
    done = v.verify(content, **words)
    assert [s.name for s in done.steps] == list(NAMES[: len(done.steps)])
    assert [s.number for s in done.steps] == list(range(1, len(done.steps) + 1))
    assert {s.state for s in done.steps[:-1]} <= {"passed"}
    assert not done.passed
    assert done.failed is done.steps[-1]
    return done.failed.name, done.failed.text


def test_an_honest_record_passes_and_is_marked(pinned, write):
    path = write(pinned)
    done = v.verify_file(path)
    assert [(s.name, s.state) for s in done.steps] == [(name, "passed") for name in NAMES]
    assert done.facts.differing == 0
    assert done.facts.ece_difference < 1e-3  # confidences depend on the order of sums
    record = Record.load(path)
    assert record.status == "verified"
    assert record.verification == done.facts
    assert record.run_id == pinned["run_id"] == path.stem
    after = json.loads(path.read_text())
    told = {"status", "verification"}
    assert {k: x for k, x in after.items() if k not in told} == {
        k: x for k, x in pinned.items() if k not in told
    }
    assert v.verify_file(path).passed  # and may be verified again


# The six forgeries.


def test_an_edited_number_is_found_by_the_digest(pinned):
    pinned["metrics"]["correct"][3] += 1
    name, reason = failed_at(pinned)
    assert name == "digest"
    assert "was edited after it was written: do not trust `metrics`" in reason


def test_an_edited_number_sealed_again_does_not_follow_from_the_counts(pinned, seal):
    pinned["metrics"]["correct"][3] += 1
    name, reason = failed_at(seal(pinned))
    assert name == "metrics"
    assert "bins hold" in reason
    pinned["metrics"]["correct"][3] -= 1
    pinned["metrics"]["top1"] = 0.99
    name, reason = failed_at(seal(pinned))
    assert (name, "`metrics.top1` is not a field" in reason) == ("metrics", True)


def raise_counts(metrics, by: int) -> None:
    """Count more images as correct, so that classes and bins still agree."""
    for name, limit in (("correct", "total"), ("bin_correct", "bin_count")):
        left = by
        for k, most in enumerate(metrics[limit]):
            more = min(left, most - metrics[name][k])
            metrics[name][k] += more
            left -= more
        assert left == 0


def test_consistently_edited_counts_are_found_by_evaluation(pinned, seal, write):
    raise_counts(pinned["metrics"], 30)
    name, reason = failed_at(seal(pinned))
    assert name == "evaluation"
    assert "30 predictions differ" in reason
    assert "at most 2 and less than 0.05 are allowed" in reason
    path = write(pinned)
    before = path.read_bytes()
    assert v.verify_file(path).failed.name == "evaluation"
    assert path.read_bytes() == before


def test_another_calibration_is_found_by_evaluation(pinned, seal):
    metrics = pinned["metrics"]
    count, confidence = metrics["bin_count"], metrics["bin_confidence"]
    for b, n in enumerate(count):
        confidence[b] = (b + 1) / 15 * n  # the most that the bins allow
    name, reason = failed_at(seal(pinned))
    assert name == "evaluation"
    assert reason.startswith("0 predictions differ, ECE differs by ")


def test_another_checkpoint_is_found_in_the_listing(pinned, seal, hub, publish_folder):
    import torch
    from safetensors.torch import load_file, save

    tensors = load_file(publish_folder / "model.safetensors")
    other = save({k: t + torch.ones_like(t) for k, t in tensors.items()})
    files = {**files_of(publish_folder), "model.safetensors": other}
    pinned["checkpoint"]["revision"] = hub.add("alice/quick", files)
    name, reason = failed_at(seal(pinned))
    assert name == "listing"
    assert "lists model.safetensors with SHA-256" in reason
    assert pinned["checkpoint"]["sha256"][:12] in reason


def test_another_checkpoint_that_the_record_names_is_found_by_evaluation(
    pinned, seal, hub, publish_folder, tmp_path
):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(publish_folder / "model.safetensors")
    last = [k for k in tensors if tensors[k].ndim == 2][-1]
    tensors[last] = torch.roll(tensors[last], 1, dims=0).contiguous()
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    files = {**files_of(publish_folder), "model.safetensors": file.read_bytes()}
    pinned["checkpoint"].update(
        sha256=file_sha256(file),
        bytes=file.stat().st_size,
        revision=hub.add("alice/quick", files),
    )
    name, reason = failed_at(seal(pinned))  # config.json still tells of the old ones
    assert (name, "is damaged or was replaced" in reason) == ("evaluation", True)
    config = json.loads(files["config.json"])
    config["ltbench"]["sha256"] = file_sha256(file)
    files["config.json"] = json.dumps(config).encode()
    pinned["checkpoint"]["revision"] = hub.add("alice/quick", files)
    name, reason = failed_at(seal(pinned))
    assert (name, "predictions differ" in reason) == ("evaluation", True)


def test_an_edited_recipe_is_found_by_its_digest(pinned, seal):
    pinned["recipe"]["resolved"]["stages"][0]["epochs"] = 40
    name, reason = failed_at(seal(pinned))
    assert name == "digest"
    assert "recipe.resolved gives" in reason
    pinned["recipe"]["digest"] = digest_of(pinned["recipe"]["resolved"])
    name, reason = failed_at(seal(pinned))
    assert (name, "is not what was run" in reason) == ("digest", True)
    pinned["recipe"]["overrides"] = sorted([*pinned["recipe"]["overrides"], "stages.0.epochs"])
    pinned["shortened"].append("stages.0.epochs")
    name, reason = failed_at(seal(pinned))  # config.json beside the weights has the real recipe
    assert name == "evaluation"
    assert "config.json beside the weights describes recipe" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revision": "main"}, "`checkpoint.revision`"),
        ({"revision": None}, "expected a commit of alice/quick, 40 hex digits, found none"),
        ({"file": "model.bin"}, "`checkpoint.file`"),
        ({"file": "../model.safetensors"}, "`checkpoint.file`"),
    ],
)
def test_weights_that_may_move_are_refused_before_any_download(pinned, seal, hub, change, reason):
    pinned["checkpoint"].update(change)
    asked = len(hub.requests)
    name, text = failed_at(seal(pinned))
    assert (name, reason in text) == ("pinned", True)
    assert len(hub.requests) == asked


def test_weights_that_are_published_nowhere_are_no_failure_of_a_claim(pinned, seal, hub):
    pinned["checkpoint"].update(repository=None, revision=None)
    asked = len(hub.requests)
    done = v.verify(seal(pinned))
    assert (done.passed, done.failed) == (False, None)
    assert [step.state for step in done.steps] == ["passed"] * 3 + ["not run"]
    assert "publish the weights" in done.steps[-1].text
    assert len(hub.requests) == asked
    marked = {**pinned, "status": "verified"}
    assert v.verify(marked).failed is not None  # whoever is marked has weights


def test_a_corrupted_transfer_is_found_by_the_hash_of_what_arrived(pinned, hub, tmp_path):
    hub.fault("GET", r"model\.safetensors|/cdn/", "corrupt", times=100)
    name, reason = failed_at(pinned)
    assert name == "download"
    assert "SHA-256" in reason
    assert not list((tmp_path / "hf").rglob("*.safetensors"))  # nothing of it is kept


def test_one_corrupted_transfer_is_repeated(pinned, hub):
    hub.fault("GET", r"model\.safetensors|/cdn/", "corrupt", times=1)
    assert v.verify(pinned).passed


# Data, rows, places.


def test_other_images_are_refused(pinned, seal):
    pinned["dataset"]["test_sha256"] = "0" * 64
    name, reason = failed_at(seal(pinned))
    assert (name, "hash of the test images" in reason) == ("data", True)


@pytest.fixture
def no_images(monkeypatch):
    def nothing(self) -> None:
        raise UserError("no digits here")

    monkeypatch.setattr("ltbench.data.digits.DigitsLT.load", nothing)


def test_without_images_the_rest_is_checked_and_the_row_not_marked(pinned, seal, write, no_images):
    path = write(pinned)
    done = v.verify_file(path)
    states = {s.name: s.state for s in done.steps}
    assert states == {**dict.fromkeys(NAMES, "passed"), "data": "not run", "evaluation": "not run"}
    assert done.steps[-1].text.startswith("this step needs the test images: add data.root=DIR")
    assert (done.passed, done.failed, done.mark) == (False, None, "")
    assert Record.load(path).status == "claimed"
    other = json.loads(json.dumps(pinned))
    other["checkpoint"]["sha256"] = "0" * 64
    other["metrics"]["bin_confidence"][5] += 1e-9
    other = seal({**other, "seed": 5})
    done = v.verify(pinned, others=[Record.model_validate(other)])
    assert "the hashes are those of other records (1)" in done.steps[2].text
    assert done.steps[-1].state == "not run"


def test_a_mark_made_here_stays_while_images_or_hub_are_away(pinned, write, hub, monkeypatch):
    path = write(pinned)
    assert v.verify_file(path).mark == "marked as verified"
    marked = path.read_bytes()
    hub.fault("GET", "/api/", "status", times=1000, status=503)
    assert v.verify_file(path).failed.name == "listing"
    hub.faults.clear()
    assert path.read_bytes() == marked


def test_nothing_is_written_without_the_word(pinned, write, board):
    path = write(pinned)
    before = {p: p.read_bytes() for p in board.rglob("*") if p.is_file()}
    assert v.verify_file(path, mark=False).passed
    done = CliRunner().invoke(command, ["ce.0", "device=cpu"], catch_exceptions=False)
    assert done.output.splitlines()[-1].strip() == "verified"
    assert {p: p.read_bytes() for p in board.rglob("*") if p.is_file()} == before


def test_paths_in_a_record_are_never_followed(pinned, tmp_path):
    resolved = {"data": {"name": "cifar10_lt", "root": str(tmp_path), "download": True}}
    with pytest.raises(UserError, match=r"needs the images of CIFAR-10: data\.root=DIR"):
        read_data(resolved, {})
    with pytest.raises(UserError, match="names no data set"):
        read_data({"data": "x"}, {})


def test_a_withdrawn_row_stays_withdrawn(pinned, write):
    path = write({**pinned, "status": "withdrawn"})
    assert v.verify_file(path).passed
    assert Record.load(path).status == "withdrawn"


def test_what_a_maintainer_withdrew_is_shown_and_marked_by_nobody_else(pinned, write, board):
    path = write({**pinned, "status": "claimed"})
    marks = board / "verified.json"
    marks.write_text(json.dumps({"verified": {pinned["run_id"]: "withdrawn"}}))
    before = path.read_bytes(), marks.read_bytes()
    assert [r.status for r in sound_records(path.parent)] == ["withdrawn"]
    assert v.verify_file(path).mark == ""
    assert (path.read_bytes(), marks.read_bytes()) == before


def test_a_record_from_before_a_field_is_marked_without_adding_it(pinned, seal, write):
    del pinned["notes"], pinned["verification"]
    path = write(seal(pinned))
    assert v.verify_file(path).passed
    assert Record.load(path).status == "verified"
    assert "notes" not in json.loads(path.read_text())


def test_committed_weights_need_no_repository(content, publish_folder, board, write):
    import shutil

    name = f"models/{content['recipe']['name']}-seed0"
    shutil.copytree(publish_folder, board / name)
    entry = {
        "sha256": content["checkpoint"]["sha256"],
        "bytes": content["checkpoint"]["bytes"],
        "embedded": name,
    }
    index = {"schema_version": 1, "models": {content["recipe"]["name"]: {"0": entry}}}
    (board / "zoo.json").write_text(json.dumps(index))
    path = write(content)
    done = v.verify_file(path)
    assert done.passed
    assert done.steps[3].text.startswith("no repository: ")
    assert "is committed with the leaderboard" in done.steps[3].text
    assert done.steps[4].text.startswith("the committed index lists SHA-256")
    weights = board / name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert failed_at(content)[0] == "download"
    entry["bytes"] += 1
    (board / "zoo.json").write_text(json.dumps(index))
    assert failed_at(content)[0] == "listing"


def test_rows_are_found_by_any_name(content, seal, write, finished_run, board):
    first = write(content)
    second = write(seal({**content, "seed": 1}))
    assert set(v.find_rows("all")) == set(v.find_rows("ce")) == {first, second}
    assert v.find_rows("ce.1") == [second]
    assert v.find_rows(first.stem[:8]) == [first]
    assert v.find_rows(str(first)) == [first]
    assert v.find_rows(str(finished_run)) == [finished_run / "record.json"]
    paper = {"origin": "paper", "status": "paper", "citation": "A, Table 1", "checkpoint": None}
    write(seal({**content, **paper}))
    assert set(v.find_rows("all")) == {first, second}
    for unknown in ("ce.2", "0" * 32, "c", str(board / "nothing")):
        with pytest.raises(UserError, match=r"expected all, a file, a run_id or a recipe's name"):
            v.find_rows(unknown)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema_version": 2, "run_id": "x"}'])
def test_files_that_are_no_records_fail_at_the_first_step(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    assert v.verify_file(path).failed.number == 1


def test_the_command_prints_each_step_and_fails_with_the_reason(pinned, write, seal, capsys):
    path = write(pinned)
    words = ["ce.0", "device=cpu", "mark=true"]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    lines = done.output.splitlines()
    assert [line.split()[1:3] for line in lines[1:8]] == [[name, "passed"] for name in NAMES]
    assert lines[8].strip() == "verified, marked as verified"
    assert Record.load(path).status == "verified"
    pinned["checkpoint"]["bytes"] += 1
    path = write(seal(pinned))
    with pytest.raises(SystemExit) as caught:
        _as_main(command, [path.stem])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {path}: step 5 (listing) failed: alice/quick@")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "expected one ROW, found a, b"),
        (["data.rot=x"], "`data.rot`: expected where images are (did you mean `root`?)"),
        (["root=x"], "`root`: unknown key"),
        (["device=cpu", "device=cpu"], "`device` is given twice"),
        (["nothing"], "no record is `nothing`"),
    ],
)
def test_mistakes_in_words_are_named(board, words, message):
    with pytest.raises(UserError) as caught:
        command.main(words, standalone_mode=False)
    assert message in str(caught.value)


def _as_main(command, words):
    from ltbench.cli.app import cli

    cli.add_command(command, "verify-here")
    try:
        main(["verify-here", *words])
    finally:
        del cli.commands["verify-here"]

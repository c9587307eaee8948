"""`ltbench publish` against the Hub of the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ltbench
from ltbench.cli.hub import publish as command
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.hub import publish as publishing
from ltbench.hub import zoo
from ltbench.hub.publish import files_of, publish, zoo_entry
from ltbench.records.record import Record
from ltbench.remote import hub as client

REPO = "lab/quickstart-seed0"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Short, but not cut: the weights of the last epoch, evaluated at the end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = ltbench.get_recipe(
        "quickstart", "backbone.args={widths: [8, 12, 16]}", "stages.0.update.epochs=1",
        "stages.0.schedule.warmup=1", backbone__name="resnet20_cifar",
        stages__0__epochs=3, stages__1__epochs=3, out=str(folder), run__device="cpu",
    )  # fmt: skip
    return ltbench.run(recipe).folder


@pytest.fixture
def folder(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("check*")))


def sent(hub) -> int:
    """How many large files were sent so far."""
    return sum(r.method == "PUT" for r in hub.requests)


FRESH = """
import json, sys
import timm
source = sys.argv[1]
try:
    timm.create_model(source, pretrained=True)
except RuntimeError as error:
    print(error)
import ltbench
for model in (ltbench.load(source), timm.create_model(source, pretrained=True)):
    print(ltbench.evaluate(model, "digits_lt", device="cpu").model_dump_json())
"""


@pytest.mark.slow
def test_published_then_loaded_in_a_fresh_process_it_gives_the_recorded_counts(hub, run, tmp_path):
    done = publish(run, REPO)
    assert len(done.revision) == 40
    assert hub.head(REPO) == done.revision
    assert len(hub.history(REPO)) == 2  # the Hub's first one, and ours
    files = hub.files(REPO)
    assert set(files) == {
        *("model.safetensors", "config.json", "recipe.yaml", "record.json", "README.md"),
        ".eval_results/digits_lt.yaml",
    }
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    root = Path(ltbench.__file__).parents[1]
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, f"hf-hub:{REPO}"],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert fresh.returncode == 0, fresh.stderr
    record = Record.load(run / "record.json")
    before, *lines = fresh.stdout.splitlines()
    assert before.startswith("Unknown model (")  # timm's, until ltbench is imported
    assert [Metrics.model_validate_json(line) for line in lines] == [record.metrics] * 2


def test_twice_is_one_commit(hub, folder):
    first = publish(folder, REPO)
    before = sent(hub)
    again = publish(folder, REPO)
    assert first.changed
    assert not again.changed
    assert again.revision == first.revision
    assert {d.state for d in again.differences} == {"same"}
    assert len(hub.history(REPO)) == 2
    assert sent(hub) == before


def test_after_a_failed_commit_no_content_is_sent_again(hub, folder):
    hub.fault("POST", "/commit/main", "status", times=1, status=400)
    with pytest.raises(UserError, match="commit to lab/quickstart-seed0"):
        publish(folder, REPO)
    assert sent(hub) == 1
    assert len(hub.history(REPO)) == 1
    assert publish(folder, REPO).revision == hub.head(REPO)
    assert sent(hub) == 1
    assert len(hub.history(REPO)) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder):
    hub.fault("POST", "/commit/main", "drop")
    done = publish(folder, REPO)
    assert done.revision == hub.head(REPO)
    assert len(hub.history(REPO)) == 2


def test_a_commit_in_between_is_kept(hub, folder, monkeypatch):
    commit, calls = client.commit, []

    def raced(*args, **kwargs):
        if not calls:
            hub.add(REPO, {"figure.png": b"png"})
        calls.append(kwargs["parent"])
        return commit(*args, **kwargs)

    monkeypatch.setattr(publishing.client, "commit", raced)
    done = publish(folder, REPO)
    assert len(calls) == 2
    assert "figure.png" in hub.files(REPO, done.revision)
    assert "model.safetensors" in hub.files(REPO, done.revision)


@pytest.mark.parametrize("offline", [False, True])
def test_a_dry_run_needs_no_hub(offline, hub, folder, tmp_path, monkeypatch):
    hub.fault("GET", "/api/", "status", times=1000, status=503)
    monkeypatch.setattr("ltbench.remote.faults.PAUSE", 0.0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    words = [f"run={folder}", f"repo={REPO}", f"out={tmp_path}/o"]
    shown = CliRunner().invoke(command, [*words, "--dry-run"], catch_exceptions=False)
    assert shown.exit_code == 0
    why = "offline mode is on" if offline else "reports a server error (HTTP 503)"
    assert f"{why}" in shown.output.partition("not compared: ")[2]
    assert set(files_of(tmp_path / "o")) >= {"model.safetensors", "config.json", "record.json"}
    with pytest.raises(UserError):
        publish(folder, REPO)


def test_dry_run_writes_the_folder_shows_the_diff_and_sends_nothing(hub, folder, tmp_path):
    planned = publish(folder, REPO, dry_run=True)
    assert planned.revision is None
    assert planned.folder == folder / "publish"
    assert {d.state for d in planned.differences} == {"new"}
    assert ("model", REPO) not in hub.repositories
    publish(folder, REPO)
    sent_files = hub.files(REPO)
    assert {p: f.read_bytes() for p, f in files_of(planned.folder).items()} == sent_files

    hub.add(REPO, {"figure.png": b"png", ".eval_results/old.yaml": b""})
    before = len(hub.requests)
    arguments = [f"run={folder}", f"repo={REPO}", "--dry-run", "licence=mit", f"out={tmp_path}/o"]
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    state = {
        words[1]: words[0]
        for words in map(str.split, lines)
        if len(words) == 4 and words[3] == "bytes"
    }
    assert state == {
        "model.safetensors": "same",
        "recipe.yaml": "same",
        ".eval_results/digits_lt.yaml": "same",
        "config.json": "changed",
        "record.json": "changed",
        "README.md": "changed",
        ".eval_results/old.yaml": "removed",
        "figure.png": "kept",
    }
    assert any(line.strip() == "+license: mit" for line in lines)
    assert "nothing was sent" in shown.output
    assert not any(r.method in ("POST", "PUT") for r in hub.requests[before:])
    assert Record.load(tmp_path / "o" / "record.json").licence == "mit"


def test_results_of_before_go_and_the_files_of_others_stay(hub, folder):
    publish(folder, REPO)
    hub.add(REPO, {"figure.png": b"png", ".eval_results/old.yaml": b""})
    files = set(hub.files(REPO, publish(folder, REPO).revision))
    assert "figure.png" in files
    assert ".eval_results/old.yaml" not in files


def test_nothing_is_published_beside_a_pickle(hub, folder):
    hub.add(REPO, {"pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match=r"holds `pytorch_model\.bin`"):
        publish(folder, REPO)
    assert set(hub.files(REPO)) == {"pytorch_model.bin"}


def test_another_model_is_not_written_over(hub, folder):
    hub.add(REPO, {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": b"x"})
    with pytest.raises(UserError, match="lab/quickstart-seed0 holds another model"):
        publish(folder, REPO)
    hub.add("lab/notes", {"README.md": b"soon"})
    assert publish(folder, "lab/notes").changed
    content = json.loads(hub.files("lab/notes")["config.json"])
    content["ltbench"]["seed"] = 5
    hub.add("lab/notes", {"config.json": json.dumps(content).encode()})
    with pytest.raises(UserError, match=r"seed 5; this is quickstart.*seed 0"):
        publish(folder, "lab/notes")


def test_a_folder_with_anything_else_is_refused(hub, folder):
    exported = publish(folder, REPO, dry_run=True).folder
    for name in ("optimizer.pkl", ".eval_results/notes.txt", "deep/model.safetensors"):
        (exported / name).parent.mkdir(exist_ok=True)
        (exported / name).write_text("x")
        with pytest.raises(UserError, match=f"holds `{name}`"):
            files_of(exported)
        (exported / name).unlink()
    (exported / ".eval_results" / "link.yaml").symlink_to(exported / "README.md")
    with pytest.raises(UserError, match=r"link\.yaml"):
        files_of(exported)
    (exported / ".eval_results" / "link.yaml").unlink()
    (exported / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"lacks recipe\.yaml"):
        files_of(exported)


def test_who_may_not_write_is_told_so(hub, folder, use_token):
    use_token("hf_SecretOfBob")
    with pytest.raises(UserError, match=REPO) as caught:
        publish(folder, REPO)
    assert "hf_SecretOfBob" not in str(caught.value)
    assert ("model", REPO) not in hub.repositories


def test_a_new_repository_may_be_private(hub, folder):
    publish(folder, REPO, private=True)
    assert hub.repositories["model", REPO].private


def test_the_command_prints_an_entry_that_the_zoo_takes(hub, folder, tmp_path, monkeypatch):
    shown = CliRunner().invoke(command, [f"run={folder}", f"repo={REPO}"], catch_exceptions=False)
    assert shown.exit_code == 0
    revision = hub.head(REPO)
    assert f"ltbench eval model=hf-hub:{REPO}@{revision}" in shown.output
    models = json.loads(shown.output[shown.output.index("\n{") :])
    assert models == zoo_entry(publish(folder, REPO))
    (tmp_path / zoo.INDEX).write_text(json.dumps({"schema_version": 1, "models": models}))
    monkeypatch.setattr(zoo, "leaderboard_dir", lambda: tmp_path)
    monkeypatch.setattr("ltbench.records.store.leaderboard_dir", lambda: tmp_path)
    assert zoo.find("quickstart", 0).revision == revision
    assert zoo.fetch(zoo.find("quickstart", 0)).is_dir()
    again = CliRunner().invoke(command, [f"run={folder}", f"repo={REPO}"], catch_exceptions=False)
    assert "nothing differs; no commit was made" in again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["repo=a/b"], "expected `run=...`"),
        (["run=x"], "expected `repo=...`"),
        (["run=x", "repo=a/b", "hlf=true"], "did you mean `half`"),
        (["run=x", "repo=a/b", "half=maybe"], "should be true or false"),
        (["run=x", "run=y", "repo=a/b"], "given twice"),
        (["run=x", "repo=a/b"], "finished run"),
    ],
)
def test_wrong_words_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        CliRunner().invoke(command, words, catch_exceptions=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from ltbench.cli.leaderboard import publish as command
from ltbench.errors import UserError
from ltbench.leaderboard import push, repository
from ltbench.leaderboard.derived import TABLES, Run, distinct
from ltbench.records import store
from ltbench.records.record import Record, record_text

REPO = "lab/leaderboard"


@pytest.fixture
def place(tmp_path, content, seal):
    """Write records of several seeds to a folder of their own and return it."""

    def make(name: str, *seeds: int, **changes) -> Path:
        folder = tmp_path / name
        for seed in seeds:
            made = json.loads(json.dumps({**content, "seed": seed, **changes}))
            made["checkpoint"]["sha256"] = f"{seed:064x}"  # no two seeds end alike
            made["metrics"]["bin_confidence"][5] += 1e-9 * seed
            seal(made)
            path = folder / "digits_lt" / f"{made['run_id']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record_text(made))
        return folder

    return make


@pytest.fixture
def pages(monkeypatch):
    """Replace the page by the names of its records, which is what matters here."""
    from ltbench.leaderboard import page

    def names(folder: Path) -> str:
        return "\n".join(sorted(p.stem for p in folder.rglob("*.json")))

    monkeypatch.setattr(page, "build_page", names)


def texts(folder: Path) -> dict[str, bytes]:
    return {f"runs/digits_lt/{p.name}": p.read_bytes() for p in folder.rglob("*.json")}


def table(hub, name: str) -> pd.DataFrame:
    files = hub.files(REPO, kind="dataset")
    return pd.read_parquet(io.BytesIO(files[f"data/{name}.parquet"]))


def configs(hub) -> list[dict]:
    text = hub.files(REPO, kind="dataset")["README.md"].decode()
    return yaml.safe_load(text.split("---")[1])["configs"]


def test_runs_tables_and_their_configs(hub, place):
    folder = place("mine", 0, 1)
    done = push.publish(REPO, folder=folder)
    assert (done.runs, done.added, done.space_url, done.problems) == (2, 2, None, ())
    files = hub.files(REPO, kind="dataset")
    assert {p: t for p, t in files.items() if p.startswith("runs/")} == texts(folder)
    assert set(files) == {*texts(folder), "README.md", *(f"data/{t}.parquet" for t in TABLES)}
    shown = configs(hub)
    assert [c["config_name"] for c in shown] == list(TABLES)
    assert [c["config_name"] for c in shown if c.get("default")] == ["results"]
    assert {Path(c["data_files"]).suffix for c in shown} == {".parquet"}
    frames = {c["config_name"]: pd.read_parquet(io.BytesIO(files[c["data_files"]])) for c in shown}
    records = [Record.load(p) for p in folder.rglob("*.json")]
    assert set(frames["runs"]["run_id"]) == {r.run_id for r in records}
    assert frames["runs"]["overall"].tolist() == pytest.approx([100 * records[0].metrics.top1] * 2)
    assert len(frames["per_class"]) == 2 * 10
    assert frames["per_class"]["correct"].sum() == sum(sum(r.metrics.correct) for r in records)
    ours = frames["results"][frames["results"]["origin"] == "reproduced"]
    assert ours["n"].tolist() == [2]
    assert len(frames["published"]) == 573


def test_publishing_again_commits_nothing(hub, place, pages):
    folder = place("mine", 0)
    first = push.publish(REPO, space="lab/page", folder=folder)
    assert first.added == 1
    heads = hub.head(REPO, kind="dataset"), hub.head("lab/page", kind="space")
    again = push.publish(REPO, space="lab/page", folder=folder)
    assert (again.runs, again.added) == (1, 0)
    assert heads == (hub.head(REPO, kind="dataset"), hub.head("lab/page", kind="space"))


def test_what_others_put_there_stays_and_is_in_the_tables(hub, place):
    theirs, mine = place("theirs", 3), place("mine", 4)
    hub.add(REPO, {**texts(theirs), "notes.txt": b"keep"}, kind="dataset")
    assert push.publish(REPO, folder=mine).added == 1
    files = hub.files(REPO, kind="dataset")
    assert files["notes.txt"] == b"keep"
    assert {p: t for p, t in files.items() if p.startswith("runs/")} == texts(theirs) | texts(mine)
    assert set(table(hub, "runs")["seed"]) == {3, 4}


def test_a_commit_in_between_is_seen_and_nothing_lost(hub, place, monkeypatch):
    """Someone commits after we read and before we write: refused with 412, then repeated."""
    mine, theirs = place("mine", 0), place("theirs", 1)
    real, late = push.client.commit, [texts(theirs)]

    def commit(repo, *args, **words):
        if late:
            hub.add(REPO, late.pop(), kind="dataset")
        return real(repo, *args, **words)

    monkeypatch.setattr(push.client, "commit", commit)
    monkeypatch.setattr(push, "PAUSE", 0.01)
    assert push.publish(REPO, folder=mine).runs == 2
    assert set(table(hub, "runs")["seed"]) == {0, 1}
    statuses = [r.status for r in hub.requests if r.method == "POST" and "/commit/" in r.path]
    assert statuses == [412, 200]


def test_several_publishers_at_once_lose_nothing(hub, place, pages, monkeypatch):
    monkeypatch.setattr(push, "PAUSE", 0.05)
    hub.add(REPO, {"notes.txt": b"keep"}, kind="dataset")
    folders = [place(f"from{k}", 2 * k, 2 * k + 1) for k in range(4)]
    start, failures = threading.Barrier(len(folders)), []

    def work(folder: Path) -> None:
        start.wait()
        try:
            push.publish(REPO, space="lab/page", folder=folder)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    files = hub.files(REPO, kind="dataset")
    expected = {path: text for folder in folders for path, text in texts(folder).items()}
    assert {p: t for p, t in files.items() if p.startswith("runs/")} == expected
    assert set(table(hub, "runs")["seed"]) == set(range(8))
    assert table(hub, "results").query("origin == 'reproduced'")["n"].tolist() == [8]
    page = hub.files("lab/page", kind="space")["index.html"].decode().split()
    assert page == sorted(Path(path).stem for path in expected)


def test_a_repository_where_others_always_come_first_is_given_up(hub, place, monkeypatch):
    monkeypatch.setattr(push, "TRIES", 3)
    monkeypatch.setattr(push, "PAUSE", 0.01)
    hub.fault("POST", "/commit/", "status", times=100, status=412)
    with pytest.raises(UserError, match="others committed before each of 3 tries"):
        push.publish(REPO, folder=place("mine", 0))


BROKEN = {
    "runs/digits_lt/truncated.json": b'{"schema_version": 1',
    "runs/digits_lt/foreign.json": b'{"a": 1}',
    "runs/digits_lt/deep.json": b"[" * 100_000,
    "runs/x.json": b"\xff\xfe",
}


def test_what_is_no_record_is_named_left_and_never_stops_a_push(hub, place, seal, content):
    edited = {**content, "seed": 9}
    hostile = json.loads(json.dumps(content))
    hostile["recipe"]["resolved"]["data"] = "no mapping"
    moved = next(iter(texts(place("moved", 7)).values()))
    broken = {
        **BROKEN,
        "runs/digits_lt/edited.json": record_text(edited),
        "runs/digits_lt/hostile.json": record_text(seal(hostile)),
        "runs/digits_lt/moved.json": moved,
    }
    hub.add(REPO, broken, kind="dataset")
    done = push.publish(REPO, folder=place("mine", 0))
    assert (done.runs, len(done.problems)) == (1, len(broken))
    for path in broken:
        (line,) = [line for line in done.problems if f" {path} " in line]
        assert "\n" not in line
    files = hub.files(REPO, kind="dataset")
    assert {p: files[p] for p in broken} == broken
    assert table(hub, "runs")["seed"].tolist() == [0]


def test_the_status_that_says_more_wins_on_either_side(hub, place, monkeypatch):
    mine, theirs = place("mine", 0), place("theirs", 0)
    (file,) = theirs.rglob("*.json")
    gone = {**json.loads(file.read_text()), "status": "withdrawn"}
    hub.add(REPO, {f"runs/digits_lt/{file.name}": record_text(gone)}, kind="dataset")
    push.publish(REPO, folder=mine)
    assert table(hub, "runs")["status"].tolist() == ["claimed"]  # anybody can write the word
    for module in (store, repository):
        monkeypatch.setattr(module, "verifications", lambda: {gone["run_id"]: "withdrawn"})
    push.publish(REPO, folder=mine)
    assert table(hub, "runs")["status"].tolist() == ["withdrawn"]
    again = {**gone, "status": "reproduced"}
    for module in (store, repository):
        monkeypatch.setattr(module, "verifications", lambda: {gone["run_id"]: "reproduced"})
    file.write_bytes(record_text(again))
    hub.add("lab/other", texts(mine), kind="dataset")
    assert push.publish("lab/other", folder=theirs).added == 1
    files = hub.files("lab/other", kind="dataset")
    assert files[f"runs/digits_lt/{file.name}"] == record_text(again)


def test_two_records_of_one_run_are_both_kept_and_one_is_counted(hub, place):
    mine, theirs = place("mine", 0), place("theirs", 0, notes="again")
    hub.add(REPO, texts(theirs), kind="dataset")
    done = push.publish(REPO, folder=mine)
    assert (done.runs, len(done.problems)) == (2, 1)
    assert "repeats recipe, data, code and seed of" in done.problems[0]
    assert len(table(hub, "runs")) == 2
    assert table(hub, "results").query("origin == 'reproduced'")["n"].tolist() == [1]
    runs = [Run(Record.load(p), b"") for f in (mine, theirs) for p in f.rglob("*.json")]
    assert distinct(runs) == distinct(reversed(runs))


def test_a_local_record_that_cannot_be_trusted_is_not_sent(hub, place):
    folder = place("mine", 0, 1)
    file = sorted(folder.rglob("*.json"))[0]
    file.write_text(file.read_text().replace('"seed": ', '"seed": 1'))
    done = push.publish(REPO, folder=folder)
    assert (done.runs, len(done.problems)) == (1, 1)
    assert f"{file} left aside: " in done.problems[0]
    assert "do not trust `seed`" in done.problems[0]
    assert f"runs/digits_lt/{file.name}" not in hub.files(REPO, kind="dataset")


def test_the_space_is_static_and_shows_the_real_page(hub, place):
    pytest.importorskip("itables")
    done = push.publish(REPO, space="lab/page", folder=place("mine", 0))
    files = hub.files("lab/page", kind="space")
    assert set(files) == {"README.md", "index.html"}
    head = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (head["sdk"], head["app_file"]) == ("static", "index.html")
    assert hub.repositories["space", "lab/page"].sdk == "static"
    assert b"<html" in files["index.html"]
    assert "lab/page" in done.space_url


def test_the_command(hub, board, write, content):
    write(content)
    done = CliRunner().invoke(command, [f"repo={REPO}"], catch_exceptions=False)
    assert done.stdout.startswith("runs  1, of them new 1: http")
    assert f"/datasets/{REPO}/" in done.stdout
    for words, message in (
        ([], "expected `repo=...`"),
        (["space=a/b"], "expected `repo=...`"),
        ([f"repo={REPO}", "data.root=x"], "`data.root`: unknown key"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(words, standalone_mode=False)

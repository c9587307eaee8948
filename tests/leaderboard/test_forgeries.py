"""Records that claim what no run did: each is refused where somebody would come to believe it."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ltbench import leaderboard
from ltbench.digest import digest_of
from ltbench.errors import UserError
from ltbench.leaderboard import push
from ltbench.leaderboard.submit import submit
from ltbench.leaderboard.verify import verify_file
from ltbench.records.record import Record, record_text
from ltbench.records.sealing import checksums_of, run_id_of
from ltbench.records.store import read_records
from tests.hub.fixtures import USERS, point_at
from tests.hub.server import HubServer
from tests.leaderboard.conftest import own_board

Content = dict[str, Any]
Change = Callable[[Content], None]
INVENTED = {
    "date": "2026-01-01",
    "code": {"version": "0.1.0", "commit": None, "dirty": None},
    "device": "x",
    "differing": 0,
    "ece_difference": 0.0,
}


class Place:
    """A leaderboard with one honest, verified row, and the means of a forger.

    Args:
        board: folder of the leaderboard.
        hub: where weights lie.
        base: record of the honest run.
        files: what was published of it.
    """

    def __init__(self, board: Path, hub: HubServer, base: Content, files: dict[str, bytes]):
        self.board, self.hub, self.base, self.files = board, hub, base, files
        self.honest = self.forged(lambda c: None, publish="honest")
        self.honest_file = self.put(self.honest)
        assert verify_file(self.honest_file).passed

    def forged(self, change: Change, *, publish: str = "", sealed: bool = True) -> Content:
        """Return the honest record with a change, all hashes anew, weights published to match."""
        content = copy.deepcopy(self.base)
        change(content)
        recipe = content["recipe"]
        if sealed:
            recipe["digest"] = digest_of(recipe["resolved"])
        if publish:
            files = dict(self.files)
            config = json.loads(files["config.json"])
            config["ltbench"]["seed"] = content["seed"]
            config["model_args"]["recipe"].update(recipe["resolved"])
            files["config.json"] = json.dumps(config).encode()
            revision = self.hub.add(f"alice/{publish}", files)
            content["checkpoint"].update(repository=f"alice/{publish}", revision=revision)
        content["checksums"] = checksums_of(content)
        content["run_id"] = run_id_of(content)
        return content

    def put(self, content: Content, name: str = "") -> Path:
        """Write a record among those of the leaderboard, as a merged pull request does."""
        path = self.board / "records/digits_lt" / f"{name or content['run_id']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record_text(content))
        return path

    def rows(self) -> list[tuple[str, float, int, str]]:
        """Return method, overall, n and status of our rows."""
        frame = leaderboard.table(origin="reproduced")
        return [(r.method, round(r.overall, 2), r.n, r.status) for r in frame.itertuples()]


@pytest.fixture(scope="module")
def place(finished_run, publish_folder, tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("forger")
    files = {
        p.relative_to(publish_folder).as_posix(): p.read_bytes()
        for p in publish_folder.rglob("*")
        if p.is_file()
    }
    base = json.loads((finished_run / "record.json").read_text())
    with (
        pytest.MonkeyPatch.context() as patch,
        HubServer(tokens=USERS, orgs={"lab": ["alice"]}) as hub,
    ):
        point_at(hub, folder / "hf", patch)
        yield Place(own_board(folder / "leaderboard", patch), hub, base, files)


@pytest.fixture(autouse=True)
def swept(request) -> Iterator[None]:
    """Leave the honest row alone on the leaderboard, as it was."""
    place = request.getfixturevalue("place")
    before = {p: p.read_bytes() for p in place.board.rglob("*") if p.is_file()}
    yield
    for path in [p for p in place.board.rglob("*") if not p.is_dir()]:
        if path not in before:
            path.unlink()
    for path, text in before.items():
        path.write_bytes(text)


def perfect(content: Content) -> None:
    """Count every image as correct, in classes and bins alike."""
    m = content["metrics"]
    m["correct"] = list(m["total"])
    m["bin_correct"] = list(m["bin_count"])


def lucky(content: Content) -> None:
    """Count a few more images as correct, in classes and bins alike."""
    m = content["metrics"]
    for total, correct in (("total", "correct"), ("bin_count", "bin_correct")):
        left = 20
        for k, most in enumerate(m[total]):
            more = min(left, most - m[correct][k])
            m[correct][k] += more
            left -= more


def other_weights(content: Content) -> None:
    content["checkpoint"]["sha256"] = "0" * 64


def other_results(content: Content) -> None:
    content["metrics"]["bin_confidence"][5] += 1e-9


def half_the_test(content: Content) -> None:
    m = content["metrics"]
    m["total"] = [n // 2 for n in m["total"]]
    m["correct"] = [min(pair) for pair in zip(m["correct"], m["total"], strict=True)]
    bins = len(m["bin_count"])
    m["bin_count"] = [0] * (bins - 1) + [sum(m["total"])]
    m["bin_correct"] = [0] * (bins - 1) + [sum(m["correct"])]
    m["bin_confidence"] = [0.0] * (bins - 1) + [float(sum(m["total"]))]


def resolved(change: Change, *keys: str) -> Change:
    """Return a change of the resolved recipe whose keys are listed as overrides."""

    def do(content: Content) -> None:
        change(content["recipe"]["resolved"])
        content["recipe"]["overrides"] = sorted({*content["recipe"]["overrides"], *keys})

    return do


def both(*changes: Change) -> Change:
    def do(content: Content) -> None:
        for change in changes:
            change(content)

    return do


def field(key: str, value: Any) -> Change:
    return lambda content: content.update({key: value})


def recipe(**values: Any) -> Change:
    return lambda content: content["recipe"].update(values)


def dataset(**values: Any) -> Change:
    return lambda content: content["dataset"].update(values)


def day(after: int) -> str:
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return (today + datetime.timedelta(days=after)).isoformat()


COMMIT = {"version": "0.1.0", "commit": "a" * 40, "dirty": False}
RENAMED = both(
    recipe(name="crt_mixup_plot", overrides=[]), field("shortened", []), field("complete", True)
)
# name: what is changed, the step of `verify` that refuses it, what is said.
REFUSED: dict[str, tuple[Change, str, str]] = {
    "a date that nobody can follow": (field("date", "9999-12-31"), "digest", "`date`: expected"),
    "a date two days ahead": (field("date", day(2)), "digest", "`date`: expected"),
    "the name of another method": (RENAMED, "digest", "in shortened: expected True"),
    "another method, the rest honest": (
        recipe(name="crt_mixup_plot"),
        "digest",
        "recipe `crt_mixup_plot` is not what was run",
    ),
    "no overrides": (recipe(overrides=[]), "digest", "the record names as overrides nothing"),
    "an override too many": (
        both(lambda c: c["recipe"]["overrides"].append("stages.0.optim.lr")),
        "digest",
        "recipe `ce` is not what was run",
    ),
    "shortened called complete": (
        both(field("shortened", []), field("complete", True)),
        "digest",
        "in shortened: expected True",
    ),
    "an unregistered name, shortened hidden": (
        both(recipe(name="my_own_v2"), field("shortened", []), field("complete", True)),
        "digest",
        "in shortened: expected True",
    ),
    "an unregistered name with overrides of nothing": (
        recipe(name="my_own_v2", overrides=["data.name"]),
        "digest",
        "is not what was run",
    ),
    "an epoch of its own": (field("epoch", 9999), "digest", "epoch: expected None"),
    "no epoch of a run that was not cut": (
        resolved(lambda r: r["run"].update(max_steps=None)),
        "digest",
        "epoch: expected",
    ),
    "pretrained called from scratch": (
        resolved(lambda r: r["backbone"].update(pretrained=True), "backbone.pretrained"),
        "digest",
        "backbone_weights: expected timm:resnet20_cifar",
    ),
    "given weights called from scratch": (
        resolved(lambda r: r["backbone"].update(weights="f" * 64), "backbone.weights"),
        "digest",
        "backbone_weights: expected ffff",
    ),
    "from scratch called pretrained": (
        field("backbone_weights", "timm:x"),
        "digest",
        "backbone_weights: expected None",
    ),
    "another data set's name": (dataset(name="cifar10_lt"), "digest", "dataset.name: expected"),
    "another precision": (
        lambda c: c["execution"].update(precision="bf16"),
        "digest",
        "execution.precision: expected fp32",
    ),
    "other batches": (
        lambda c: c["execution"].update(per_rank_batch=[3]),
        "digest",
        "execution.per_rank_batch: expected",
    ),
    "half a test set": (
        both(half_the_test, other_weights, field("seed", 1)),
        "data",
        "test images of each class: digits_lt has 600",
    ),
    "other shot groups": (
        both(
            lambda c: c["metrics"].update(class_counts=[114] * 10),
            other_weights,
            other_results,
            field("seed", 1),
        ),
        "data",
        "training images of each class: digits_lt has",
    ),
    "other images": (dataset(test_sha256="0" * 64), "data", "hash of the test images"),
    "the same weights as a second seed": (
        both(field("seed", 1), other_results),
        "data",
        "seed 1 has the weights or the exact results of seed 0",
    ),
    "the same results as a second seed": (
        both(field("seed", 1), other_weights),
        "data",
        "seed 1 has the weights or the exact results of seed 0",
    ),
    "the same run under an unregistered name": (
        both(
            recipe(name="my_own_v2", overrides=[]),
            resolved(lambda r: r["stages"][0]["optim"].update(lr=0.05)),
            recipe(overrides=[]),
        ),
        "data",
        "recipe my_own_v2 has the weights and the exact results of ce",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_forgery_passes_neither_submit_nor_verify(place, tmp_path, name):
    change, step, reason = REFUSED[name]
    content = place.forged(change, publish="forged")
    (tmp_path / "record.json").write_bytes(record_text(content))
    files = {p for p in place.board.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as caught:
        submit(tmp_path / "record.json")
    assert reason in str(caught.value)
    assert {p for p in place.board.rglob("*") if p.is_file()} == files
    path = place.put({**content, "status": "verified", "verification": INVENTED}, "forged")
    done = verify_file(path)
    assert done.failed is not None, [str(s) for s in done.steps]
    assert (done.failed.name, reason in done.failed.text) == (step, True), done.failed.text
    assert json.loads(path.read_text())["status"] == "claimed"


REPLACING = {
    "by other code and a later date": both(perfect, field("code", COMMIT), field("date", day(1))),
    "by other code and an earlier date": both(
        perfect, field("code", COMMIT), field("date", "2020-01-01")
    ),
    "of the same code": both(perfect, field("date", "2020-01-01")),
}


@pytest.mark.parametrize("name", REPLACING)
def test_a_claim_never_replaces_a_verified_row(place, tmp_path, name):
    content = place.forged(both(REPLACING[name], other_weights))
    (tmp_path / "record.json").write_bytes(record_text(content))
    before = place.rows()
    assert before[0][3] == "verified"
    with pytest.raises(UserError, match=r"does not replace it|same recipe, data, code and seed"):
        submit(tmp_path / "record.json")
    place.put(content)
    assert place.rows() == before


def test_an_equal_status_is_replaced_by_a_later_run(place, tmp_path):
    place.honest_file.unlink()
    place.put(place.forged(lambda c: None))
    later = both(lucky, other_weights, field("code", COMMIT), field("date", day(1)))
    (tmp_path / "record.json").write_bytes(record_text(place.forged(later)))
    submit(tmp_path / "record.json")
    ((_, overall, n, status),) = place.rows()
    honest = 100 * sum(place.base["metrics"]["correct"]) / 600
    assert (overall, n, status) == (pytest.approx(honest + 20 / 6, abs=0.01), 1, "claimed")


@pytest.mark.parametrize("status", ["verified", "reproduced", "withdrawn"])
def test_an_invented_status_is_shown_nowhere(place, status):
    place.honest_file.unlink()
    checked = {"status": status, "verification": INVENTED if status == "verified" else None}
    content = {**place.forged(perfect, publish="perfect"), **checked}
    path = place.put(content)
    with pytest.warns(UserWarning, match=r"has a status that verified\.json does not confirm"):
        assert place.rows() == [("CE", 100.0, 1, "claimed")]
    done = push.publish(f"lab/marks-{status}")
    assert any("does not confirm" in line for line in done.problems)
    assert _published(place.hub, f"lab/marks-{status}", "runs")["status"].tolist() == ["claimed"]
    assert _published(place.hub, f"lab/marks-{status}", "runs")["verified_on"].isna().all()
    assert verify_file(path, mark=False).failed.name == "evaluation"
    assert json.loads(path.read_text())["status"] == status  # read only
    done = verify_file(path)
    assert json.loads(path.read_text())["status"] == ("claimed" if status == "verified" else status)
    assert "predictions differ" in done.failed.text


def test_a_verification_of_another_record_confirms_nothing(place):
    place.honest_file.unlink()
    mine = json.loads(place.board.joinpath("verified.json").read_text())["verified"]
    (facts,) = (facts for run_id, facts in mine.items() if run_id == place.honest["run_id"])
    content = {**place.forged(perfect), "status": "verified", "verification": facts}
    place.put(content)
    with pytest.warns(UserWarning, match="does not confirm"):
        assert place.rows()[0][3] == "claimed"


def test_a_row_of_a_paper_is_not_submitted_and_not_taken_from_the_hub(place, tmp_path):
    printed = {"origin": "paper", "status": "paper", "citation": "A. Author, Table 1"}
    content = place.forged(both(perfect, lambda c: c.update(printed, checkpoint=None, seed=5)))
    (tmp_path / "record.json").write_bytes(record_text(content))
    with pytest.raises(UserError, match="rows of papers are committed by hand"):
        submit(tmp_path / "record.json")
    path = f"runs/digits_lt/{content['run_id']}.json"
    place.hub.add("lab/papers", {path: record_text(content)}, kind="dataset")
    done = push.publish("lab/papers")
    assert any("only the maintainers add" in line for line in done.problems)
    results = _published(place.hub, "lab/papers", "results")
    assert "A. Author, Table 1" not in results["source"].tolist()


def test_what_others_put_on_the_hub_is_held_to_the_same_facts(place):
    bad = [place.forged(REFUSED[n][0]) for n in ("half a test set", "an epoch of its own")]
    bad = [{**c, "seed": 7 + i} for i, c in enumerate(bad)]
    files = {}
    for content in bad:
        other_weights(content)
        content["checksums"] = checksums_of(content)
        content["run_id"] = run_id_of(content)
        files[f"runs/digits_lt/{content['run_id']}.json"] = record_text(content)
    place.hub.add("lab/facts", files, kind="dataset")
    done = push.publish("lab/facts")
    assert len([line for line in done.problems if "out of all tables" in line]) == 2
    assert len(_published(place.hub, "lab/facts", "runs")) == 1
    results = _published(place.hub, "lab/facts", "results")
    assert results.query("origin == 'reproduced'")["n"].tolist() == [1]


def test_a_renamed_row_is_named_by_table_and_left_out_by_publish(place):
    place.honest_file.unlink()
    place.put(place.forged(recipe(name="crt_mixup_plot")))
    frame = leaderboard.table(origin="reproduced")
    assert frame["note"].str.startswith("not today's recipe").all()
    with pytest.warns(UserWarning, match="left aside: recipe `crt_mixup_plot` is not what was run"):
        assert leaderboard.table(origin="reproduced", checked=True).empty


def test_an_unregistered_name_is_shown_as_such(place):
    place.honest_file.unlink()
    path = place.put(place.forged(recipe(name="mislas_plot_v2", overrides=[]), publish="own"))
    done = verify_file(path)
    assert done.passed
    assert "recipe mislas_plot_v2 (unregistered)" in done.steps[0].text
    for checked in (False, True):
        frame = leaderboard.table(origin="reproduced", checked=checked)
        assert frame["note"].str.startswith("unregistered recipe").all()


def test_rows_of_two_data_sets_are_never_one_mean(place):
    other = both(dataset(name="folder"), field("seed", 4), other_weights, lucky)
    place.put(place.forged(other))
    assert sorted(row[2] for row in place.rows()) == [1, 1]


# Files that must neither stop nor slow down whoever reads the others: name, content.
BOMB = {f"argument_{i}": i for i in range(12_000)}
LIMIT = "at most 4,000"


@functools.cache
def poisoned(place: Place) -> dict[str, tuple[bytes, str]]:
    """Return files by name, each with the reason for which it is left aside."""

    def sealed(change: Change) -> bytes:
        return record_text(place.forged(both(field("seed", 5), other_weights, lucky, change)))

    def backbone(value: Any) -> bytes:
        return sealed(lambda c: c["recipe"]["resolved"]["backbone"].update(args=value))

    def stage(**values: Any) -> bytes:
        return sealed(lambda c: c["recipe"]["resolved"]["stages"][0].update(values))

    deep: list[Any] = []
    for _ in range(40):
        deep = [deep]
    return {
        "args_list": (backbone([1]), "backbone.args"),
        "args_text": (backbone("x"), "backbone.args"),
        "args_many": (backbone(BOMB), "at most 200,000"),
        "args_long": (backbone({"x": "y" * 10_000}), LIMIT),
        "args_deep": (backbone({"x": deep}), "levels"),
        "epochs_text": (stage(epochs="5"), "stages.0.epochs"),
        "epochs_half": (stage(epochs=2.5), "stages.0.epochs"),
        "epochs_huge": (stage(epochs=10**30), "stages.0.epochs"),
        "update_text": (stage(update="plot"), "stages.0.update"),
        "method_name": (stage(method={"name": 3}), "stages.0.method.name"),
        "stages_map": (
            sealed(lambda c: c["recipe"]["resolved"].update(stages={"0": {}})),
            "stages",
        ),
        "ratio_zero": (
            sealed(lambda c: c["recipe"]["resolved"]["data"].update(imbalance_ratio=0)),
            "imbalance_ratio",
        ),
        "ratio_huge": (
            sealed(lambda c: c["recipe"]["resolved"]["data"].update(imbalance_ratio=10**400)),
            "imbalance_ratio",
        ),
        "big_recipe": (
            sealed(lambda c: c["recipe"]["resolved"].update(x=["y" * 100] * 5000)),
            "at most 200,000",
        ),
        "recipe_path": (sealed(recipe(name="../../x")), "`recipe.name`"),
        "recipe_long": (sealed(recipe(name="x" * 300)), "`recipe.name`"),
        "data_path": (sealed(dataset(name="../x")), "`dataset.name`"),
        "escape_code": (sealed(field("notes", "a\x1b[2Jb")), "control character"),
        "c1_code": (sealed(field("submitted_by", "a\x9b2Jb")), "control character"),
        "bidi": (sealed(field("licence", "a\u202eb")), "control character"),
        "future": (sealed(field("date", day(400))), "`date`"),
        "not_json": (b"{", "not JSON"),
        "not_text": (b"\xff\xfe", "not JSON"),
        "deep_json": (b"[" * 100_000, "not JSON"),
        "no_record": (b"[]", "is not a record"),
        "twin": (record_text(place.forged(field("notes", "again"))), "repeats recipe, data"),
        "second_seed": (record_text(place.forged(field("seed", 1))), "under another seed, 1"),
    }


def test_a_bad_file_is_left_aside_with_its_reason_and_everything_else_goes_on(place, tmp_path):
    files = poisoned(place)
    folder = place.board / "records/digits_lt"
    for name, (text, _) in files.items():
        (folder / f"{name}.json").write_bytes(text)
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / ".partial-x.json").write_bytes(b"{")
    (place.board / "records/.hidden").mkdir()
    (place.board / "records/.hidden/x.json").write_bytes(b"{")
    (folder / "link.json").symlink_to(tmp_path / "nowhere")
    found = read_records()
    assert [r.run_id for r in found.kept] == [place.honest["run_id"]]
    for name, (_, reason) in files.items():
        (line,) = [line for line in found.notes if line.startswith(f"{folder / name}.json")]
        assert reason in line, (name, line)
        assert "\n" not in line
        assert len(line) < 700
    assert len(found.notes) == len(files)
    with pytest.warns(UserWarning, match=r"left aside|\.\.\. and"):
        assert [row[2:] for row in place.rows()] == [(1, "verified")]
    (folder / "folder.json").rmdir()
    (place.board / "records/.hidden/x.json").unlink()


@pytest.mark.slow
def test_derived_tables_page_publish_and_grids_go_on_beside_bad_files(place, monkeypatch):
    from ltbench.config.files import get_recipe
    from ltbench.train.grid import Cell, known

    pytest.importorskip("itables")
    files = poisoned(place)
    for name, (text, _) in files.items():
        (place.board / "records/digits_lt" / f"{name}.json").write_bytes(text)
    assert known([Cell(get_recipe("quickstart"))])[0].outcome is None
    with pytest.warns(UserWarning, match=r"left aside"):
        page = leaderboard_page()
    assert place.honest["run_id"][:12] in page
    done = push.publish("lab/poisoned")
    assert (done.runs, len(done.problems)) == (3, len(files))  # honest, twin, second seed
    results = _published(place.hub, "lab/poisoned", "results")
    assert results.query("origin == 'reproduced'")["n"].tolist() == [1]


def leaderboard_page() -> str:
    from ltbench.leaderboard.page import build_page

    return build_page()


NAMES = ("a:b.json", "a\\b.json", "../x.json", "%00.json", "x.json", ".partial-x.json", "é.json")


def test_no_name_of_a_file_on_the_hub_ends_publish_or_submit(place, tmp_path):
    repo = "lab/names"
    text = record_text(place.forged(both(field("seed", 8), other_weights, other_results)))
    bad = {f"runs/digits_lt/{name}": text for name in NAMES if ".." not in name}
    bad |= {"runs/a:b/x.json": text, f"runs/a/b/{'0' * 32}.json": text}
    place.hub.add(repo, bad, kind="dataset")
    done = push.publish(repo)
    assert len([p for p in done.problems if "is not named like a record" in p]) == len(bad)
    assert done.runs == 1
    (tmp_path / "record.json").write_bytes(
        record_text(place.forged(both(field("seed", 9), other_weights, lucky)))
    )
    assert submit(tmp_path / "record.json", repo=repo).pull_request


def test_a_submission_cut_short_is_repeated(place, tmp_path, monkeypatch):
    content = place.forged(both(field("seed", 3), other_weights, lucky))
    (tmp_path / "record.json").write_bytes(record_text(content))
    folder = place.board / "records/digits_lt"
    left = folder / f".partial-{content['run_id']}.json"
    old, new = folder / ".partial-old.json", folder / ".partial-new.json"
    for text in (record_text(content), record_text(content)[:100]):
        for file in (left, old, new):
            file.write_bytes(text)
        os.utime(old, (0, 0))
        assert len(place.rows()) == 1
        done = submit(tmp_path / "record.json")
        assert done.path.read_bytes() == record_text(content)
        assert not left.exists()
        assert not old.exists()
        assert new.exists()
        assert [row[2] for row in place.rows()] == [2]
        done.path.unlink()


def test_hostile_texts_reach_the_terminal_without_control_characters(place, capsys):
    from click.testing import CliRunner

    from ltbench.cli.leaderboard import leaderboard as commands

    content = place.forged(
        both(
            field("seed", 5),
            other_weights,
            lucky,
            resolved(lambda r: r["backbone"].update(args={"x\u00adx": "\u2028y"})),
        )
    )
    place.put(content)
    path = place.put({**content, "notes": "\x1b[2J"}, "escape\x1b[2J")
    for words in (["origin=reproduced"], ["origin=reproduced", "--csv"], ["verify", str(path)]):
        done = CliRunner().invoke(commands, words)
        shown = f"{done.output}{done.exception or ''}"
        assert "\x1b[2J" not in shown
        assert "\u2028" not in shown
    path.unlink()


def _published(hub: HubServer, repo: str, name: str):
    import io

    import pandas as pd

    return pd.read_parquet(io.BytesIO(hub.files(repo, kind="dataset")[f"data/{name}.parquet"]))


def test_the_honest_row_is_still_verified(place):
    assert verify_file(place.honest_file).passed
    assert Record.load(place.honest_file).status == "verified"

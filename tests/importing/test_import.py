"""`ltbench import`: folder and record, and everything that takes them; known releases."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ltbench
from ltbench.cli.diagnose import diagnose
from ltbench.cli.evaluate import eval_
from ltbench.cli.importing import import_
from ltbench.cli.leaderboard import leaderboard
from ltbench.cli.predict import predict
from ltbench.cli.show import list_
from ltbench.config.files import get_recipe
from ltbench.config.words import read_words
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.hub.export import export
from ltbench.importing.checks import far_from_chance
from ltbench.importing.importer import Release, import_release
from ltbench.importing.layouts import FAMILIES, SAME
from ltbench.importing.releases import fetched, find_release, releases
from ltbench.importing.selection import usual_choice
from ltbench.leaderboard.submit import submit
from ltbench.leaderboard.tables import table
from ltbench.records.record import Record, validate_record
from ltbench.records.store import load_records
from tests.importing.theirs import extra, head, module_, net, saved, under

RECIPE = "quickstart"
SHORT = {"run__max_steps": 3, "run__device": "cpu"}
BACKBONE = "backbone=resnet20_cifar"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ours on digits, which need no files, and its weights as a file of LDAM's layout."""
    folder = tmp_path_factory.mktemp("run")
    recipe = ltbench.get_recipe("ce", BACKBONE, "data=digits_lt", out=str(folder / "run"), **SHORT)
    result = ltbench.run(recipe, quiet=True)
    method = ltbench.load(result.folder)
    state = {**net(method), **under(head(method), "linear.")}
    path = saved(
        folder / "ckpt.best.pth.tar", {**extra(best_acc1=9.0), "state_dict": module_(state)}
    )
    return result, path


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    _, path = trained
    out = tmp_path_factory.mktemp("imported") / "model"
    words = (
        *(f"file={path}", "recipe=ce", "data=digits_lt", f"out={out}", "claimed=10", "workers=0"),
        *("source=some/where@0123abc", "chosen_on_test=yes", "device=cpu"),
    )
    done = CliRunner().invoke(import_, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "family   ldam" in done.output
    assert "stated   best_acc1 9" in done.output
    assert "claimed  10 %" in done.output
    return out


def test_the_folder_has_the_results_of_the_run_itself(trained, folder):
    result, path = trained
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "model.json", "record.json"}
    record = Record.load(folder / "record.json")
    assert record.metrics == result.metrics
    assert (record.origin, record.status, record.selection) == ("imported", "imported", "released")
    facts = record.imported
    assert facts.sha256 == file_sha256(path)
    assert (facts.source, facts.claimed, facts.epoch) == ("some/where@0123abc", 10, 200)
    assert facts.chosen_on_test == "yes"
    assert facts.training_images is None
    assert record.licence == "unspecified"
    assert record.checkpoint.sha256 == file_sha256(folder / "model.safetensors")
    assert "backbone.name" in record.recipe.overrides


def test_it_is_loaded_evaluated_predicted_with_and_diagnosed(trained, folder, tmp_path):
    result, _ = trained
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ltbench.load(folder)(images), ltbench.load(result.folder)(images))
    done = CliRunner().invoke(eval_, [f"model={folder}", "workers=0", "device=cpu"])
    assert done.exit_code == 0, done.output
    assert f"{100 * result.metrics.top1:.2f}" in done.output
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    words = [f"model={folder}", f"images={tmp_path / 'a.png'}", f"out={tmp_path / 'a.json'}"]
    done = CliRunner().invoke(predict, [*words, "workers=0", "device=cpu"])
    assert done.exit_code == 0, done.output
    words = [f"run={folder}", "what=norms,calibration", f"out={tmp_path / 'd'}", "device=cpu"]
    done = CliRunner().invoke(diagnose, words)
    assert done.exit_code == 0, (done.output, done.exception)


def test_it_is_published_only_under_a_licence(folder, tmp_path):
    with pytest.raises(UserError, match=r"some/where@0123abc.*no licence is stated"):
        export(folder, tmp_path / "no")
    out = export(folder, tmp_path / "yes", licence="mit")
    card = (out / "README.md").read_text()
    assert "**Imported**" in card
    assert "some/where@0123abc" in card.replace("\\", "")
    assert "ltbench import file=ckpt.best.pth.tar" in card
    assert Record.load(out / "record.json").licence == "mit"
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ltbench.load(out)(images), ltbench.load(folder)(images))


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "shelf"
    (place / "records").mkdir(parents=True)
    monkeypatch.setattr("ltbench.records.store.leaderboard_dir", lambda: place)
    return place


def test_the_leaderboard_shows_it_apart(trained, folder, shelf):
    from ltbench.leaderboard.overview import overview
    from ltbench.leaderboard.page import build_page
    from ltbench.leaderboard.tables import board_rows
    from ltbench.leaderboard.verify import verify_file

    done = submit(folder, folder=shelf / "records")
    assert done.record.status == "imported"
    found, notes = load_records(shelf / "records")
    assert not notes
    assert [record.status for record in found.values()] == ["imported"]
    frame = table(origin="imported", folder=shelf / "records")
    (row,) = frame.to_dict("records")
    assert (row["origin"], row["status"], row["epochs"]) == ("imported", "imported", "unknown")
    assert row["track"].startswith("imported, data ")
    assert row["source"] == "some/where@0123abc"
    assert row["selection"] == "best on test"
    assert "its authors print 10" in row["note"]
    assert table(status="imported", folder=shelf / "records").shape[0] == 1
    lines = [line.text for line in overview(board_rows(shelf / "records"))]
    assert lines[0].startswith("0 rows of ours, 1 imported, ")
    page = build_page(shelf / "records")
    assert "imported from where@0123abc" in page
    assert 'badge imported">imported' in page
    (path,) = found
    checked = verify_file(path, mark=True)  # no weights are committed with the leaderboard
    assert not checked.passed
    assert checked.failed is None
    assert (checked.steps[-1].name, checked.steps[-1].state) == ("pinned", "not run")
    assert Record.load(path).status == "imported"


def test_records_of_runs_are_as_they_were(trained, folder):
    result, _ = trained
    content = json.loads((result.folder / "record.json").read_text())
    assert "imported" not in content
    own = json.loads((folder / "record.json").read_text())
    for change in (
        {"origin": "reproduced"},
        {"status": "reproduced"},
        {"status": "claimed"},
        {"selection": "last"},
        {"imported": None},
    ):
        assert validate_record({**own, **change}), change
    assert validate_record({**content, "status": "imported"})
    assert validate_record({**content, "imported": own["imported"]})
    assert not validate_record(own)


def test_an_import_does_not_replace_a_run(trained, tmp_path):
    result, path = trained
    with pytest.raises(UserError, match="expected a new folder"):
        import_release(Release(path, "ce", (BACKBONE, "data=digits_lt")), result.folder)


def test_training_only_parts_are_left_out_of_published_models_too(tmp_path):
    """PaCo's momentum encoder is not in the file's folder, nor in what timm loads."""
    import timm

    from tests.importing.theirs import logits, made

    method = made("paco_cifar10")
    state = {**under(net(method), "encoder_q."), **under(head(method), "linear.")}
    path = saved(tmp_path / "a.pth", {"state_dict": state})
    found = import_release(Release(path, "paco_cifar10", licence="mit"), tmp_path / "model")
    described = json.loads((found.folder / "model.json").read_text())
    assert described["inference_only"] is True
    assert (found.folder / "model.safetensors").stat().st_size < 2.2e6  # one encoder
    metrics = Metrics.from_counts(
        [1] * 10, [10] * 10, [(100, 5.0, 10), *[(0, 0.0, 0)] * 14], [5] * 10
    )
    record = _record_of(found, metrics)
    record.save(found.folder / "record.json")
    out = export(found.folder, tmp_path / "published")
    wanted = logits(method)
    assert torch.equal(logits(ltbench.load(out)), wanted)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert torch.equal(logits(model), wanted)


def _record_of(found, metrics) -> Record:
    from ltbench.records.parts import CheckpointFacts
    from tests.records.made import made as made_record

    weights = found.folder / "model.safetensors"
    facts = json.loads((found.folder / "model.json").read_text())
    recipe = get_recipe("paco_cifar10")
    plain = made_record("paco_cifar10", 0, (1, 1, 1))
    record = plain.model_copy(
        update={
            "origin": "imported", "status": "imported", "selection": "released", "epoch": None,
            "imported": found.facts, "licence": "mit", "metrics": metrics,
            "recipe": plain.recipe.model_copy(
                update={"resolved": json.loads(json.dumps(recipe.tree(digest_only=True))),
                        "digest": recipe.digest}
            ),
            "dataset": plain.dataset.model_copy(update={"name": "cifar10_lt"}),
            "checkpoint": CheckpointFacts(
                file=weights.name, sha256=facts["sha256"], bytes=weights.stat().st_size
            ),
        }
    )  # fmt: skip
    return record.sealed()


def test_a_confident_model_at_chance_has_another_order():
    bins = [(0, 0.0, 0)] * 15
    sure = [*bins[:-1], (100, 95.0, 3)]
    unsure = [(100, 2.0, 3), *bins[1:]]
    right = [*bins[:-1], (100, 95.0, 60)]
    counts = [1] * 100

    def metrics(bins, correct):
        return Metrics.from_counts([1] * correct + [0] * (100 - correct), counts, bins, counts)

    assert "try classes=" in far_from_chance(metrics(sure, 3), "official")
    assert not far_from_chance(metrics(unsure, 3), "official")
    assert not far_from_chance(metrics(right, 60), "official")


def test_how_the_epoch_was_chosen_is_guessed_only_where_the_code_says_it():
    assert usual_choice("ldam", "cifar10_lt", "ckpt.best.pth.tar") == "yes"
    assert usual_choice("ldam", "cifar10_lt", "ckpt.pth.tar") == "no"
    assert usual_choice("ldam", "cifar10_lt", "mine.pth") == "unknown"
    assert usual_choice("ride", "imagenet_lt", "model_best.pth") == "no"
    assert usual_choice("ride", "cifar100_lt", "model_best.pth") == "yes"
    assert usual_choice("decoupling", "places_lt", "a.pth") == "no"
    assert usual_choice("m2m", "cifar10_lt", "best.t7") == "no"


@pytest.mark.slow  # 46 s
def test_the_real_file_has_4439_right(shared_data, tmp_path):
    """BCL, ratio 100, last epoch, as a student repository released it."""
    import runpy

    unpack = runpy.run_path(str(shared_data / "unpack_sheets.py"))["load"]
    _, _, data = unpack(shared_data / "cifar100_sheets.zip")
    root = tmp_path / "cifar100"
    root.mkdir()
    import numpy as np

    for split, parts in data.items():
        for name, values in zip(("images", "labels", "index"), parts, strict=True):
            np.save(root / f"{split}_{name}.npy", values)
    path = shared_data / "weights" / "bcl_c100_if100_temp0.07_last.pth.tar"
    release = Release(path, "bcl_cifar100", (f"data.root={root}",), claimed=44.39, scale=1.0)
    found = import_release(release, tmp_path / "out", workers=0, device="cpu")
    assert sum(found.metrics.correct) == 4439
    assert found.off == 0
    groups = found.metrics.many, found.metrics.medium, found.metrics.few
    assert [round(100 * g, 2) for g in groups] == [66.66, 43.89, 19.0]
    seen = found.record.imported.training_images
    assert seen.inside_correct == seen.inside
    assert 0.1 < seen.outside_correct / seen.outside < 0.3
    assert seen.verdict == "trained on the images of this subset"


def test_the_network_of_tiny_imagenet_is_refused(shared_data, tmp_path):
    path = shared_data / "weights" / "l2tww_tinyimagenet200_resnet32.pth.tar"
    with pytest.raises(UserError, match=r"no resnet32_cifar.*bias.*shortcuts have weights"):
        import_release(Release(path, "ce_cifar100"), tmp_path / "out")


def test_known_releases_name_recipes_families_and_places():
    known = releases()
    assert len(known) > 50
    for name, entry in known.items():
        get_recipe(entry.recipe, *entry.words)
        assert entry.family in (*FAMILIES, *SAME), name
        assert entry.url.startswith("https://"), name
    done = CliRunner().invoke(list_, ["releases", "bcl*"], catch_exceptions=False)
    assert "44.77 %, MIT, hash known" in done.output.replace("\n", " ")
    with pytest.raises(UserError, match="no known release"):
        find_release("bcl_cifar100_szu")


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder on a web server."""
    place = tmp_path / "www"
    place.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield place, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_once_and_checked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache"))
    place, address = server
    (place / "a b.pth").write_bytes(b"weights")
    sha256 = file_sha256(place / "a b.pth")
    url = f"{address}/a%20b.pth"
    path = fetched(url, sha256)
    assert path.read_bytes() == b"weights"
    (place / "a b.pth").write_bytes(b"other")
    assert fetched(url, sha256) == path  # from the cache
    with pytest.raises(UserError, match="not the file that is known"):
        fetched(url, "0" * 64)
    assert path.read_bytes() == b"weights"
    assert fetched(url).read_bytes() == b"other"
    with pytest.raises(UserError, match="404"):
        fetched(f"{address}/missing.pth")
    monkeypatch.setattr("ltbench.importing.releases.LARGEST", 3)
    with pytest.raises(UserError, match="larger than the 3 bytes"):
        fetched(url)
    with pytest.raises(UserError, match="page for browsers"):
        fetched("https://drive.google.com/file/d/x/view")


def test_import_from_an_address_and_of_a_known_release(trained, server, tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache"))
    _, path = trained
    place, address = server
    (place / path.name).write_bytes(path.read_bytes())
    words = [f"file={address}/{path.name}", "recipe=ce", "data=digits_lt", f"out={tmp_path / 'o'}"]
    done = CliRunner().invoke(import_, [*words, "workers=0", "device=cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Record.load(tmp_path / "o" / "record.json").imported.source == f"{address}/{path.name}"
    for words, match in (
        (["recipe=ce"], "expected `file=PATH` or `release=NAME`"),
        (["file=a.pth"], "expected `recipe=NAME`"),
        (["release=ride_cifar100_3"], "page for browsers.*file=PATH"),
        (["release=rid_cifar100_3"], "did you mean `ride_cifar100_3`"),
        (["file=a.pth", "recipe=ce_cifar10", "data.rot=x"], "unknown key"),
    ):
        with pytest.raises(UserError, match=match):
            import_.callback((*words, f"out={tmp_path / 'x'}"))


def test_help_names_every_word():
    assert read_words(["out=x"], import_.words).family == "auto"
    done = CliRunner().invoke(leaderboard, ["table", "--help"])
    assert "imported" in done.output

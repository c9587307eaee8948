"""Loading by every kind of source, the zoo's index, and `ltbench download`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ltbench
from ltbench.cli.hub import download
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.hub import zoo
from ltbench.hub.export import export
from ltbench.hub.load import load_described
from ltbench.records.record import Record
from ltbench.remote import hub as client

NAME = "quickstart"
SHORT = {"run__max_steps": 1, "run__device": "cpu"}
REPO = "alice/quickstart-seed0"
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = ltbench.get_recipe(NAME, out=str(folder), backbone="resnet20_cifar", **SHORT)
    return ltbench.run(recipe).folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    return export(run, tmp_path_factory.mktemp("published") / "folder")


@pytest.fixture(scope="module")
def logits(run) -> torch.Tensor:
    return answers(ltbench.load(run))


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder in the place of ``leaderboard/``."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setattr(zoo, "leaderboard_dir", lambda: folder)
    monkeypatch.setattr("ltbench.records.store.leaderboard_dir", lambda: folder)
    return folder


@pytest.fixture
def on_hub(hub, published, shelf):
    """The model on the Hub under its name, the index that knows it, and its revision."""
    revision = hub.add(
        REPO, {str(p.relative_to(published)): p.read_bytes() for p in files(published)}
    )
    write_index(shelf, published, repository=REPO, revision=revision)
    return revision


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def answers(model):
    assert not model.training
    with torch.no_grad():
        return model(IMAGES)


def write_index(shelf, published, seed=0, **place):
    weights = published / "model.safetensors"
    entry = {"sha256": file_sha256(weights), "bytes": weights.stat().st_size, **place}
    index = {"schema_version": 1, "models": {NAME: {str(seed): entry}}}
    (shelf / "zoo.json").write_text(json.dumps(index))


def embed(shelf, published, seed=0):
    shutil.copytree(published, shelf / "models" / f"{NAME}-seed{seed}")
    write_index(shelf, published, seed, embedded=f"models/{NAME}-seed{seed}")


def invoke(*words):
    return CliRunner().invoke(download, words, catch_exceptions=False)


def test_files_and_folders_load_to_the_same_logits(run, published, logits):
    for source in (
        str(run),
        run / "model.safetensors",
        published,
        published / "model.safetensors",
        f"local-dir:{published}",
    ):
        model = ltbench.load(source)
        assert torch.equal(answers(model), logits), source
        assert model.class_names[:2] == ("zero", "one")
        assert model.transform(Image.new("L", (20, 30))).shape == (3, 16, 16)


def test_a_run_comes_before_a_name_of_the_zoo(run, shelf, logits, monkeypatch, tmp_path):
    (shelf / "zoo.json").write_text('{"schema_version": 1, "models": {}}')
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / NAME)
    assert torch.equal(answers(ltbench.load(NAME)), logits)


def test_hub_sources_load_pinned_and_not(on_hub, hub, logits):
    hub.tag(REPO, "v1")
    for source in (f"hf-hub:{REPO}@{on_hub}", f"hf-hub:{REPO}", f"hf-hub:{REPO}@v1"):
        assert torch.equal(answers(ltbench.load(source)), logits), source


def test_a_name_of_the_zoo_comes_from_the_hub_and_then_from_the_cache(
    on_hub, hub, logits, offline, recwarn
):
    assert torch.equal(answers(ltbench.load(NAME)), logits)
    fetched = [r.path for r in hub.requests if r.method == "GET"]
    assert all(on_hub in path or path.startswith("/cdn/") for path in fetched)  # never main
    hub.stop()
    assert torch.equal(answers(ltbench.load(NAME, seed=0)), logits)
    offline()
    assert torch.equal(answers(ltbench.load(NAME)), logits)
    assert not [w for w in recwarn if "last asked" in str(w.message)]


def test_an_embedded_model_needs_no_network(hub, shelf, published, logits):
    embed(shelf, published, seed=3)
    hub.stop()
    method, facts = load_described(NAME, seed=3)
    assert torch.equal(answers(method), logits)
    assert facts["recipe"]["name"] == NAME
    assert not hub.requests


def test_weights_other_than_the_index_knows_are_refused(on_hub, shelf, published):
    index = json.loads((shelf / "zoo.json").read_text())
    index["models"][NAME]["0"]["sha256"] = "0" * 64
    (shelf / "zoo.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{REPO}.*expected SHA-256 hash 0000"):
        ltbench.load(NAME)
    embed(shelf, published)
    (shelf / "models" / f"{NAME}-seed0" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged or missing; reinstall"):
        ltbench.load(NAME)


def test_weights_exchanged_on_the_hub_are_refused(on_hub, hub):
    weights = bytearray(hub.files(REPO)["model.safetensors"])
    weights[-1] ^= 1
    hub.add(REPO, {"model.safetensors": bytes(weights)})
    with pytest.raises(UserError, match="damaged or was replaced"):
        ltbench.load(f"hf-hub:{REPO}")
    assert ltbench.load(f"hf-hub:{REPO}@{on_hub}")


def test_what_cannot_be_loaded_is_said_in_one_line(on_hub, hub, tmp_path):
    hub.add("alice/empty", {"a.json": b"{}"})
    for source, said in {
        "quikstart": "did you mean `quickstart`",
        "alice/thing": r"hf-hub:org/name\[@revision\]",
        "hf-hub:alice": "expected org/name",
        "hf-hub:a@b@c": "no model on the Hub",
        "hf-hub:alice/empty": "config.json of alice/empty.*no such file",
        f"local-dir:{tmp_path}/none": "expected model.safetensors and config.json",
        str(tmp_path): "model.safetensors and model.json",
        __file__: "expected a folder or a .safetensors file",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            ltbench.load(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="for seed 0, not for 7"):
        ltbench.load(NAME, seed=7)


def test_pretrained_names_come_from_the_index(shelf, published):
    assert ltbench.list_models(pretrained=True) == []
    embed(shelf, published)
    assert ltbench.list_models(pretrained=True) == [NAME]
    assert ltbench.list_models("*cifar*", pretrained=True) == []


def test_the_listing_tells_result_and_place(on_hub, shelf, run, published):
    place = f"hf-hub:{REPO}@{on_hub[:12]}"
    assert zoo.listing() == [(f"{NAME} seed=0", place)]
    (shelf / "records").mkdir()
    shutil.copy(run / "record.json", shelf / "records" / "a.json")
    top1 = 100 * Record.load(run / "record.json").metrics.top1
    assert zoo.listing("quick*") == [(f"{NAME} seed=0", f"{top1:.2f} % on Digits-LT, {place}")]
    embed(shelf, published)
    assert zoo.listing()[0][1].endswith("Digits-LT, in the package")
    assert zoo.listing("x*") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"revision": "main"}, "revision.*pattern"),
        ({"sha256": "abc"}, "sha256"),
        ({"folder": "../up"}, "folder"),
        ({"embedded": "../models/x"}, "embedded"),
        ({"repository": None}, "repository and revision go together"),
        ({"repository": None, "revision": None}, "neither embedded nor on the Hub"),
        ({"strange": 1}, "strange"),
    ],
)
def test_a_damaged_index_is_one_line(shelf, published, change, said):
    write_index(shelf, published, **{"repository": REPO, "revision": "0" * 40, **change})
    with pytest.raises(UserError, match=rf"zoo.json is damaged.*{said}") as caught:
        ltbench.list_models(pretrained=True)
    assert "\n" not in str(caught.value)
    (shelf / "zoo.json").write_text("{")
    with pytest.raises(UserError, match=r"zoo\.json is damaged"):
        zoo.find(NAME)


def test_download_fetches_names_patterns_and_repositories(on_hub, published, tmp_path):
    for words in ((NAME,), ("quick*", "seed=0"), (f"hf-hub:{REPO}@{on_hub}",)):
        result = invoke(*words, f"out={tmp_path}/{len(words[0])}")
        assert result.exit_code == 0
        assert "hash checked" in result.output
        folder = next((tmp_path / str(len(words[0]))).iterdir())
        assert folder.name == f"{NAME}-seed0"
        assert (folder / "model.safetensors").read_bytes() == (
            published / "model.safetensors"
        ).read_bytes()
        assert {"config.json", "record.json", "recipe.yaml", "README.md"} <= {
            p.name for p in folder.iterdir()
        }
        assert not list(folder.rglob(".partial-*"))
        assert ltbench.load(folder)


def test_download_without_out_fills_the_cache(on_hub, hub, offline, logits):
    assert invoke(NAME).exit_code == 0
    offline()
    assert torch.equal(answers(ltbench.load(f"hf-hub:{REPO}@{on_hub}")), logits)


def test_download_of_an_embedded_model_copies_it(shelf, published, tmp_path):
    embed(shelf, published)
    result = invoke(NAME, f"out={tmp_path}/out")
    assert result.exit_code == 0
    assert {p.name for p in (tmp_path / "out" / f"{NAME}-seed0").iterdir()} == {
        p.name for p in published.iterdir()
    }


def test_download_tells_of_a_stale_answer(on_hub, hub):
    invoke(f"hf-hub:{REPO}")
    hub.stop()
    with pytest.warns(UserWarning, match="using what `main`"):
        assert invoke(f"hf-hub:{REPO}").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected NAME, found nothing"),
        (("a", "b"), "found a, b"),
        (("quikstart",), "did you mean `quickstart`"),
        (("*nothing*",), "has no"),
        ((NAME, "seed=x"), "whole number"),
        ((NAME, "seed=9"), "not for 9"),
        ((NAME, "uot=x"), "did you mean `out`"),
        ((f"hf-hub:{REPO}", "seed=0"), "leave it out"),
    ],
)
def test_download_refuses_what_it_cannot_do(shelf, published, words, said):
    embed(shelf, published)
    with pytest.raises(UserError, match=said.replace("*", r"\*")):
        invoke(*words)


def test_a_gated_model_says_what_to_do(hub, published):
    hub.add("bob/gated", {"config.json": b"{}", "model.safetensors": b"\0"}, gated=True)
    with pytest.raises(UserError, match=r"config.json of bob/gated@.*granted on request"):
        ltbench.load("hf-hub:bob/gated")
    with pytest.raises(client.Missing, match=r"bob/none.*no such repository"):
        ltbench.load("hf-hub:bob/none")

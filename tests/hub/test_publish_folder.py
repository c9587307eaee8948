"""The publish folder: what is written, that it is the same each time, and the card."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import ltbench
from ltbench.errors import UserError
from ltbench.hub import export as exporting
from ltbench.hub.card import make_card, results_of
from ltbench.hub.export import export
from ltbench.hub.folder import read_config, read_folder
from ltbench.records.record import Record

FILES = {
    *("model.safetensors", "config.json", "recipe.yaml", "record.json", "README.md"),
    ".eval_results/digits_lt.yaml",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = ltbench.get_recipe(
        "quickstart", "backbone.args={widths: [4, 6, 8]}", backbone__name="resnet20_cifar",
        out=str(folder), run__max_steps=2, run__device="cpu", seed=3,
    )  # fmt: skip
    return ltbench.run(recipe).folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    return export(run, tmp_path_factory.mktemp("published") / "folder", repository="lab/net")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_run_becomes_the_listed_files_and_the_same_bytes_each_time(run, published, tmp_path):
    assert set(contents(published)) == FILES
    again = export(run, tmp_path / "again", repository="lab/net")
    assert contents(again) == contents(published)
    assert contents(export(run, again, repository="lab/net")) == contents(published)
    assert [p.name for p in tmp_path.iterdir()] == ["again"]
    for name in ("model.safetensors", "record.json"):
        assert (published / name).read_bytes() == (run / name).read_bytes()


def test_it_reads_back_as_what_lay_beside_the_weights(run, published):
    tensors, facts = read_folder(published)
    given = json.loads((run / "model.json").read_text())
    for key in ("dataset", "class_counts", "class_names", "mean", "std", "sha256", "seed"):
        assert facts[key] == given[key], key
    assert all(torch.equal(t, tensors[n]) for n, t in load_file(run / "model.safetensors").items())
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ltbench.load(published)(images), ltbench.load(run)(images))


def test_no_path_of_the_machine_is_published(run, published):
    for name, content in contents(published).items():
        assert str(run).encode() not in content, name
    assert "out" not in yaml.safe_load((published / "recipe.yaml").read_text())


def test_the_recipe_runs_as_a_file_with_the_same_digest(run, published):
    record = Record.load(run / "record.json")
    recipe = ltbench.get_recipe(str(published / "recipe.yaml"))
    assert recipe.digest == record.recipe.digest
    assert recipe.seed == 3
    assert recipe.name == record.recipe.name
    assert "ltbench run recipe=recipe.yaml seed=3\n" in (published / "README.md").read_text()


def test_half_precision_is_measured_anew_and_says_so(run, published, tmp_path):
    half = export(run, tmp_path / "half", half=True)
    before, after = (load_file(f / "model.safetensors") for f in (published, half))
    for name, tensor in before.items():
        wanted = torch.float16 if tensor.is_floating_point() else tensor.dtype
        assert after[name].dtype == wanted
        assert torch.equal(after[name], tensor.to(wanted))
    old, new = (Record.load(f / "record.json") for f in (published, half))
    model = ltbench.load(half)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, after[name].to(tensor.dtype))
    assert new.metrics == ltbench.evaluate(model, "digits_lt", device="cpu")
    assert new.metrics.class_counts == old.metrics.class_counts
    assert new.checkpoint.bytes == (half / "model.safetensors").stat().st_size
    assert new.checkpoint.bytes < old.checkpoint.bytes
    assert new.run_id != old.run_id
    assert "float16" in new.notes
    assert "float16" in (half / "README.md").read_text()
    (mode,) = {p.stat().st_mode & 0o777 for p in half.rglob("*") if p.is_file()}
    assert mode == (run / "record.json").stat().st_mode & 0o777


def test_half_precision_refuses_what_it_cannot_hold():
    with pytest.raises(UserError, match="holds 1e\\+06, which float16 cannot"):
        exporting._halved("head.weight", torch.tensor([1.0, -1e6]))
    counter = torch.tensor(100_000)
    assert exporting._halved("steps", counter) is counter


def test_half_precision_needs_the_runs_own_data(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ltbench.data.memory.MemorySplit.fingerprint", lambda self: "other")
    with pytest.raises(UserError, match="own test data"):
        export(run, tmp_path / "half", half=True)
    assert not list(tmp_path.iterdir())


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="finished run"):
        export(tmp_path, tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in ("model.json", "model.safetensors", "record.json"):
        (broken / file).write_bytes((run / file).read_bytes())
    facts = json.loads((broken / "model.json").read_text())
    (broken / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged or was replaced"):
        export(broken, tmp_path / "out")
    from ltbench.methods.weights import write_weights

    write_weights(broken / "model.safetensors", {"a": torch.zeros(1)}, facts)
    with pytest.raises(UserError, match="not of the same run"):
        export(broken, tmp_path / "out")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="something other than a publish folder"):
        export(run, mine)
    with pytest.raises(UserError, match="something other than a publish folder"):
        export(run, mine / "thesis.tex")
    assert (mine / "thesis.tex").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"broken", "mine"}


def test_a_config_of_something_else_is_said_to_be(tmp_path):
    file = tmp_path / "config.json"
    with pytest.raises(UserError, match="cannot read"):
        read_config(file)
    file.write_text('{"architecture": "resnet18", "pretrained_cfg": {}, "num_classes": 1000}')
    with pytest.raises(UserError, match="not of a model of ltbench"):
        read_config(file)
    file.write_text('{"architecture": ')
    with pytest.raises(UserError, match="damaged"):
        read_config(file)


def test_the_card_is_valid_and_says_what_was_done(run, published):
    record = Record.load(run / "record.json")
    text = (published / "README.md").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = ModelCard(text)
    assert card.data.library_name == "ltbench"
    assert {"timm", "long-tailed-recognition"} <= set(card.data.tags)
    found = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert found["top-1, overall, %"] == round(100 * record.metrics.top1, 2)
    first = card.text.strip().splitlines()[0]
    assert first.startswith("**Not a result.** This run was shortened (run.max\\_steps)")
    assert 'ltbench.load("hf-hub:lab/net")' in text
    assert record.recipe.digest in text
    assert "arXiv:1910.09217" in text  # cRT
    assert "Pareto Deep Long-Tailed Recognition" in text


def test_results_follow_the_hubs_format(run, published):
    parse = getattr(huggingface_hub, "parse_eval_result_entries", None)
    if parse is None:
        pytest.skip("this huggingface_hub reads no files of results yet")
    entries = parse(yaml.safe_load((published / ".eval_results" / "digits_lt.yaml").read_text()))
    record = Record.load(run / "record.json")
    assert {e.task_id for e in entries} == {"overall", "many", "medium", "few", "ece"}
    assert {e.dataset_id for e in entries} == {"ltbench/digits_lt"}
    overall = next(e for e in entries if e.task_id == "overall")
    assert overall.value == round(100 * record.metrics.top1, 4)


@pytest.mark.parametrize(
    ("stated", "licence", "name"),
    [("mit", "mit", None), ("unspecified", None, None), ("My Own: v1", "other", "My Own: v1")],
)
def test_the_licence_is_stated_as_the_hub_wants_it(stated, licence, name, run):
    record = Record.load(run / "record.json").model_copy(update={"licence": stated})
    recipe = {**ltbench.get_recipe("quickstart").tree()}
    card = ModelCard(make_card(record, recipe, None))
    assert card.data.license == licence
    assert card.data.license_name == name


def test_licence_goes_into_the_record_too(run, tmp_path):
    folder = export(run, tmp_path / "out", licence="apache-2.0")
    assert Record.load(folder / "record.json").licence == "apache-2.0"
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "apache-2.0"


def test_the_literature_stands_beside_the_results(run):
    recipe = ltbench.get_recipe("mislas_plot_cifar10")
    record = Record.load(run / "record.json")
    facts = record.recipe.model_copy(
        update={"name": recipe.name, "resolved": recipe.tree(digest_only=True), "overrides": ()}
    )
    data = record.dataset.model_copy(update={"name": "cifar10_lt"})
    record = record.model_copy(update={"recipe": facts, "dataset": data})
    card = ModelCard(make_card(record, recipe.tree(), "lab/net"))
    assert card.data.datasets == ["uoft-cs/cifar10"]
    assert "| MiSLAS + PLOT, ResNet-32, as printed in PLOT" in card.text
    assert "The recipe aims at: MiSLAS + PLOT on CIFAR-10-LT, ratio 100" in card.text
    assert f"ltbench run recipe={recipe.name} seed=3 data.root=DIR" in card.text


def test_hostile_names_stay_text(run):
    bad = "x`|<script>alert(1)</script>\n---\nlicense: stolen\n```\n# [a](http://b)"
    record = Record.load(run / "record.json")
    record = record.model_copy(
        update={
            "recipe": record.recipe.model_copy(update={"name": bad}),
            "dataset": record.dataset.model_copy(update={"name": bad}),
            "notes": bad,
            "licence": bad,
            "backbone_weights": bad,
        }
    )
    recipe = {**ltbench.get_recipe("quickstart").tree(), "name": bad, "note": bad}
    card = ModelCard(make_card(record, recipe, None))
    assert card.data.license == "other"
    lines = card.text.splitlines()
    assert "<script>" not in card.text.replace("\\<script\\>", "")
    assert not any(line.startswith(("license:", "# [a]", "---")) for line in lines)
    assert sum(line.startswith("```") for line in lines) == 6  # three blocks, none broken open
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("| stage")}
    assert widths == {3}
    assert yaml.safe_load(yaml.safe_dump(results_of(record)))[0]["dataset"]["task_id"] == "overall"

"""Published methods as timm sees them: same logits, strict loading, timm's own calls."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import toys
from safetensors.torch import load_file, save_file

import ltbench
from ltbench.config.validation import build_recipe
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.evaluation.metrics import BINS, Metrics
from ltbench.hub.export import export
from ltbench.hub.timm_model import TimmMethod
from ltbench.methods.build import build_method, describe_model
from ltbench.methods.weights import write_weights
from ltbench.records.making import make_record
from ltbench.records.record import RECORD, WEIGHTS

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORK = {"name": "resnet20_cifar", "args": {"widths": [4, 6, 8]}}
WIDE = {"name": "resnet20_cifar", "args": {"widths": [4, 8, 12]}}
TRAINED = {"epochs": 3, "batch_size": 32, "optim": {"lr": 0.1}}


@pytest.fixture(scope="module")
def digits():
    return build_recipe(tree_of("ce")).data.config.load()


def tree_of(name: str, **options):
    first = toys.BEFORE.get(name, "ce")
    stages = [{"method": first, **TRAINED}] if name in toys.STAGE2 + toys.POSTHOC else []
    method = {"name": name, **toys.OPTIONS.get(name, {}), **options}
    stages.append({"method": method, **({} if name in toys.POSTHOC else TRAINED)})
    if name in toys.FRESH:
        stages[-1]["start"] = "fresh"
    return {
        "name": f"{name}_digits",
        "data": {"name": "digits_lt"},
        "backbone": WIDE if name == "etf" else NETWORK,  # as many features as classes
        "stages": stages,
    }


def pretend(tree, data, folder: Path):
    """A run's folder as training would leave it, with random weights, and the method itself."""
    recipe = build_recipe(tree)
    method = None
    for index in range(len(recipe.stages)):
        method = build_method(recipe, index, data.info, method)
    method = method.to(memory_format=torch.channels_last)  # as the trainer does
    with torch.no_grad():
        for tensor in method.state_dict().values():
            if tensor.dim() > 1:
                tensor.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
            elif tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    folder.mkdir(parents=True)
    weights = folder / WEIGHTS
    digest = write_weights(weights, method.state_dict(), describe_model(recipe, data.info))
    count = [600] + [0] * (BINS - 1)
    metrics = Metrics(
        class_counts=data.info.class_counts,
        correct=[6] * 10,
        total=[60] * 10,
        bin_count=count,
        bin_confidence=[20.0] + [0.0] * (BINS - 1),
        bin_correct=[60] + [0] * (BINS - 1),
    )
    make_record(
        recipe,
        data,
        metrics,
        device=torch.device("cpu"),
        worlds=[1],
        seconds=1.0,
        weights=weights,
        weights_sha256=digest,
    ).save(folder / RECORD)
    return method.eval()


@pytest.fixture(scope="module")
def lws(digits, tmp_path_factory):
    """A published method whose head is not a plain classifier, and that method."""
    folder = tmp_path_factory.mktemp("lws")
    method = pretend(tree_of("lws"), digits, folder / "run")
    return export(folder / "run", folder / "published"), method


CASES = [(name, {}) for name in toys.STAGE1 + toys.STAGE2 + toys.POSTHOC]
CASES += [("reslt", {"gamma": 0.5, "block": "conv1x1"}), ("reslt", {"eval_after_pooling": True})]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@torch.no_grad()
def test_logits_are_those_of_predict_bit_for_bit(name, options, digits, tmp_path):
    method = pretend(tree_of(name, **options), digits, tmp_path / "run")
    expected = method.predict(IMAGES)
    assert not torch.equal(expected[0], expected[1])
    folder = export(tmp_path / "run", tmp_path / "published")
    assert torch.equal(ltbench.load(folder)(IMAGES), expected)

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(model(IMAGES), expected)
    assert model.num_classes == 10
    features = model.forward_features(IMAGES)
    assert torch.equal(model.forward_head(features), expected)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (3, model.num_features)
    assert json.loads((folder / "config.json").read_text())["num_features"] == model.num_features

    model.reset_classifier(3)
    assert model(IMAGES).shape == (3, 3)
    model.reset_classifier(0)
    assert torch.equal(model(IMAGES), before)


@torch.no_grad()
def test_another_number_of_classes_changes_the_classifier_alone(lws):
    folder, method = lws
    fresh = timm.create_model(f"local-dir:{folder}", pretrained=False).eval()
    assert not torch.equal(fresh(IMAGES), method(IMAGES))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert model(IMAGES).shape == (3, 3)
    kept = model.method.state_dict()
    assert all(torch.equal(t, kept[n]) for n, t in method.state_dict().items())


@torch.no_grad()
def test_it_answers_like_a_model_of_timm(lws):
    folder, method = lws
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert isinstance(model, TimmMethod)
    assert model.forward_features(IMAGES).shape == (3, 8, 4, 4)
    assert model.get_classifier() is model.method.head
    config = timm.data.resolve_data_config({}, model=model)
    assert tuple(config["input_size"]) == (3, 16, 16)
    assert tuple(config["mean"]) == (0.305,) * 3
    assert tuple(config["std"]) == (0.376,) * 3
    assert config["crop_pct"] == 1.0
    assert model.pretrained_cfg["label_names"][:2] == ["zero", "one"]
    twin = copy.deepcopy(model)
    model.reset_classifier(4)
    assert isinstance(model.get_classifier(), torch.nn.Linear)
    assert model(IMAGES).shape == (3, 4)
    assert torch.equal(twin(IMAGES), method.predict(IMAGES))
    with pytest.raises(UserError, match="pooling"):
        model.reset_classifier(4, "max")


@torch.no_grad()
def test_what_timm_saves_after_fine_tuning_loads_again(lws, tmp_path):
    model = timm.create_model(f"local-dir:{lws[0]}", pretrained=True, num_classes=4).eval()
    expected = model(IMAGES)
    model.to(memory_format=torch.contiguous_format)
    built_with = json.loads((lws[0] / "config.json").read_text())["model_args"]
    timm.models.save_for_hf(  # before 1.0.31, timm does not record the arguments by itself
        model, tmp_path / "tuned", safe_serialization=True, model_args=built_with
    )
    again = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), expected)
    with pytest.raises(UserError, match="not of a model of ltbench"):
        ltbench.load(f"local-dir:{tmp_path / 'tuned'}")


def test_what_cannot_be_done_is_said():
    with pytest.raises(UserError, match="published model only"):
        timm.create_model("ltbench_method")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"in_chans": 1}, "in_chans=1"), ({"features_only": True}, "features_only")],
)
def test_arguments_that_cannot_be_followed_are_refused(arguments, message, lws):
    with pytest.raises(UserError, match=message):
        timm.create_model(f"local-dir:{lws[0]}", pretrained=True, **arguments)
    with pytest.raises(UserError, match="unknown argument `drop_rate`"):
        timm.create_model(f"local-dir:{lws[0]}", pretrained=True, drop_rate=0.1)


def damaged(folder: Path, to: Path, change, *, honest: bool) -> Path:
    """A copy of a publish folder with other weights; the stated hash follows if ``honest``."""
    to.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (to / file.name).write_bytes(file.read_bytes())
    change(to / WEIGHTS)
    if honest:
        config = json.loads((to / "config.json").read_text())
        config["ltbench"]["sha256"] = file_sha256(to / WEIGHTS)
        (to / "config.json").write_text(json.dumps(config))
    return to


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def without(file: Path) -> None:
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if ".layer3." not in n}, file)


def extra(file: Path) -> None:
    save_file({**load_file(file), "more": torch.zeros(1)}, file)


@pytest.mark.parametrize(
    ("change", "honest", "message"),
    [
        (flip, False, "damaged or was replaced"),
        (without, True, "tensors do not fit"),
        (extra, True, "tensors do not fit, the first is `more`"),
    ],
)
def test_wrong_weights_never_pass(change, honest, message, lws, tmp_path):
    folder = damaged(lws[0], tmp_path / "damaged", change, honest=honest)
    for classes in ({}, {"num_classes": 3}):
        with pytest.raises(UserError, match=message):
            timm.create_model(f"local-dir:{folder}", pretrained=True, **classes)
    with pytest.raises(UserError, match=message):
        ltbench.load(folder)


FRESH = """
import sys
import timm, torch
from safetensors.torch import load_file
folder, given = sys.argv[1:]
try:
    timm.create_model(f"local-dir:{folder}", pretrained=True)
except RuntimeError as error:
    print(error)
import ltbench
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
given = load_file(given)
with torch.no_grad():
    print(torch.equal(model(given["images"]), given["logits"]))
"""


@pytest.mark.slow  # test_publish.py has such a process by default
@torch.no_grad()
def test_a_fresh_process_needs_import_ltbench_and_nothing_else(lws, tmp_path):
    folder, method = lws
    save_file({"images": IMAGES, "logits": method.predict(IMAGES)}, tmp_path / "given.safetensors")
    root = Path(ltbench.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), str(tmp_path / "given.safetensors")],
        env={**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["Unknown model (ltbench_method)", "True"], done.stderr
    assert "`import ltbench` must come before" in (folder / "README.md").read_text()

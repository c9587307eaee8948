"""Exported files predict what the model predicts, and say how to use them."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import toys
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import ltbench
from ltbench.cli.export import export
from ltbench.data.preprocessing import Preprocessing
from ltbench.errors import UserError
from ltbench.hub import formats

METHODS = toys.STAGE1 + toys.STAGE2 + toys.POSTHOC
MISSING = [name for name in formats.NEEDED if find_spec(name) is None]
onnx = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: ltbench[export]")
FACTS = {"recipe": {"name": "toy"}, "digest": "d1", "seed": 3, "sha256": "ab"}
ABOUT = {
    "class_names": ["a", "b", "c", "d"],
    "input_size": [3, 8, 8],
    "class_counts": list(toys.COUNTS),
    "recipe": "toy",
    "dataset": "toy",
    "digest": "d1",
    "seed": "3",
    "weights_sha256": "ab",
    "ltbench": ltbench.__version__,
    "preprocessing": {
        "colours": "RGB",
        "resize_short_side": 9,
        "interpolation": "bilinear",
        "antialias": True,
        "centre_crop": 8,
        "scale": [0, 1],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
    },
}


def trained(name):
    method = toys.method(name).eval()
    method.transform = Preprocessing(8, 9, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    for buffer in method.modules():
        if isinstance(buffer, nn.BatchNorm2d):  # statistics that a wrong mode would not have
            buffer.running_mean.add_(0.3)
            buffer.running_var.mul_(2)
    return method


def logits(method, images):
    with torch.no_grad():
        return method.predict(images).numpy()


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def parsed(texts):
    return {k: json.loads(v) if v[:1] in "[{" else v for k, v in texts.items() if k in ABOUT}


def run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, session.run(["logits"], {"images": images.numpy()})[0]


@onnx
def test_onnx_has_the_logits_for_any_batch_and_all_facts(tmp_path):
    method = trained("ce")
    done = formats.export_model(method, FACTS, tmp_path / "new" / "m.onnx")
    assert done.difference < 1e-4 < done.largest
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.onnx"]  # one file, weights inside
    for count in (1, 7):
        images = toys.images(7)[0][:count]
        session, found = run_onnx(done.path, images)
        close(found, logits(method, images))
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("images", [3, 8, 8])]
    assert isinstance(session.get_inputs()[0].shape[0], str)
    assert parsed(session.get_modelmeta().custom_metadata_map) == ABOUT


def test_torch_program_has_the_logits_for_any_batch_and_all_facts(tmp_path):
    method = trained("ride")
    path = formats.export_model(method, FACTS, tmp_path / "m.pt2").path
    extra = {formats.EXTRA: ""}
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 7):
        images = toys.images(7)[0][:count]
        with torch.no_grad():
            close(program(images).numpy(), logits(method, images))
    assert json.loads(extra[formats.EXTRA]) == ABOUT


def test_safetensors_are_a_state_dict_with_all_facts(tmp_path):
    method = trained("ce")
    path = formats.export_model(method, FACTS, tmp_path / "m.safetensors").path
    with safe_open(path, "pt") as file:
        assert parsed(file.metadata()) == ABOUT
    fresh = toys.method("ce", seed=5).export().eval()
    fresh.load_state_dict(load_file(path))
    images = toys.images(7)[0]
    close(logits_of(fresh, images), logits(method, images))


def logits_of(module, images):
    with torch.no_grad():
        return module(images).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "torch", pytest.param("onnx", marks=onnx)])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_exports_what_it_predicts(name, format, tmp_path):
    method, images = trained(name), toys.images(7)[0]
    path = tmp_path / f"m{formats.ENDINGS[format]}"
    formats.export_model(method, FACTS, path, format)
    if format == "onnx":
        close(run_onnx(path, images)[1], logits(method, images))
    elif format == "torch":
        close(logits_of(torch.export.load(path).module(), images), logits(method, images))
    else:
        fresh = toys.method(name, seed=5).export().eval()
        fresh.load_state_dict(load_file(path))
        close(logits_of(fresh, images), logits(method, images))


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_file_with_other_logits_is_not_left(tmp_path, monkeypatch, format):
    method = trained("ce")
    right = type(method).export

    def wrong(self):
        plain = right(self)
        with torch.no_grad():
            plain[1].bias.add_(0.01)
        return plain

    monkeypatch.setattr(type(method), "export", wrong)
    out = tmp_path / f"m{formats.ENDINGS[format]}"
    with pytest.raises(UserError, match=r"logits differ from the model's by 0\.01"):
        formats.export_model(method, FACTS, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([[0.0, 1.1]], "differ"),
        ([[0.0, np.nan]], "differ"),
        ([[0.0, 1.0], [0.0, 1.0]], r"shape \[2, 2\]"),
    ],
)
def test_comparison_refuses_other_logits(found, said):
    wanted = np.array([[0.0, 1.0]])
    formats.compare(wanted + 5e-5, wanted, "m")
    with pytest.raises(UserError, match=f"m was not written.*{said}"):
        formats.compare(np.array(found), wanted, "m")


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(UserError) as caught:
        formats.export_model(trained("ce"), FACTS, tmp_path / "m.onnx")
    assert "pip install 'ltbench[export]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_places_are_refused_and_nothing_is_lost(tmp_path):
    method = trained("ce")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights of a run")
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").write_text("x")
    for out, format, said in (
        (weights, "safetensors", "exists and is not an exported model"),
        (tmp_path / "m.pth", None, "ending in .onnx or .pt2 or .safetensors"),
        (tmp_path / "m.onnx", "torch", "ending in .pt2"),
        (tmp_path / "folder.pt2", None, "is a folder"),
        (tmp_path / "file" / "m.pt2", None, "cannot write"),
    ):
        with pytest.raises(UserError, match=said):
            formats.export_model(method, FACTS, out, format)
    assert weights.read_bytes() == b"weights of a run"
    method.transform = None
    with pytest.raises(UserError, match="transform of data set toy is not known"):
        formats.export_model(method, FACTS, tmp_path / "m.safetensors")


def test_the_command_exports_a_model_of_the_zoo_and_replaces_its_own_file(tmp_path):
    out = tmp_path / "q.safetensors"
    for _ in range(2):
        done = CliRunner().invoke(
            export, ["model=quickstart", f"out={out}"], catch_exceptions=False
        )
        assert done.exit_code == 0
        assert "differ by at most" in done.output
    name = ltbench.get_recipe("quickstart").backbone.name
    net = ltbench.create_model(name, num_classes=10).eval()
    net.load_state_dict(load_file(out))
    images = torch.rand(2, 3, 16, 16)
    close(logits_of(net, images), logits(ltbench.load("quickstart"), images))
    assert [p.name for p in tmp_path.iterdir()] == ["q.safetensors"]

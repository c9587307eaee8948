import argparse
import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import ltbench
from ltbench.config.resources import leaderboard_dir
from ltbench.config.weights import find_source, identity
from ltbench.data.base import DatasetInfo
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.hub.load import load_described
from ltbench.methods.build import build_method
from ltbench.models.backbone import create_backbone
from ltbench.models.loading import describe_weights

NAME = "resnet20_cifar"
State = dict[str, Tensor]
MODEL = leaderboard_dir() / "models" / "quickstart-seed0"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def state() -> State:
    return dict(timm.create_model(NAME, num_classes=3).state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{n}": t for n, t in state.items()}


def same(path: Path, state: State) -> bool:
    own = create_backbone(NAME, weights=str(path)).net.state_dict()
    return all(torch.equal(t, state[n]) for n, t in own.items())


def refused(path: Path | str, name: str = NAME) -> str:
    with pytest.raises(UserError) as caught:
        create_backbone(name, weights=str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1, "state": {}}},
    "model": lambda s: {"model": s, "args": {"lr": 0.1}},
    "module": lambda s: {"state_dict": prefixed("module.", s)},
    "compiled": lambda s: prefixed("module._orig_mod.", s),
    "lightning": lambda s: {"state_dict": prefixed("model.backbone.", s), "callbacks": {}},
    "ema": lambda s: {"state_dict": {n: t * 0 for n, t in s.items()}, "state_dict_ema": s},
    "linear": lambda s: {n.replace("fc.", "linear."): t for n, t in s.items()},
    "old": lambda s: {n: t for n, t in s.items() if not n.endswith("num_batches_tracked")},
    "projector": lambda s: {**s, "projector.0.weight": torch.zeros(2, 2)},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_of_torch_files(tmp_path: Path, state: State, kind: str) -> None:
    path = tmp_path / f"w{('.pth', '.pt', '.pth.tar', '.ckpt')[len(kind) % 4]}"
    torch.save(WRAPPED[kind](state), path, _use_new_zipfile_serialization=kind != "old")
    assert same(path, state)


def test_safetensors_files(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.safetensors"
    for given in (state, prefixed("module.", state), prefixed("backbone.net.", state)):
        save_file(given, path)
        assert same(path, state)


def test_half_precision_is_widened(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.safetensors"
    save_file({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, path)
    net = create_backbone(NAME, weights=str(path)).net
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_a_wrong_network_is_refused_with_the_first_name_and_both_shapes(
    tmp_path: Path, state: State
) -> None:
    path = tmp_path / "w.pth"
    torch.save({**state, "conv1.weight": torch.zeros(16, 1, 3, 3)}, path)
    shapes = r"another shape of `conv1.weight` (required [16, 3, 3, 3], found [16, 1, 3, 3])"
    assert shapes in refused(path)
    torch.save({n: t for n, t in state.items() if not n.startswith("layer3.1")}, path)
    assert "lacks `layer3.1.conv1.weight` [64, 64, 3, 3] and 9 more" in refused(path)
    torch.save({**state, "layer3.3.conv1.weight": torch.zeros(1)}, path)
    assert "has unknown `layer3.3.conv1.weight` [1]" in refused(path)
    torch.save({"weight": torch.zeros(1)}, path)
    assert "lacks `conv1.weight` [16, 3, 3, 3]" in refused(path)
    save_file(timm.create_model("resnet32_cifar").state_dict(), tmp_path / "deeper.safetensors")
    assert "has unknown `layer1.3." in refused(tmp_path / "deeper.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\3\4 cut", b"\x80\x02}q\0."])
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    assert "w." in refused(path)


def test_a_cut_file_is_one_line(tmp_path: Path, state: State) -> None:
    for name, save in (("w.safetensors", save_file), ("w.pth", torch.save)):
        path = tmp_path / name
        save(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
        assert "no intact" in refused(path)


def test_more_than_tensors_is_not_read(tmp_path: Path, state: State) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    for more in (argparse.Namespace(lr=0.1), Trap()):
        torch.save({"state_dict": state, "args": more}, tmp_path / "w.pth")
        assert "holds more than tensors" in refused(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["~nobody/w.pth", "~", "a" * 300 + "/w.pth"])
def test_paths_that_lead_nowhere_are_refused_and_have_a_digest(path: str) -> None:
    with pytest.raises(UserError, match=r"^backbone\.weights: "):
        find_source(path)
    assert identity(path) == path


def test_values_that_are_no_weights_are_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    for bad, said in (
        (torch.full((16, 3, 3, 3), torch.nan), "not finite"),
        (torch.zeros(16, 3, 3, 3, dtype=torch.int64), "expected torch.float32"),
        (torch.zeros(16, 3, 3, 3).to_sparse(), "sparse"),
    ):
        torch.save({**state, "conv1.weight": bad}, path)
        assert said in refused(path)


def test_models_of_ltbench_by_folder_file_and_name() -> None:
    network = ltbench.get_recipe("quickstart").backbone.name
    net = ltbench.load("quickstart").backbone.net.state_dict()
    for source in ("quickstart", "quickstart.0", MODEL, f"local-dir:{MODEL}",
                   MODEL / "model.safetensors"):  # fmt: skip
        own = create_backbone(network, weights=str(source)).net.state_dict()
        assert all(torch.equal(own[n], net[n]) for n in own)
    assert "it has another shape of `conv1.weight`" in refused("quickstart", "resnet18")


def test_names_of_nothing_say_what_is_accepted(tmp_path: Path) -> None:
    assert "the zoo has quickstart.0" in refused("quickstart.99")
    assert "did you mean `quickstart`" in refused("quickstrat")
    assert "there is no file" in refused(tmp_path / "absent.pth")
    assert "no finished run" in refused(tmp_path)
    (tmp_path / "seed3").mkdir()
    (tmp_path / "seed3" / "model.safetensors").touch()
    assert f"give {tmp_path / 'seed3'}" in refused(tmp_path)
    assert "names no commit" in refused("hf-hub:lab/model")
    assert "names no commit" in refused("hf-hub:lab/model@main")
    assert "expected hf-hub:ORG/NAME@COMMIT" in refused("hf-hub:model")


def test_weights_exchanged_beside_their_description_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    tensors = ltbench.load("quickstart").state_dict()
    other = {n: (t + 1).contiguous() for n, t in tensors.items()}
    save_file(other, folder / "model.safetensors")
    assert "damaged or was replaced" in refused(folder)


def test_the_digest_has_content_instead_of_place(tmp_path: Path, state: State) -> None:
    one, two = tmp_path / "one.pth", tmp_path / "two.pth"
    torch.save(state, one)
    shutil.copy(one, two)
    known = f"sha256:{file_sha256(one)}"
    assert identity(str(one)) == identity(str(two)) == known
    assert describe_weights(str(one)) == f"{known} (one.pth)"
    recipes = [ltbench.get_recipe("quickstart", f"backbone.weights={p}") for p in (one, two)]
    assert recipes[0].digest == recipes[1].digest != ltbench.get_recipe("quickstart").digest
    digest = recipes[1].digest
    two.unlink()
    assert recipes[1].digest == digest  # the file went away during the run
    weights = f"sha256:{file_sha256(MODEL / 'model.safetensors')}"
    assert {identity(str(s)) for s in ("quickstart", "quickstart.0", MODEL)} == {weights}
    assert describe_weights("quickstart.0") == f"{weights} (quickstart.0)"
    assert describe_weights(str(MODEL)) == f"{weights} (quickstart, seed 0)"
    pinned = f"hf-hub:lab/model@{'a' * 40}"
    assert identity(pinned) == pinned


def notes_of(class_names: tuple[str, ...], weights: str, *words: str) -> tuple[Any, str]:
    recipe = ltbench.get_recipe("quickstart", f"backbone.weights={weights}", *words)
    n = len(class_names)
    info = DatasetInfo("d", (9,) * n, class_names, (0.5,) * 3, (0.5,) * 3)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        method = build_method(recipe, 0, info)
    return method, "; ".join(str(w.message) for w in notes)


def test_the_classifier_is_kept_for_the_same_classes_only(tmp_path: Path, state: State) -> None:
    head = ltbench.load("quickstart").state_dict()["head.weight"]
    method, notes = notes_of(DIGITS, "quickstart")
    assert torch.equal(method.head.weight, head)
    assert notes == ""
    method, notes = notes_of((*DIGITS[1:], "zero"), "quickstart")
    assert not torch.equal(method.head.weight, head)
    assert "classifier of quickstart is left out: its class 0 is `zero`" in notes
    method, notes = notes_of(("a", "b"), "quickstart")
    assert method.head.weight.shape == (2, 64)
    assert "it has 10 classes, the data have 2" in notes
    torch.save(state, tmp_path / "w.pth")
    assert "no class names" in notes_of(DIGITS, str(tmp_path / "w.pth"),
                                        f"backbone.name={NAME}")[1]  # fmt: skip


def test_a_model_can_be_rebuilt_without_the_weights_it_started_from(
    tmp_path: Path, state: State
) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["recipe"]["backbone"]["weights"] = "gone.pth"
    (folder / "config.json").write_text(json.dumps(config))
    method, _ = load_described(folder)
    assert method.backbone.net.state_dict().keys() >= {"conv1.weight"}


def test_public_weights_offline_fail_soon_and_name_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"public weights.*`backbone.weights=FILE`"):
        create_backbone("resnet18", pretrained=True)
    assert "cannot be reached" in refused(f"hf-hub:lab/model@{'a' * 40}")
    assert time.monotonic() - began < 6
    assert not constants.HF_HUB_OFFLINE

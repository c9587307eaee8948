"""Stages on stored features end as those on the same images, and others are refused."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from ltbench import get_recipe, run
from ltbench.data.features import FeatureSplit
from ltbench.errors import UserError
from ltbench.models.backbone import create_backbone
from ltbench.train import features
from ltbench.train.features import check_features, weights_hash
from tests.train.conftest import same, weights

pytestmark = pytest.mark.usefixtures("no_picture")

SMALL = "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}"
WORDS = [
    SMALL,
    "data.image_size=8",
    "data.val_fraction=0.2",
    "stages.0.epochs=1",
    "stages.0.update=plain",
    "stages.0.schedule.warmup=0",
    "stages.1.epochs=2",
    "stages.1.frozen_bn=eval",
    "run.device=cpu",
    "run.threads=1",
]


def end(out: Path, kind: str, *words: str) -> dict:
    run(get_recipe("quickstart", *WORDS, f"stages.1.features={kind}", *words, f"out={out}"))
    return weights(out)


@pytest.mark.parametrize(
    "method",
    [
        "crt",
        "lws",
        "{name: mislas, smooth_head: 0.3, smooth_tail: 0.0}",
        "disalign",
        "logit_adjustment",
        "plot_stage2",
        "ldam_drw",
        "gcl_stage2",
    ],
)
def test_stored_features_train_as_the_images_do(method, tmp_path):
    words = [f"stages.1.method={method}", "stages.1.freeze=[backbone]"]
    words += ["stages.1.method.mix=labels"] if method == "gcl_stage2" else []
    words += ["stages.1.method.reweight_from=1"] if method == "ldam_drw" else []
    if method in ("lws", "disalign"):
        words[1] = "stages.1.freeze=[backbone, head.head]"
    images = end(tmp_path / "images", "centre", *words)
    assert same(end(tmp_path / "stored", "cached", *words), images)
    columns = [
        (tmp_path / name / "curves.csv").read_text().split("\n")[0].split(",")
        for name in ("images", "stored")
    ]
    rows = [
        [line.split(",") for line in (tmp_path / name / "curves.csv").read_text().split()[1:]]
        for name in ("images", "stored")
    ]
    speed = columns[0].index("images_per_second")
    assert [r[:speed] + r[speed + 1 :] for r in rows[0]] == [
        r[:speed] + r[speed + 1 :] for r in rows[1]
    ]
    assert any("val" in column for column in columns[0])


@pytest.mark.parametrize(
    "update",
    [
        "{name: plot, part: head, rho: 1.0e-4, collapse_weight: 0.01}",
        "{name: plot, mode: official, part: head, solver: {name: cagrad}}",
        "{name: sam, rho: 0.1}",
    ],
)
def test_updates_of_the_classifier_take_stored_features(update, tmp_path):
    words = [f"stages.1.update={update}", "stages.1.micro_batch=32"]
    images = end(tmp_path / "images", "centre", *words)
    assert same(end(tmp_path / "stored", "cached", *words), images)


def test_the_first_view_of_a_pipeline_without_augmentation_is_the_stored_one(tmp_path):
    words = ["data.augment=none"]
    images = end(tmp_path / "images", "augmented", *words)
    assert same(end(tmp_path / "stored", "cached", *words), images)


def test_features_are_kept_and_read_by_a_resumed_run_and_by_others(tmp_path, monkeypatch):
    computed = []
    plain = features.StoredFeatures._computed

    def counted(self, split):
        computed.append(len(split))
        return plain(self, split)

    monkeypatch.setattr(features.StoredFeatures, "_computed", counted)
    one = end(tmp_path / "one", "cached")
    kept = sorted(p.name for p in (tmp_path / "one" / "features").iterdir())
    assert [name.partition("-")[0] for name in kept] == ["train", "train", "val", "val"]
    assert len(computed) == 2
    again = shutil.copytree(tmp_path / "one", tmp_path / "again")
    (again / "record.json").unlink()
    (again / "model.safetensors").unlink()
    last = max(p for p in (again / "checkpoints").iterdir() if p.name.startswith("s2"))
    shutil.rmtree(last)  # from inside the stage
    assert same(end(again, "cached"), one)
    assert len(computed) == 2
    folder = [f"run.feature_folder={tmp_path / 'shared'}"]
    assert same(end(tmp_path / "two", "cached", *folder), one)
    assert same(end(tmp_path / "three", "cached", *folder), one)
    assert len(computed) == 4
    digests = [
        json.loads((tmp_path / name / "record.json").read_text())["recipe"]["digest"]
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
    other = end(tmp_path / "other", "cached", *folder, "seed=1")
    assert not same(other, one)
    assert len(computed) == 6


def test_damaged_features_are_computed_again(tmp_path):
    folder = [f"run.feature_folder={tmp_path / 'shared'}"]
    one = end(tmp_path / "one", "cached", *folder)
    (path,) = (tmp_path / "shared").glob("train-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="stored features are computed again"):
        assert same(end(tmp_path / "two", "cached", *folder), one)


def test_two_ranks_train_what_one_trains(tmp_path, command):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    given = ["run", "recipe=quickstart", *WORDS, "stages.1.features=cached", "stages.0.method=ce"]
    started = [
        command(
            *given,
            "stages.0.micro_batch=32",
            f"out={tmp_path / 'two'}",
            env={**env, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]
    for process in started:
        _, error = process.communicate()
        assert process.returncode == 0, error[-3000:]
    one = end(tmp_path / "parts", "cached", "stages.0.method=ce", "stages.0.micro_batch=32")
    two = weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.1.frozen_bn=train"], "set `stages.1.frozen_bn=eval`"),
        (["stages.1.frozen_bn={backbone: eval, backbone.net.layer3: train}"], "frozen_bn=eval"),
        (["stages.1.freeze=[layer3]"], "needs a frozen backbone, found layer3 frozen"),
        (["stages.0.features=cached"], "method mixup changes or mixes the images of a step"),
        (["stages.1.method=bbn"], "method bbn "),
        (["stages.1.method=gcl_stage2"], "changes or mixes"),
    ],
)
def test_other_stages_are_refused_before_the_first_step(words, said, tmp_path):
    given = [*WORDS[:-3], "run.device=cpu", "stages.1.features=cached", *words]
    given += [] if any("frozen_bn" in word for word in words) else ["stages.1.frozen_bn=eval"]
    with pytest.raises(UserError, match=r"`stages.\d.features`: cached") as caught:
        run(get_recipe("quickstart", *given, f"out={tmp_path / 'run'}"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_frozen_statistics_of_the_run_and_by_part_will_do():
    for words in (
        ["run.batchnorm=frozen", "stages.1.frozen_bn=train"],
        ["stages.1.frozen_bn={backbone: eval}"],
        ["stages.1.frozen_bn={backbone: eval, head: train}"],
    ):
        check_features(get_recipe("quickstart", "stages.1.features=cached", *words))


def test_a_stage_that_does_not_train_has_no_features():
    with pytest.raises(UserError, match=r"`stages.1.features`: method `tau_norm` does not train"):
        get_recipe("tau_norm_cifar10", "stages.1.features=cached")


def test_random_layers_are_refused(tmp_path):
    words = ["backbone={name: test_efficientnet, args: {drop_rate: 0.5}}", "data.image_size=32"]
    words += ["stages.0.method=ce", "stages.1.features=cached", *WORDS[2:], "run.max_steps=1"]
    with pytest.raises(UserError, match="without random layers") as caught:
        run(get_recipe("quickstart", *words, f"out={tmp_path / 'run'}"))
    assert "\n" not in str(caught.value)


def test_the_hash_is_of_names_and_values():
    net = create_backbone("resnet20_cifar")
    before = weights_hash(net)
    assert weights_hash(net) == before
    with torch.no_grad():
        net.net.bn1.running_mean[3] += 1e-3
    assert weights_hash(net) != before


def test_a_split_of_features():
    split = FeatureSplit(torch.arange(6.0).view(3, 2), np.array([0, 1, 1]))
    one, two = split.load(np.array([2, 0]), key=5, positions=np.arange(2), views=2)
    assert one.shape == (2, 2, 1, 1)
    assert torch.equal(one.flatten(1), torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    assert torch.equal(one, two)
    assert len(split.fingerprint()) == 64
    net = create_backbone("resnet20_cifar")
    with net.given_features():
        assert torch.equal(net(one), one.flatten(1))
        with pytest.raises(UserError, match="needs the feature maps"):
            net.maps(one)

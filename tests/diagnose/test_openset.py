from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_curve

from ltbench.config.validation import build_options
from ltbench.diagnose.openset import Openset, Scored, class_prototypes, f_at, open_set_tables
from ltbench.diagnose.predictions import classify
from ltbench.diagnose.scores import accepted, auroc, fpr_at
from ltbench.diagnose.unknown import as_own, files_of, source_of
from ltbench.errors import UserError


def test_separable_and_equal_scores():
    low, high, same = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5]), np.full(4, 0.7)
    assert auroc(high, low) == 1.0
    assert fpr_at(high, low) == 0.0
    assert auroc(low, high) == 0.0
    assert fpr_at(low, high) == 1.0
    assert auroc(same, same) == 0.5
    assert fpr_at(same, same) == 1.0


@pytest.mark.parametrize("decimals", [1, 6])  # with many ties, and with none
def test_scores_by_pairs_and_against_scikit_learn(decimals):
    rng = np.random.default_rng(decimals)
    known = np.round(rng.normal(0.7, 1, 307), decimals)
    unknown = np.round(rng.normal(0, 1, 211), decimals)
    y = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    scores = np.r_[known, unknown]
    pairs = (known[:, None] > unknown) + (known[:, None] == unknown) / 2
    assert auroc(known, unknown) == pytest.approx(pairs.mean(), abs=1e-12)
    fpr, tpr, thresholds = roc_curve(y, scores, drop_intermediate=False)
    first = int((tpr >= 0.95).argmax())
    assert fpr_at(known, unknown) == pytest.approx(fpr[first], abs=1e-12)
    assert np.allclose(accepted(known, thresholds), tpr)
    assert np.allclose(accepted(unknown, thresholds), fpr)


def test_scores_that_cannot_be_compared():
    with pytest.raises(ValueError, match="both sides"):
        auroc(np.array([]), np.array([1.0]))
    with pytest.raises(ValueError, match="finite"):
        fpr_at(np.array([np.nan]), np.array([1.0]))


def scored(softmax, predicted, labels) -> Scored:
    values, classes = np.array(softmax, dtype=float), np.array(predicted)
    names = ("softmax", "energy", "cosine")
    return Scored(dict.fromkeys(names, values), dict.fromkeys(names, classes), np.array(labels))


KNOWN = scored([0.9, 0.8, 0.3, 0.05], [0, 1, 0, 1], [0, 1, 1, 1])
UNSEEN = scored([0.85, 0.02], [0, 1], [0, 0])


def test_f_measure_by_hand():
    # At 0.1: right 2, wrong 1 (and one rejected), one unknown accepted.
    assert f_at(KNOWN, UNSEEN, "softmax", 0.1, True) == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert f_at(KNOWN, UNSEEN, "softmax", 0.1, False) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # What scores as much as the threshold is accepted.
    assert f_at(KNOWN, UNSEEN, "softmax", 0.9, True) == pytest.approx(2 / (2 + 3))
    assert f_at(KNOWN, UNSEEN, "softmax", 0.95, True) == 0


@pytest.mark.parametrize(
    ("name", "wrong"), [("open_f_oltr", True), ("open_f_rejected_not_fp", False)]
)
def test_f_measure_of_the_public_codes(vector, name, wrong):
    v = vector(name)
    predicted, label = np.array(v["inputs"]["pred"]), np.array(v["inputs"]["label"])
    seen = label != -1
    sides = [
        scored(np.where(predicted[s] == -1, 0.05, 0.9), np.maximum(predicted[s], 0), label[s])
        for s in (seen, ~seen)
    ]
    found = f_at(*sides, "softmax", 0.1, wrong)
    assert found == pytest.approx(v["expected"], abs=v["tolerance"])


def test_tables_by_hand():
    tables = open_set_tables(KNOWN, UNSEEN, {"many": [0], "few": [1]}, 0.1)
    table = tables["separation"].set_index(["score", "group"])
    assert table.loc[("softmax", "overall"), "auroc"] == pytest.approx(5 / 8)
    assert table.loc[("softmax", "many"), "auroc"] == 1
    assert table.loc[("softmax", "few"), "auroc"] == pytest.approx(3 / 6)
    measures = tables["f_measure"].set_index(["score", "definition", "kind"])
    published = measures.loc[("softmax", "oltr", "as published")]
    assert published["f"] == pytest.approx(4 / 7)
    assert published["known_accepted"] == 0.75
    assert published["unknown_accepted"] == 0.5
    best = measures.loc[("softmax", "oltr", "best here"), "f"]
    assert best == tables["curve"].query("score == 'softmax'")["oltr"].max()
    shares = tables["histogram"].groupby(["score", "images_of"])["share"].sum()
    assert np.allclose(shares, 1)
    roc = tables["roc"].query("score == 'softmax'")
    assert roc["known_accepted"].iloc[[0, -1]].tolist() == [1, 0]


def test_images_of_a_folder_or_a_list(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a b 2.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    assert files_of(str(tmp_path)).paths == ["b.png", "deep/a b 2.png"]
    (tmp_path / "list.txt").write_text("b.png\n\ndeep/a b 2.png -1\n")
    assert files_of(str(tmp_path / "list.txt")).paths == ["b.png", "deep/a b 2.png"]
    with pytest.raises(UserError, match="there is no"):
        files_of(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="neither a folder nor a text file"):
        files_of(str(tmp_path / "b.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        files_of(str(tmp_path / "empty"))


def test_own_images_come_back_as_they_were(subject):
    own = subject.data.test
    index = np.array([5, 2, 11])
    split, order = as_own(subject, source_of(own), index)
    here = split.load(order, key=None, positions=order)[0]
    assert torch.equal(here, own.load(index, key=None, positions=index)[0])


def test_images_of_another_shape_are_cut_to_the_middle(subject, tmp_path):
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 200  # the central square
    Image.fromarray(picture).save(tmp_path / "wide.png")
    split, _ = as_own(subject, files_of(str(tmp_path)), np.array([0]))
    assert split.images.shape == (1, 8, 8, 3)
    assert (split.images == 200).all()


def test_a_model_of_image_files_gets_them_through_its_own_transform(subject, tmp_path):
    for part, number in (("train", 2), ("test", 1)):
        for k in ("a", "b"):
            (tmp_path / part / k).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (12, 9), (40 * i, 99, 7)).save(tmp_path / part / k / f"{i}.png")
    options = {"root": str(tmp_path), "image_size": 8}
    choice = replace(
        subject.recipe.data, name="folder", config=build_options("DATASETS", "folder", options)
    )
    data = choice.config.load()
    other = replace(subject, recipe=subject.recipe.model_copy(update={"data": choice}), data=data)
    split, order = as_own(other, source_of(subject.data.test), np.array([4, 1]))
    view = split.finish(split.load(order, key=None, positions=order), key=None, positions=order)[0]
    assert view.shape == (2, 3, 8, 8)
    assert torch.isfinite(view).all()
    again, order = as_own(other, source_of(data.test), np.array([0]))
    ours = again.finish(again.load(order, key=None, positions=order), key=None, positions=order)[0]
    theirs = data.test.finish(
        data.test.load(order, key=None, positions=order), key=None, positions=order
    )[0]
    assert torch.equal(ours, theirs)


def test_prototypes_are_mean_features(subject):
    split = subject.data.train
    k = int(np.argmin(subject.data.info.class_counts))
    index = np.flatnonzero(split.labels == k)
    images = split.load(index, key=None, positions=index)[0]
    _, features = classify(subject, images)
    found = class_prototypes(subject, images=10**6)[k]
    assert torch.allclose(found, features.double().mean(dim=0), atol=1e-5)


def test_measured_and_drawn(subject, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    diagnostic = Openset(Openset.Options(unknown=str(tmp_path), images=5, prototype_images=4))
    tables = diagnostic.measure(subject)
    assert (tables["separation"]["unknown"] == 5).all()
    again = diagnostic.measure(subject)
    assert all(tables[name].equals(again[name]) for name in tables)
    figures = diagnostic.draw({"a": tables, "b": tables})
    assert set(figures) == {"scores", "f_measure", "roc"}
    assert len(figures["scores"].axes) == 6


def test_mistakes_are_one_line(subject):
    with pytest.raises(UserError, match="openset needs images of unknown classes"):
        Openset(Openset.Options()).measure(subject)
    with pytest.raises(UserError, match="has the classes that ce was trained on"):
        Openset(Openset.Options(dataset="digits_lt")).measure(subject)
    with pytest.raises(ValueError, match="not both"):
        Openset.Options(unknown="a", dataset="b")

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltbench.diagnose.base import Subject
from ltbench.diagnose.cca import Cca, compare
from ltbench.diagnose.features import sample, spread_classes, thirds
from ltbench.diagnose.similarity import (
    canonical_correlations,
    channel_similarity,
    linear_cka,
    main_directions,
    principal_scores,
    rotation,
    svcca,
)
from ltbench.diagnose.tsne import Tsne, embed, neighbour_accuracy
from ltbench.errors import UserError

RNG = np.random.default_rng


def test_identical_and_rotated_representations_are_alike():
    x = RNG(0).normal(size=(60, 8)) * np.arange(1, 9) + 3
    turned = x @ rotation(8, RNG(1)) - 5
    for other in (x, turned, 2 * x):
        np.testing.assert_allclose(canonical_correlations(x, other), 1)
        assert svcca(x, other) == pytest.approx(1)
        assert linear_cka(x, other) == pytest.approx(1)
    mixed = x @ RNG(2).normal(size=(8, 8))
    np.testing.assert_allclose(canonical_correlations(x, mixed), 1, err_msg="any linear map")
    assert linear_cka(x, mixed) < 0.999, "CKA knows scale"


def test_a_known_correlation_is_found():
    """Two variables that share a part, and one that does not vary."""
    rng = RNG(0)
    basis = rng.normal(size=(200, 3))
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    x = np.stack([basis[:, 0], np.ones(200)], axis=1)
    y = (0.6 * basis[:, 0] + 0.8 * basis[:, 1])[:, None]
    np.testing.assert_allclose(canonical_correlations(x, y), [0.6], atol=1e-12)
    assert linear_cka(x, y) == pytest.approx(0.36)


def test_independent_gaussians_have_the_value_of_small_samples():
    """The squared correlations of independent Gaussians sum to P Q / (N - 1) on average."""
    rng, n, p, q = RNG(0), 60, 6, 4
    sums = [
        (canonical_correlations(rng.normal(size=(n, p)), rng.normal(size=(n, q))) ** 2).sum()
        for _ in range(400)
    ]
    assert np.mean(sums) == pytest.approx(p * q / (n - 1), rel=0.05)
    assert svcca(rng.normal(size=(20000, p)), rng.normal(size=(20000, q))) < 0.03
    assert linear_cka(rng.normal(size=(20000, p)), rng.normal(size=(20000, q))) < 0.01


def test_order_of_observations_and_of_variables_does_not_matter():
    x, y = RNG(0).normal(size=(2, 40, 5))
    y = y + x @ RNG(1).normal(size=(5, 5))
    rows, columns = RNG(2).permutation(40), RNG(3).permutation(5)
    for measure in (svcca, linear_cka):
        assert measure(x[rows], y[rows]) == pytest.approx(measure(x, y))
        assert measure(x[:, columns], y) == pytest.approx(measure(x, y))
        assert measure(y, x) == pytest.approx(measure(x, y))
    with pytest.raises(ValueError, match="as many rows"):
        svcca(x, y[:39])
    assert svcca(x, np.ones((40, 3))) == linear_cka(x, np.ones((40, 3))) == 0


def test_svcca_keeps_the_directions_with_most_variance():
    basis = RNG(0).normal(size=(50, 4))
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    x = basis * np.sqrt([90, 8, 1.5, 0.5])
    assert main_directions(x, 0.9).shape == (50, 1)
    assert main_directions(x, 0.99).shape == (50, 3)
    assert main_directions(x, 1.0).shape == (50, 4)
    np.testing.assert_allclose(principal_scores(x).std(axis=0), x.std(axis=0))


def test_channels_pair_what_has_no_pairs():
    """Images that vary along the same channels are alike in any order, others are not."""
    rng, size = RNG(0), 40
    span = rng.normal(size=(5, size))
    same = rng.normal(size=(300, 5)) @ span
    more = rng.normal(size=(280, 5)) @ rng.normal(size=(5, 5)) @ span
    found = channel_similarity(same + 7, more - 2, variance=1.0)
    assert found["svcca"] == pytest.approx(1)
    assert found["first"] == found["second"] == 5
    shuffled = channel_similarity(same, more[rng.permutation(280)], variance=1.0)
    assert shuffled["cka"] == pytest.approx(found["cka"])
    first, second = np.zeros((300, size)), np.zeros((300, size))
    first[:, :4] = rng.normal(size=(300, 4))
    second[:, 20:24] = rng.normal(size=(300, 4))
    apart = channel_similarity(first, second)
    assert apart["svcca"] < 0.15
    assert apart["cka"] < 0.05


def test_rotations_are_orthogonal():
    turn = rotation(7, RNG(0))
    np.testing.assert_allclose(turn @ turn.T, np.eye(7), atol=1e-12)


def test_cca_of_models(subject: Subject):
    method, noise = copy.deepcopy(subject.method), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(torch.randn(p.shape, generator=noise) * p.std(correction=0))
    one, other = subject, replace(subject, name="other", method=method)
    measured = {s.name: Cca(Cca.Options(images=60)).measure(s) for s in (one, other)}
    again = Cca(Cca.Options(images=60)).measure(one)
    assert all(again[name].equals(measured["ce"][name]) for name in again)
    table = measured["ce"]["similarity"].set_index("measure")
    assert list(table.index) == ["svcca", "cka"]
    assert (table["head_images"] == 60).all()
    assert (table[["head_tail", "chance", "head_head"]] <= 1).all(axis=None)
    assert (table["again_images"] == 60).all()
    assert (table["head_head"] > table["chance"]).all()
    found = compare(measured | {"same": again})["values"]["cka"]["all"]
    assert found[0, 2] == pytest.approx(1)
    assert 0 < found[0, 1] < 1
    figures = Cca(Cca.Options()).draw(measured)
    assert set(figures) == {"head_tail", "models"}
    assert set(Cca(Cca.Options()).draw({"one": again})) == {"head_tail"}
    most = Cca(Cca.Options(images=300)).measure(one)["similarity"]
    assert (most[["head_images", "again_images"]] == 90).all(axis=None)  # the head has 180
    fewer = Cca(Cca.Options(images=50)).measure(one)
    assert set(Cca(Cca.Options()).draw({"a": again, "b": fewer})) == {"head_tail"}


def test_samples_are_balanced_nested_and_the_same_for_all():
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    chosen = sample(labels, [0, 1, 2], each=5)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 3]
    assert np.bincount(labels[sample(labels, [0, 1, 2], total=12)]).tolist() in (
        [5, 4, 3],
        [4, 5, 3],
    )
    assert len(sample(labels, [0, 1, 2], total=2)) == 2
    assert set(sample(labels, [0], each=5)) <= set(sample(labels, [0], each=9))
    assert not np.array_equal(sample(labels, [0], each=5), sample(labels, [0], each=5, seed=1))
    assert len(sample(labels, [7], each=5)) == 0
    assert spread_classes([5, 50, 20, 1], 3) == [1, 0, 3]
    assert thirds([5, 50, 20, 1]) == {"head": [1], "middle": [2, 0], "tail": [3]}
    assert thirds([5, 9]) == {"head": [1], "tail": [0]}


def test_separate_clusters_stay_separate():
    labels = np.repeat([0, 1, 2], 25)
    features = RNG(0).normal(size=(75, 30)) + 20 * np.eye(3, 30)[labels]
    points, quality = embed(features, iterations=300)
    again, _ = embed(features, iterations=300)
    np.testing.assert_array_equal(points, again)
    assert points.shape == (75, 2)
    assert quality["trustworthiness"] > 0.8
    assert quality["perplexity"] == pytest.approx(74 / 3)
    assert neighbour_accuracy(points, labels) == neighbour_accuracy(features, labels) == 1
    with pytest.raises(UserError, match="at least 10 images, found 6"):
        embed(features[:6])


def test_nearest_neighbours_by_hand():
    place = np.array([[0.0], [1.0], [2.1], [10.0], [11.0], [12.1]])
    assert neighbour_accuracy(place, np.array([0, 0, 0, 1, 1, 1]), 2) == 1
    assert neighbour_accuracy(place, np.array([0, 0, 1, 1, 1, 1]), 2) == pytest.approx(5 / 6)


def test_tsne_of_models(subject: Subject):
    options = Tsne.Options(images=40, iterations=250)
    tables = Tsne(options).measure(subject)
    assert len(tables["points"]) == 40
    assert tables["points"]["class"].value_counts().eq(4).all()
    quality = tables["quality"].iloc[0]
    assert 0.5 < quality["trustworthiness"] <= 1
    assert quality["images"] == 40
    figure = Tsne(options).draw({"a": tables, "b": tables})["points"]
    assert len(figure.axes) == 2
    assert len(figure.axes[0].collections) == 10
    many = {**tables, "points": tables["points"].assign(**{"class": range(40)})}
    assert len(Tsne(options).draw({"a": many})["points"].axes[0].collections) == 3
    with pytest.raises(UserError, match=r"tsne\.classes: expected numbers in 0\.\.9, found 12"):
        Tsne(Tsne.Options(classes=(0, 12))).measure(subject)

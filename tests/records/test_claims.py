from __future__ import annotations

import numpy as np
import pytest

from ltbench.config.files import get_recipe
from ltbench.data.frozen_lists import PROTOCOLS, RATIOS, read_frozen
from ltbench.data.official import facts
from ltbench.errors import UserError
from ltbench.records import claims
from ltbench.records.store import records


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_counts_of_cifar_are_those_of_the_frozen_lists(name):
    frozen = read_frozen(name)
    for ratio in (1, *RATIOS):
        for profile in ("exp", "step"):
            data = {"name": f"{name}_lt", "imbalance_ratio": ratio, "profile": profile}
            train, test = claims.official_counts(f"{name}_lt", data)
            for protocol in PROTOCOLS:
                labels = frozen.train_labels[frozen.indices(protocol, profile, ratio)]
                assert train == tuple(np.bincount(labels).tolist())
            assert test == tuple(np.bincount(frozen.test_labels).tolist())


@pytest.mark.parametrize("profile", ["exp", "step"])
@pytest.mark.parametrize(("ratio", "held"), [(1, 0), (10, 0.1), (20.5, 0), (100, 0), (20, 0.35)])
def test_the_counts_of_the_digits_are_those_that_are_read(ratio, held, profile):
    words = (
        f"data.imbalance_ratio={ratio}",
        f"data.profile={profile}",
        f"data.val_fraction={held}",
    )
    recipe = get_recipe("quickstart", *words)
    data = recipe.data.config.load()
    found = claims.official_counts("digits_lt", recipe.tree(digest_only=True)["data"])
    assert found == (data.info.class_counts, tuple(np.bincount(data.test.labels).tolist()))


LARGE = ["imagenet_lt", "places_lt", "inat18"]


@pytest.mark.parametrize(
    "name", [*LARGE, "isic_archive_lt", "semi_aves", "semi_fungi", "semi_inat"]
)
def test_the_counts_of_the_large_sets_are_those_of_their_lists(name):
    train, test = claims.official_counts(name, {"name": name})
    parts = facts(name)["parts"]
    assert (sum(train), sum(test)) == (parts["train"]["lines"], parts["test"]["lines"])
    assert len(train) == len(test) == facts(name)["num_classes"]
    assert claims.official_counts(name, {"name": "shards", "imbalance_ratio": 5.0}) == (None, test)


def test_the_counts_of_isic_2019_are_those_of_its_ratio():
    train, test = claims.official_counts(
        "isic2019_lt", {"name": "isic2019_lt", "imbalance_ratio": 500}
    )
    assert (sum(train), test) == (8494, (100,) * 8)
    assert claims.official_counts("isic2019_lt", {"name": "shards"}) == (None, None)


def test_of_other_data_sets_nothing_is_known():
    assert claims.official_counts("folder", {"name": "folder"}) == (None, None)


def test_committed_records_claim_what_follows():
    committed = records()
    for record in committed:
        claims.check_date(record)
        claims.check_derived(record)
        claims.check_counts(record)
        claims.check_others(record, committed)


def test_the_same_images_have_the_same_numbers():
    one = next(r for r in records() if r.dataset.name == "digits_lt")
    for name, what in (("class_counts", "training"), ("total", "test")):
        counts = (*getattr(one.metrics, name)[:-1], getattr(one.metrics, name)[-1] - 1)
        metrics = one.metrics.model_copy(update={name: counts})
        other = one.model_copy(update={"metrics": metrics, "run_id": "0" * 32})
        with pytest.raises(UserError, match=f"the {what} images have the hash of those of run"):
            claims.check_others(other, [one])


def test_of_records_that_exclude_each_other_the_better_then_the_earlier_is_kept():
    one = next(r for r in records() if r.status == "verified")
    later = one.model_copy(update={"date": "2026-12-01", "status": "claimed", "run_id": "1" * 32})
    other = later.model_copy(update={"seed": 7, "date": "2020-01-01", "run_id": "2" * 32})
    gone = other.model_copy(update={"status": "withdrawn", "run_id": "3" * 32, "seed": 8})
    found = [("other", other), ("later", later), ("one", one), ("gone", gone)]
    kept, lines = claims.choose(found)
    assert kept == [one, gone]
    assert sorted(line.split(" ")[0] for line in lines) == ["later", "other"]
    kept, _ = claims.choose([("other", other), ("gone", gone)])
    assert kept == [other, gone]  # a withdrawn record takes nothing from others

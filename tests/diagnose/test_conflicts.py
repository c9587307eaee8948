from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from toy_stages import ready

from ltbench.class_gradients.agreement import agreement, between_groups
from ltbench.data.base import DatasetInfo
from ltbench.diagnose.conflicts import Conflicts, only
from ltbench.diagnose.report import drawing, picture
from ltbench.errors import UserError
from ltbench.methods.base import Batch
from ltbench.moo.conflict import measure
from ltbench.train.step_gradients import StepGradients, spread, step_gradients
from ltbench.updates.base import StepRun


def products(*gradients: list[float], rest: list[float] | None = None) -> np.ndarray:
    table = np.array([*gradients, rest if rest is not None else [0.0] * len(gradients[0])])
    return table @ table.T


def test_orthogonal_gradients_do_not_conflict():
    found = agreement(products([2, 0, 0], [0, 1, 0], [0, 0, 3]))
    assert (found.conflicts, found.dominated, found.pairs) == (0, 0, 3)
    np.testing.assert_array_equal(found.cosine, np.eye(3))
    assert found.mean_norm == pytest.approx(14**0.5 / 3)
    np.testing.assert_allclose(found.with_mean, np.array([2, 1, 3]) / 14**0.5)


def test_opposed_gradients_all_conflict():
    """Corners of a regular simplex: all cosines are -1/3 and the average is nothing."""
    corners = np.eye(4) - 0.25
    found = agreement(products(*corners.tolist()))
    assert found.conflicts == found.pairs == 6
    np.testing.assert_allclose(found.cosine[0, 1:], -1 / 3)
    two = agreement(products([1, 0], [-1, 0]))
    assert (two.conflicts, two.dominated) == (1, 0)  # none is longer than the other


def test_dominated_conflicts_of_three_classes_by_hand():
    """g_0 = (1, 1/3) is against the second class alone; the first is longer, the third not."""
    found = agreement(products([4, 0], [-1, 0], [0, 1]))
    assert (found.conflicts, found.dominated) == (1, 1)
    np.testing.assert_allclose(found.with_mean, np.array([3, -3, 1]) / 10**0.5)
    np.testing.assert_allclose(found.ratio, np.array([4, 1, 1]) / (10**0.5 / 3))
    longer = agreement(products([4, 0], [-1, 0], [0, 2]))
    assert (longer.conflicts, longer.dominated) == (1, 2)  # both are longer
    not_averse = agreement(products([4, 0], [-1, 3], [0, 2]))
    assert (not_averse.conflicts, not_averse.dominated) == (1, 0)  # g_0 helps all


def test_a_zero_gradient_agrees_with_nothing():
    found = agreement(products([1, 0], [0, 0]))
    assert found.conflicts == found.dominated == 0
    assert found.cosine[0, 1] == found.with_mean[1] == 0


def test_it_is_the_solvers_measure():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 5)) * np.array([9, 5, 3, 2, 1, 0.3])[:, None]
    ours, theirs = agreement(products(*gradients.tolist())), measure(gradients @ gradients.T)
    assert (ours.conflicts, ours.dominated) == (theirs.conflicts, theirs.dominated)
    assert ours.conflicts
    np.testing.assert_allclose(ours.cosine, theirs.cosine)
    np.testing.assert_allclose(ours.with_mean, theirs.cosine_with_mean)


def test_classes_known_in_sum_only_count_in_the_average():
    gradients = np.random.default_rng(1).normal(size=(5, 4))
    every = agreement(products(*gradients.tolist()))
    some = agreement(products(*gradients[:3].tolist(), rest=gradients[3:].sum(0).tolist()), 5)
    np.testing.assert_allclose(some.with_mean, every.with_mean[:3])
    np.testing.assert_allclose(some.ratio, every.ratio[:3])
    np.testing.assert_allclose(some.cosine, every.cosine[:3, :3])


def test_cosines_within_and_between_groups():
    upper = np.array([[0, 0.5, -0.1, 0], [0, 0, -0.3, 0.2], [0, 0, 0, 0.6], [0, 0, 0, 0]])
    cosine = upper + upper.T + np.eye(4)
    found = between_groups(cosine, ["few", "few", "many", "many"])
    assert found["few", "few"] == 0.5
    assert found["many", "many"] == 0.6
    assert found["many", "few"] == pytest.approx((-0.1 + 0 - 0.3 + 0.2) / 4)
    assert np.isnan(found["medium", "few"])


def test_a_sample_is_spread_evenly():
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    assert spread(100, 3) == [0, 50, 99]
    assert len(spread(8142, 20)) == 20


def by_hand(method, run, batch, at, part):
    """One class at a time: the gradient of its rows over the batch size."""
    table = []
    for k in sorted(set(batch.labels.tolist())):
        rows = run.loss(batch, at).rows
        loss = rows[batch.labels == k].sum() / len(rows)
        found = torch.autograd.grad(loss, part)
        table.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(table).double()


@pytest.mark.parametrize("cut", [1, 2])
def test_a_look_finds_the_classes_gradients_and_leaves_no_trace(cut):
    method, run = ready("ce", norm=False)
    batch, at, part = toys.batch(), toys.at(), run.part("last")
    parts = [
        Batch((batch.views[0][rows],), batch.labels[rows], rows)
        for rows in torch.arange(24).chunk(cut)
    ]
    table = by_hand(method, run, batch, at, part)
    direction = [torch.randn_like(p) for p in part]
    along = table @ torch.cat([d.flatten() for d in direction]).double()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    for p in part:
        p.grad = torch.ones_like(p)
    state = torch.get_rng_state()
    for mode in ("exact", "fast"):
        found = step_gradients(run, parts, at, part, mode=mode, direction=direction)
        assert found.mode == mode
        assert found.classes.tolist() == [0, 1, 2, 3]
        gram = (table @ table.T).numpy()
        if mode == "exact":  # fast looks at some columns only
            np.testing.assert_allclose(found.products[:4, :4], gram, rtol=1e-4, atol=1e-6)
        assert found.products.sum() == pytest.approx(gram.sum(), rel=1e-4)
        np.testing.assert_allclose(found.along[:4], along.numpy(), rtol=1e-4, atol=1e-8)
    rows = run.loss(batch, at).rows.detach()
    mean = [float(rows[batch.labels == k].mean()) for k in range(4)]
    np.testing.assert_allclose(found.loss, mean, rtol=1e-6)
    assert found.share.sum() == pytest.approx(float(rows.mean()), rel=1e-6)
    assert found.rows.sum() == 24
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())
    assert all((p.grad == 1).all() for p in part)


@pytest.mark.parametrize("name", ["mixup", "paco", "ride", "m2m"])
def test_any_method_can_be_looked_at(name):
    method, run = ready(name)
    at = toys.at()
    method.on_epoch(at)
    batch = method.prepare(toys.dressed(toys.batch(), method), at)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    found = step_gradients(run, [batch], at, run.part("last"), mode="fast")
    assert np.isfinite(found.products).all()
    assert found.share.sum() > 0
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())


def test_a_frozen_part_can_be_differentiated_and_is_frozen_again():
    method, _ = ready("crt")
    flags = [p.requires_grad for p in method.parameters()]
    with only(method, "last") as (run, part):
        assert isinstance(run, StepRun)
        assert {id(p) for p in part} == {id(p) for p in method.backbone.parameters_of("last")}
    assert [p.requires_grad for p in method.parameters()] == flags
    with pytest.raises(UserError, match="no part is called `layer9`"), only(method, "layer9"):
        pass


def test_a_trained_model_is_measured_repeatably_and_left_alone(subject):
    before = {k: v.clone() for k, v in subject.method.state_dict().items()}
    state = torch.get_rng_state()
    options = Conflicts.Options(batches=2, checkpoints=False, parts=("last", "head"))
    first, second = (Conflicts(options).measure(subject) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert not subject.method.training
    assert all(torch.equal(before[k], v) for k, v in subject.method.state_dict().items())
    for name, table in first.items():
        assert table.equals(second[name]), name
    assert first["summary"]["part"].tolist() == ["last", "head"]
    counts = first["conflicts"]
    assert len(counts) == 4
    assert (counts["conflicts"] <= counts["pairs"]).all()
    share = first["classes"].query("part == 'last'")
    assert share["images"].tolist() == sorted(subject.data.info.class_counts, reverse=True)
    # What classes add to the loss of a batch adds up to it where all are in all batches.
    assert share["loss_share"].sum() == pytest.approx(counts["loss"][:2].mean(), rel=0.2)


def test_checkpoints_of_both_stages_are_measured_and_drawn_side_by_side(make_subject):
    crt, ce = make_subject("crt"), make_subject()
    results = {}
    for name, one in (("a <b> $x_", crt), ("plain", ce)):
        results[name] = Conflicts(Conflicts.Options(batches=1)).measure(one)
    states = results["a <b> $x_"]["summary"]["state"].tolist()
    assert states[-1] == "stage 2, epoch 1"
    assert "stage 1, epoch 3" in states
    assert results["plain"]["summary"]["state"].tolist()[-1] == "stage 1, epoch 3"
    with drawing():
        figures = Conflicts(Conflicts.Options()).draw(results)
        assert len(picture("cosines", figures["cosines"]).png) > 5000
    assert set(figures) == {"cosines", "conflicts", "by_class"}


def test_a_method_without_loss_is_measured_at_its_checkpoints(make_subject):
    from dataclasses import replace

    one = make_subject("tau_norm")
    options = Conflicts.Options(batches=1)
    assert Conflicts(options).measure(one)["summary"]["stage"].max() == 0
    with pytest.raises(UserError, match="has no training loss"):
        Conflicts(options).measure(replace(one, folder=None))


def test_of_many_classes_a_sample_is_shown_and_all_are_counted():
    size, rng = 120, np.random.default_rng(0)
    counts = tuple(int(500 * 0.96**k) + 1 for k in range(size))
    info = DatasetInfo("many", counts, tuple(f"class {k}" for k in range(size)))
    subject = SimpleNamespace(
        data=SimpleNamespace(info=info), recipe=SimpleNamespace(shot_rule="strict")
    )
    gradients = rng.normal(size=(size, 30))
    ones = np.ones(size)
    one = StepGradients(
        classes=np.arange(size),
        rows=ones,
        loss=ones,
        share=ones / size,
        correct=ones,
        chosen=np.arange(size),
        products=products(*gradients.tolist()),
        along=None,
        mode="exact",
    )
    diagnostic = Conflicts(Conflicts.Options(classes=15))
    rows = diagnostic._rows(subject, [one])
    assert rows["conflicts"][0]["pairs"] == size * (size - 1) // 2
    assert len(rows["classes"]) == size
    assert len(rows["cosines"]) == 15 * 14 // 2
    assert {r["class_i"] for r in rows["cosines"]} >= {0}
    assert {r["class_j"] for r in rows["cosines"]} >= {size - 1}
    summed = {(r["group_i"], r["group_j"]): r["cosine_of_sums"] for r in rows["groups"]}
    images = np.array(counts)
    a, b = gradients[images > 100].sum(0), gradients[images < 20].sum(0)
    assert summed["many", "few"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

from __future__ import annotations

import pytest
import torch
import toys

from ltbench import losses
from ltbench.config import validation
from ltbench.errors import UserError
from ltbench.losses import balpoe_offsets, balpoe_rows, balpoe_strengths
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.methods.mixup import mix


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def balpoe(**options):
    config = validation.build_options("METHODS", "balpoe", {"branch_at": "layer1", **options})
    return METHODS.get("balpoe")(config, toys.backbone(), toys.INFO)


def test_strengths_are_the_authors(vector):
    v = vector("balpoe_taus")
    least, most = v["params"]["tau_min"], v["params"]["tau_max"]
    for spread in ("uniform", "limits"):
        for experts in v["inputs"]["experts"]:
            found = balpoe_strengths(experts, least, most, spread)
            expected = double(v["expected"][f"{spread}_{experts}"])
            torch.testing.assert_close(found, expected, rtol=v["tolerance"], atol=1e-12)


def test_the_loss_on_mixed_inputs_is_the_authors(vector):
    v = vector("balpoe_mixup_loss")
    inputs, lam = v["inputs"], v["params"]["lam"]
    labels = torch.tensor(inputs["labels"])
    whole = Batch((double(inputs["inputs"]),), labels, labels)
    batch = mix(whole, lam, torch.tensor(inputs["permutation"]))
    mixed, partner = batch.views[0], batch.partner
    assert partner is not None
    torch.testing.assert_close(mixed, double(v["expected"]["mixed_inputs"]))
    logits = torch.einsum("bi,eic->bec", mixed, double(inputs["weight"]))
    torch.testing.assert_close(logits.mean(dim=1), double(v["expected"]["logits"]))
    offsets = balpoe_offsets(inputs["counts"], v["params"]["tau"])
    rows = lam * balpoe_rows(logits, labels, offsets)
    rows = rows + (1 - lam) * balpoe_rows(logits, partner, offsets)
    assert rows.mean().item() == pytest.approx(v["expected"]["loss"], rel=v["tolerance"])


def test_experts_of_the_same_strength_have_the_logit_adjusted_loss():
    """The mean over experts, not the sum: with equal experts the number of them cancels."""
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    offsets = balpoe_offsets(toys.COUNTS, [1.0, 1.0, 1.0])
    found = balpoe_rows(logits[:, None].expand(-1, 3, -1), labels, offsets)
    expected = losses.logit_adjusted_rows(logits, labels, losses.log_prior(toys.COUNTS))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.0, 1.0, 2.0]),
        ({"tau_min": -1.0, "tau_max": 3.0}, [-1.0, 1.0, 3.0]),
        ({"strengths": "uniform", "tau_max": 3.0}, [0.5, 1.5, 2.5]),
        ({"strengths": [0.0, 2.0], "experts": 2}, [0.0, 2.0]),
        ({"experts": 2}, [0.0, 2.0]),
    ],
)
def test_each_expert_has_its_own_prior(options, expected):
    method = balpoe(**options)
    prior = losses.log_prior(toys.COUNTS)
    torch.testing.assert_close(method.offsets, double(expected)[:, None] * prior)
    assert "offsets" not in method.state_dict()


def test_predictions_are_the_plain_mean_and_rows_are_of_first_labels():
    method = balpoe().double()
    batch = toys.batch()
    x = batch.views[0].double()
    whole = Batch((x,), batch.labels, batch.index)
    mixed = method.prepare(whole, toys.at())
    assert 0 < mixed.lam < 1
    assert not torch.equal(mixed.views[0], x)
    out = method.loss(mixed, toys.at())
    assert torch.equal(out.labels, batch.labels)
    assert out.images == len(out.rows) == 24
    method.eval()
    experts = method.expert_logits(x)
    torch.testing.assert_close(method.predict(x), sum(experts.unbind(1)) / 3)


def test_without_mixup_the_batch_stays():
    method = balpoe(alpha=0.0)
    batch = toys.batch()
    assert method.prepare(batch, toys.at()) is batch
    assert torch.isfinite(method.loss(batch, toys.at()).rows).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": [0.0, 1.0]}, "give one for each of 3 experts, found 2"),
        ({"tau_min": 3.0}, "tau_min must be at most tau_max"),
        ({"strengths": "steps"}, "strengths"),
    ],
)
def test_wrong_strengths_are_refused_as_the_recipe_is_read(options, message):
    with pytest.raises(UserError, match=message):
        validation.build_options("METHODS", "balpoe", options)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="experts"):
        balpoe_strengths(0)
    with pytest.raises(ValueError, match="spread"):
        balpoe_strengths(3, spread="steps")  # type: ignore[arg-type]
    assert balpoe_strengths(1).tolist() == [1.0]

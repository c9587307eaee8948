"""NCL and NCL++: losses and gradients of the authors' code, rows, networks."""

from __future__ import annotations

import pytest
import torch
import toys
from torch.nn import functional as F

from ltbench import losses
from ltbench.config import validation
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.models.heads import CosineHead, LinearHead
from ltbench.records.titles import key
from ltbench.updates.base import weighted_sum


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected, tolerance: float) -> None:
    torch.testing.assert_close(found, double(expected), rtol=tolerance, atol=tolerance)


def logits_of(v) -> torch.Tensor:
    """Logits [B, E, C] of a vector, which has them network by network."""
    return double(v["inputs"]["logits"]).transpose(0, 1).contiguous().requires_grad_()


def build(name: str, **options):
    given = validation.build_options("METHODS", name, {**toys.OPTIONS[name], **options})
    return METHODS.get(name)(given, toys.backbone(), toys.INFO)


# Losses ----------------------------------------------------------------------------------------


def test_ncl_loss_and_gradient_vector(vector):
    v = vector("ncl_loss")
    z, labels = logits_of(v), torch.tensor(v["inputs"]["labels"])
    counts = double(v["inputs"]["counts"])
    params = v["params"]
    rows = losses.ncl_rows(
        z, labels, counts.log(), params["N"], params["diversity"], params["diversity_hcm"]
    )
    assert rows.shape == labels.shape
    rows.mean().backward()
    close(rows.detach().mean(), v["expected"]["loss"], v["tolerance"])
    close(z.grad.transpose(0, 1), v["expected"]["gradient"], v["tolerance"])


def test_mutual_distillation_vector(vector):
    v = vector("ncl_nbod")
    z = logits_of(v).detach()
    share = v["params"]["factor"] / (z.shape[1] - 1)
    found = share * losses.mutual_divergences(z).sum(dim=1).mean()
    close(found, v["expected"]["loss"], v["tolerance"])


def test_nclpp_loss_and_gradient_vector(vector):
    v = vector("nclpp_loss")
    z, labels = logits_of(v), torch.tensor(v["inputs"]["labels"])
    params = v["params"]
    rows = losses.nclpp_rows(
        z,
        labels,
        double(v["inputs"]["counts"]).log(),
        params["N"],
        params["copies"],
        params["diversity"],
    )
    assert rows.shape == labels.shape
    rows.mean().backward()
    close(rows.detach().mean(), v["expected"]["loss"], v["tolerance"])
    close(z.grad.transpose(0, 1), v["expected"]["gradient"], v["tolerance"])


def test_hard_classes_are_the_label_and_the_highest_other_logits():
    z = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    mask = losses.hard_classes(z, torch.tensor([3, 0]), 2)
    assert mask.tolist() == [[True, False, False, True], [True, True, False, False]]
    assert losses.hard_classes(z, torch.tensor([2, 1]), 1).nonzero()[:, 1].tolist() == [2, 1]
    assert losses.hard_classes(z, torch.tensor([2, 1]), 4).all()
    for number in (0, 5):
        with pytest.raises(ValueError, match=f"found {number}"):
            losses.hard_classes(z, torch.tensor([2, 1]), number)


def test_hard_classes_come_from_the_raw_logits_of_the_first_network():
    z = torch.zeros(1, 2, 3)
    z[0, 0] = torch.tensor([0.0, 1.0, 2.0])
    z[0, 1] = torch.tensor([0.0, 2.0, 1.0])
    log_counts = torch.tensor([100.0, 50.0, 1.0]).log()  # the prior would choose class 1
    label = torch.tensor([0])
    rows = losses.ncl_rows(z, label, log_counts, 2, diversity=0.0)
    balanced = z[0] + log_counts
    masked = balanced * torch.tensor([1.0, 0.0, 1.0])
    expected = sum(
        F.cross_entropy(one, label.expand(2), reduction="sum") for one in (balanced, masked)
    )
    torch.testing.assert_close(rows[0], expected)


def test_divergences_are_sums_of_kl_divergences():
    torch.manual_seed(0)
    z = torch.randn(5, 4, 6, dtype=torch.float64) * 3
    mask = losses.hard_classes(z[:, 0], torch.zeros(5, dtype=torch.long), 3)
    p = z.softmax(2)
    for chosen in (None, mask):
        found = losses.mutual_divergences(z, chosen)
        for i in range(4):
            expected = torch.zeros(5, dtype=torch.float64)
            for j in range(4):
                if i != j:
                    terms = p[:, j] * (p[:, j].log() - (p[:, i] + 1e-9).log())
                    expected += (terms if chosen is None else terms * chosen).sum(1)
            torch.testing.assert_close(found[:, i], expected)
    assert not losses.mutual_divergences(z[:, :1]).abs().gt(1e-12).any()


def test_probabilities_of_zero_give_finite_losses_and_gradients():
    z = torch.tensor([[[500.0, -500.0, 0.0], [-500.0, 500.0, 0.0]]] * 2).requires_grad_()
    log_counts = torch.tensor([9.0, 3.0, 1.0]).log()
    labels = torch.tensor([2, 2])
    for rows in (
        losses.ncl_rows(z, labels, log_counts, 2),
        losses.nclpp_rows(z, labels, log_counts, 2, copies=2),
    ):
        (gradient,) = torch.autograd.grad(rows.sum(), z)
        assert torch.isfinite(rows).all()
        assert torch.isfinite(gradient).all()


def test_without_copies_nothing_is_distilled_within_a_network():
    torch.manual_seed(0)
    z, labels = torch.randn(6, 2, 5, dtype=torch.float64), torch.arange(6) % 5
    counts = double([50.0, 20.0, 9.0, 3.0, 1.0]).log()
    rows = losses.nclpp_rows(z, labels, counts, 2, copies=1)
    mask = losses.hard_classes(z[:, 0], labels, 2)
    balanced = z + counts
    between = losses.mutual_divergences(balanced) + losses.mutual_divergences(balanced, mask)
    plain = losses.ncl_rows(z, labels, counts, 2, diversity=0.0)
    torch.testing.assert_close(rows, plain + 0.6 * between.sum(1))
    with pytest.raises(ValueError, match="copies"):
        losses.nclpp_rows(z, labels, counts, 2, copies=4)


# Methods ---------------------------------------------------------------------------------------


def test_the_networks_share_nothing_and_see_the_same_images():
    method = build("ncl").eval()
    x = toys.batch().views[0]
    assert method.network_logits(x).shape == (24, 3, 4)
    for chosen in range(3):
        z = method.network_logits(x)[:, chosen]
        names = [n for n, p in method.named_parameters() if p.requires_grad]
        grads = torch.autograd.grad(z.sum(), list(method.parameters()), allow_unused=True)
        used = {n for n, g in zip(names, grads, strict=True) if g is not None and g.any()}
        first = {n for n in names if n.startswith("backbone.")}
        other = [{n for n in names if n.startswith(f"branches.copies.{e}.")} for e in (0, 1)]
        heads = [{n for n in names if n.startswith(f"head.experts.{e}.")} for e in range(3)]
        assert used == [first, *other][chosen] | heads[chosen]
        assert len(other[0]) == len(first)


def test_rows_of_ncl_are_one_per_image_and_of_ncl_plus_plus_one_per_copy():
    method = build("nclpp", copies=3).double()
    assert method.views == 3
    batch = toys.dressed(toys.batch(), method)
    views = tuple(view.double() for view in batch.views)
    out = method.loss(type(batch)(views, batch.labels, batch.index), toys.at())
    assert (len(out.rows), out.images, out.logits.shape) == (72, 24, (24, 4))
    assert torch.equal(out.labels, batch.labels.repeat(3))
    total, divisor = weighted_sum(out)
    torch.testing.assert_close(total / divisor, out.rows.mean())


def test_predictions_are_of_all_networks_or_of_the_first():
    ensemble, single = (build("ncl", prediction=kind).eval() for kind in ("ensemble", "single"))
    single.load_state_dict(ensemble.state_dict())
    x = toys.batch().views[0]
    with torch.no_grad():
        logits = ensemble.network_logits(x)
        torch.testing.assert_close(ensemble.predict(x), logits.mean(dim=1))
        torch.testing.assert_close(single.predict(x), logits[:, 0])
        assert torch.equal(single.export().eval()(x), single.predict(x))


def test_classifiers_are_linear_or_cosines_with_a_bias():
    assert all(isinstance(head, LinearHead) for head in build("ncl").head.experts)
    for head in build("ncl", scale=16.0).head.experts:
        assert isinstance(head, CosineHead)
        assert head.scale == 16.0
        assert torch.equal(head.bias, torch.zeros(4))
    head = CosineHead(3, 2, scale=4.0, bias=True)
    x, b = torch.randn(5, 3), torch.tensor([1.0, -2.0])
    before = head(x)
    with torch.no_grad():
        head.bias.copy_(b)
    torch.testing.assert_close(head(x), before + b)
    assert list(CosineHead(3, 2).state_dict()) == ["weight"]


def test_hard_classes_default_to_a_third_and_cannot_be_more_than_all():
    assert build("ncl", hard=None).hard == 1
    with pytest.raises(UserError, match="hard must be at most the number of classes 4, found 5"):
        build("ncl", hard=5)


def test_titles_of_both_methods_are_told_apart():
    assert [key(METHODS.facts(name).title) for name in ("ncl", "nclpp")] == ["ncl", "nclpp"]

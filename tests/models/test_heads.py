from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltbench import get_recipe
from ltbench.data.base import DatasetInfo
from ltbench.methods.build import build_method
from ltbench.models.heads import CosineHead, LinearHead, NormalizedHead, ScaledHead, ShiftedHead

Vector = Callable[[str], dict[str, Any]]


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, v: dict[str, Any], expected: Any) -> None:
    torch.testing.assert_close(found, double(expected), rtol=v["tolerance"], atol=v["tolerance"])


def scaled_head(v: dict[str, Any]) -> ScaledHead:
    inner = nn.Linear(2, 3).double()
    head = ScaledHead(inner.requires_grad_(False), 3).double()
    with torch.no_grad():
        inner.weight.copy_(double(v["inputs"]["weight"]))
        inner.bias.copy_(double(v["inputs"]["bias"]))
        head.scale.copy_(double(v["inputs"]["scales"]))
    return head


def test_cosine_head_is_the_authors(vector: Vector) -> None:
    v = vector("normed_linear")
    head = CosineHead(2, 3, scale=1.0).double()
    head.weight.data = double(v["inputs"]["weight"])
    close(head(double(v["inputs"]["features"])).detach(), v, v["expected"])


def test_cosine_head_starts_with_unit_columns_and_scales() -> None:
    head = CosineHead(16, 5, scale=30.0)
    assert head.weight.shape == (16, 5)
    torch.testing.assert_close(head.weight.norm(dim=0), torch.ones(5))
    logits = head(3 * head.weight.t())
    torch.testing.assert_close(logits.diagonal(), torch.full((5,), 30.0))


def test_lws_logits(vector: Vector) -> None:
    v = vector("lws_logits")
    close(scaled_head(v)(double(v["inputs"]["features"])).detach(), v, v["expected"])


def test_lws_trains_the_scales_only(vector: Vector) -> None:
    v = vector("lws_gradient")
    head = scaled_head(v)
    logits = head(double(v["inputs"]["features"]))
    F.cross_entropy(logits, torch.tensor(v["inputs"]["labels"])).backward()
    close(head.scale.grad, v, v["expected"])
    assert [n for n, p in head.named_parameters() if p.grad is not None] == ["scale"]


def test_mislas_scale_multiplies_the_whole_output(vector: Vector) -> None:
    v = vector("mislas_lws")
    logits = double(v["inputs"]["logits"])
    before = logits.clone()
    head = ScaledHead(nn.Identity(), 4).double()
    assert torch.equal(head(logits), logits)
    head.scale.data = double(v["inputs"]["learned_norm"])
    close(head(logits).detach(), v, v["expected"])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", ["tau_norm_0.7", "tau_norm_1"])
def test_tau_norm(vector: Vector, name: str) -> None:
    v = vector(name)
    head = NormalizedHead(double(v["inputs"]["weight"]), v["params"]["tau"])
    close(head.weight, v, v["expected"]["weight"])
    close(head(double(v["inputs"]["features"])), v, v["expected"]["logits"])


def test_tau_norm_leaves_a_dead_class_finite() -> None:
    head = NormalizedHead(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), tau=1.0)
    assert torch.equal(head.weight, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_shifted_head_adds_a_stored_offset() -> None:
    inner, offset = LinearHead(4, 3), torch.tensor([1.0, -2.0, 0.5])
    head, x = ShiftedHead(inner, offset), torch.randn(6, 4)
    assert torch.equal(head(x), inner(x) + offset)
    offset.zero_()
    assert torch.equal(head.state_dict()["offset"], torch.tensor([1.0, -2.0, 0.5]))
    assert "offset" not in dict(head.named_parameters())


def test_linear_head_starts_as_in_the_field() -> None:
    head = LinearHead(400, 300)
    assert head.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert 0 < head.bias.abs().max().item() <= 400**-0.5


@pytest.mark.parametrize("name", ["ce_cifar100", "crt_cifar100", "bbn_cifar100"])
def test_a_stage_says_how_its_new_linear_classifier_begins(name):
    counts = tuple(100 for _ in range(100))
    info = DatasetInfo("x", counts, tuple(map(str, range(100))))

    def head(init: str) -> LinearHead:
        recipe = get_recipe(name, *(f"stages.{i}.head_init={init}" for i in range(len(stages))))
        torch.manual_seed(0)
        method = None
        for index in range(len(stages)):
            method = build_method(recipe, index, info, method)
        assert method is not None
        assert isinstance(method.head, LinearHead)
        return method.head

    stages = get_recipe(name).stages
    torchs, ours = head("pytorch"), head("kaiming_normal")
    bound = torchs.in_features**-0.5
    assert float(torchs.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(torchs.bias.detach().abs().max()) <= bound
    spread = float(ours.weight.std() / torchs.weight.std())
    assert spread == pytest.approx(6**0.5, rel=0.05)


def test_a_classifier_that_begins_anew_does_so_as_the_stage_says():
    counts = tuple(100 for _ in range(100))
    info = DatasetInfo("x", counts, tuple(map(str, range(100))))
    for init, spread in (("pytorch", (3 * 64) ** -0.5), ("kaiming_normal", (2 / 64) ** 0.5)):
        words = (f"stages.1.head_init={init}", "stages.1.reset=[head]")
        recipe = get_recipe("mislas_cifar100", *words)
        second = build_method(recipe, 1, info, build_method(recipe, 0, info))
        assert float(second.head.head.weight.detach().std()) == pytest.approx(spread, rel=0.05)


def test_a_classifier_that_goes_on_is_not_drawn_anew():
    info = DatasetInfo("x", (9, 5, 2), ("a", "b", "c"))
    recipe = get_recipe("mislas_cifar10", "stages.1.head_init=pytorch")
    first = build_method(recipe, 0, info)
    weight = first.head.weight.detach().clone()
    second = build_method(recipe, 1, info, first)
    assert torch.equal(second.head.head.weight, weight)


def test_cosines_keep_single_precision_under_autocast():
    torch.manual_seed(0)
    head, features = CosineHead(64, 10, scale=30.0), torch.randn(32, 64)
    exact = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(features)
        assert head(features.bfloat16()).dtype == torch.float32
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)
    whole = torch.compile(head, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whole(features), exact)

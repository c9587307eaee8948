from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from ltbench import losses
from ltbench.errors import UserError

COUNTS = [500, 120, 30, 5]


def tensor(x):
    dtype = torch.int64 if isinstance(np.asarray(x).flat[0], np.integer) else torch.float64
    return torch.tensor(x, dtype=dtype)


def close(actual, expected, tolerance: float) -> None:
    actual = np.asarray(actual.detach() if isinstance(actual, torch.Tensor) else actual)
    expected = np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= tolerance * np.maximum(1, np.abs(expected)))


def problem(seed: int = 0, rows: int = 9, spread: float = 3.0):
    """Logits, labels, class counts, and a numpy view of each."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 4)) * spread
    y = rng.integers(4, size=rows)
    return torch.tensor(z), torch.tensor(y), z, y


def np_log_softmax(z):
    return z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1))[:, None]


def np_ce(z, y):
    return np.array([-np_log_softmax(z)[i, k] for i, k in enumerate(y)])


# Vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ce_mean", "ce_large_logits"])
def test_cross_entropy_vectors(vector, name):
    v = vector(name)
    rows = losses.cross_entropy_rows(tensor(v["inputs"]["logits"]), tensor(v["inputs"]["labels"]))
    close(rows, v["expected"]["per_sample"], v["tolerance"])
    close(rows.mean(), v["expected"]["loss"], v["tolerance"])


def test_cross_entropy_gradient_vector(vector):
    v = vector("ce_gradient")
    z = tensor(v["inputs"]["logits"]).requires_grad_()
    losses.cross_entropy_rows(z, tensor(v["inputs"]["labels"])).mean().backward()
    close(z.grad, v["expected"], v["tolerance"])


def test_mixup_loss_vector(vector):
    v = vector("mixup_loss")
    i = v["inputs"]
    rows = losses.mixup_rows(
        tensor(i["logits"]), tensor(i["labels_a"]), tensor(i["labels_b"]), i["lam"]
    )
    close(rows.mean(), v["expected"], v["tolerance"])


def test_ldam_margins_vector(vector):
    v = vector("ldam_margins")
    margins = losses.ldam_margins(v["inputs"]["counts"], v["params"]["max_m"])
    close(margins, v["expected"], v["tolerance"])


@pytest.mark.parametrize("name", ["drw_weights", "drw_weights_cifar10_ir100"])
def test_deferred_weights_vectors(vector, name):
    v = vector(name)
    weights = losses.effective_number_weights(v["inputs"]["counts"], v["params"]["beta"])
    close(weights, v["expected"], v["tolerance"])
    assert weights.sum().item() == pytest.approx(len(v["inputs"]["counts"]))


@pytest.mark.parametrize("name", ["ldam_loss_phase1", "ldam_loss_phase2"])
def test_ldam_loss_vectors(vector, name):
    v = vector(name)
    i, p = v["inputs"], v["params"]
    labels = tensor(i["labels"])
    criterion = losses.LDAMLoss(i["counts"], p["max_m"], p["s"], reduction="none")
    rows = criterion(p["s"] * tensor(i["cosine"]), labels)
    weight = losses.effective_number_weights(i["counts"], p.get("beta", 0.0))[labels]
    close((weight * rows).sum() / weight.sum(), v["expected"], v["tolerance"])


@pytest.mark.parametrize("name", ["balanced_softmax", "balanced_softmax_equals_la_tau1"])
def test_balanced_softmax_vectors(vector, name):
    v = vector(name)
    z, y = tensor(v["inputs"]["logits"]), tensor(v["inputs"]["labels"])
    counts = v["inputs"]["counts"]
    close(losses.BalancedSoftmaxLoss(counts)(z, y), v["expected"], v["tolerance"])
    close(losses.balanced_softmax_rows(z, y, counts).mean(), v["expected"], v["tolerance"])
    close(losses.LogitAdjustedLoss(counts, tau=1.0)(z, y), v["expected"], v["tolerance"])


@pytest.mark.parametrize("name", ["logit_adjust_loss_tau1", "logit_adjust_loss_tau2"])
def test_logit_adjustment_vectors(vector, name):
    v = vector(name)
    i, tau = v["inputs"], v["params"]["tau"]
    close(losses.logit_adjustment_offset(i["counts"], tau), v["expected"]["offset"], v["tolerance"])
    loss = losses.LogitAdjustedLoss(i["counts"], tau)(tensor(i["logits"]), tensor(i["labels"]))
    close(loss, v["expected"]["loss"], v["tolerance"])


@pytest.mark.parametrize("shape", ["concave", "linear", "convex"])
def test_label_aware_smoothing_vectors(vector, shape):
    v = vector(f"las_smoothing_{shape}")
    p = v["params"]
    found = losses.label_aware_smoothing(v["inputs"]["counts"], p["head"], p["tail"], p["shape"])
    close(found, v["expected"], v["tolerance"])


def test_label_aware_smoothing_loss_vector(vector):
    v = vector("las_loss_concave")
    i, p = v["inputs"], v["params"]
    criterion = losses.LabelAwareSmoothingLoss(i["counts"], p["head"], p["tail"], p["shape"])
    close(criterion(tensor(i["logits"]), tensor(i["labels"])), v["expected"], v["tolerance"])


@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        ("plot_lvc_official", "official"),
        ("plot_lvc_paper_present", "present"),
        ("plot_lvc_paper_K", "all"),
    ],
)
def test_variability_collapse_vectors(vector, name, divisor):
    v = vector(name)
    i = v["inputs"]
    loss, std = losses.variability_collapse(
        tensor(i["losses"]), tensor(i["labels"]), i["K"], divisor
    )
    close(loss, v["expected"], v["tolerance"])
    rows, labels = np.array(i["losses"]), np.array(i["labels"])
    own = [rows[labels == k] for k in range(i["K"])]
    close(std, [x.std(ddof=1) if len(x) > 1 else 0.0 for x in own], 1e-12)


@pytest.mark.parametrize("name", ["plot_class_weights", "plot_class_weights_cifar10_ir200"])
def test_plot_class_weights_vectors(vector, name):
    v = vector(name)
    weights = losses.plot_class_weights(v["inputs"]["counts"], v["params"]["div"])
    close(weights, v["expected"]["weights"], v["tolerance"])
    if "normalised" in v["expected"]:
        close(weights / weights.sum(), v["expected"]["normalised"], v["tolerance"])


# Against formulas written in NumPy -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [1, 9])
def test_rows_agree_with_numpy(seed, rows):
    z, y, nz, ny = problem(seed, rows)
    n = np.array(COUNTS, dtype=np.float64)
    other = (ny + 1) % 4
    mixed = 0.3 * np_ce(nz, ny) + 0.7 * np_ce(nz, other)
    close(losses.mixup_rows(z, y, torch.tensor(other), 0.3), mixed, 1e-12)
    balanced = np.array(
        [
            -math.log(n[k] * math.exp(a[k]) / (n * np.exp(a)).sum())
            for a, k in zip(nz, ny, strict=True)
        ]
    )
    close(losses.balanced_softmax_rows(z, y, COUNTS), balanced, 1e-12)
    offset = np.log((n / n.sum()) ** 1.7 + 1e-12)
    rows_la = losses.LogitAdjustedLoss(COUNTS, 1.7, "none")(z, y)
    close(rows_la, np_ce(nz + offset, ny), 1e-12)
    margins = 0.5 * n**-0.25 / (n**-0.25).max()
    cosine = np.tanh(nz)
    lowered = cosine - margins * np.eye(4)[ny]
    found = losses.LDAMLoss(COUNTS, 0.5, 30.0, "none")(torch.tensor(30 * cosine), y)
    close(found, np_ce(30 * lowered, ny), 1e-12)
    eps = 0.1 + 0.3 * np.sin(np.pi / 2 * (n - n.min()) / (n.max() - n.min()))
    target = (1 - eps[ny])[:, None] * np.eye(4)[ny] + eps[ny][:, None] / 4
    smoothed = -(target * np_log_softmax(nz)).sum(1)
    found = losses.LabelAwareSmoothingLoss(COUNTS, 0.4, 0.1, reduction="none")(z, y)
    close(found, smoothed, 1e-12)


def test_exponential_smoothing_and_its_ends():
    t = (np.array(COUNTS) - 5) / 495
    found = losses.label_aware_smoothing(COUNTS, 0.4, 0.1, "exponential", power=2.5)
    close(found, 0.1 + 0.3 * t**2.5, 1e-12)
    for shape in ("concave", "linear", "convex"):
        ends = losses.label_aware_smoothing(COUNTS, 0.4, 0.1, shape)
        assert [ends[0].item(), ends[3].item()] == pytest.approx([0.4, 0.1])


def test_modules_reduce_rows_and_follow_moves():
    z, y, _, _ = problem()
    for make in (
        lambda **kw: losses.BalancedSoftmaxLoss(COUNTS, **kw),
        lambda **kw: losses.LogitAdjustedLoss(COUNTS, 0.5, **kw),
        lambda **kw: losses.LDAMLoss(COUNTS, **kw),
        lambda **kw: losses.LabelAwareSmoothingLoss(COUNTS, **kw),
    ):
        rows = make(reduction="none")(z, y)
        assert rows.shape == y.shape
        close(make()(z, y), rows.mean().item(), 1e-12)
        assert make().state_dict() == {}  # a function of the counts: nothing to save
        single = make().float()(z.float(), y)
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(rows.mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="reduction"):
        losses.BalancedSoftmaxLoss(COUNTS, reduction="sum")


# Limits --------------------------------------------------------------------------------------


def test_limits_are_cross_entropy():
    z, y, nz, ny = problem(5)
    plain = np_ce(nz, ny)
    same = [7, 7, 7, 7]
    other = torch.tensor((ny + 1) % 4)
    close(losses.balanced_softmax_rows(z, y, same), plain, 1e-12)
    close(losses.LogitAdjustedLoss(same, 2.0, "none")(z, y), plain, 1e-12)
    close(losses.LogitAdjustedLoss(COUNTS, 0.0, "none")(z, y), plain, 1e-12)
    close(losses.LDAMLoss(COUNTS, 0.0, 1.0, "none")(z, y), plain, 1e-12)
    close(losses.mixup_rows(z, y, other, 1.0), plain, 1e-12)
    close(losses.mixup_rows(z, other, y, 0.0), plain, 1e-12)
    close(losses.mixup_rows(z, y, y, 0.3), plain, 1e-12)
    close(losses.LabelAwareSmoothingLoss(COUNTS, 0.0, 0.0, reduction="none")(z, y), plain, 1e-12)
    close(losses.LabelAwareSmoothingLoss(same, 0.4, 0.0, reduction="none")(z, y), plain, 1e-12)


def test_equal_counts_give_equal_statistics():
    same = [7, 7, 7]
    close(losses.effective_number_weights(same, 0.999), [1, 1, 1], 1e-12)
    close(losses.effective_number_weights(COUNTS, 0.0), [1, 1, 1, 1], 1e-12)
    close(losses.ldam_margins(same, 0.5), [0.5] * 3, 1e-12)
    close(losses.plot_class_weights(same, 1.0), [math.log(1.01)] * 3, 1e-12)
    inverse = np.array([1 / n for n in COUNTS])
    near_one = losses.effective_number_weights(COUNTS, 1 - 1e-12)
    close(near_one, 4 * inverse / inverse.sum(), 1e-6)


def test_the_order_of_classes_does_not_matter():
    shuffled = [30, 5, 500, 120]
    place = [COUNTS.index(n) for n in shuffled]
    for f in (
        losses.ldam_margins,
        losses.effective_number_weights,
        losses.logit_adjustment_offset,
        losses.plot_class_weights,
        lambda n: losses.label_aware_smoothing(n, 0.3, 0.1),
    ):
        close(f(shuffled), f(COUNTS)[place].numpy(), 1e-14)
        close(f(torch.tensor(COUNTS)), f(COUNTS).numpy(), 0)  # a tensor is as good as a list


# Numerical safety ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite_with_finite_gradients(dtype):
    big = 6e4  # close to the largest float16
    y = torch.tensor([0, 1, 3])
    start = torch.tensor([[big, -big, 0, 0], [big, -big, big, 0], [0, 0, 0, 0.0]], dtype=dtype)
    counts = [10**6, 1000, 30, 1]
    found = {
        "ce": lambda z: losses.cross_entropy_rows(z, y),
        "mixup": lambda z: losses.mixup_rows(z, y, y.flip(0), 0.4),
        "balanced": lambda z: losses.balanced_softmax_rows(z, y, counts),
        "adjusted": losses_of(losses.LogitAdjustedLoss(counts, 3.0, "none"), y),
        "ldam": losses_of(losses.LDAMLoss(counts, 0.5, 30.0, "none"), y),
        "smoothing": losses_of(losses.LabelAwareSmoothingLoss(counts, reduction="none"), y),
    }
    for name, loss in found.items():
        z = start.clone().requires_grad_()
        rows = loss(z)
        assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        assert torch.isfinite(rows).all(), name
        assert (rows >= 0).all(), name
        rows.sum().backward()
        assert torch.isfinite(z.grad).all(), name
        assert rows[1].item() > big / 4, name  # a large error is a large loss, not a clipped one


def losses_of(module, y):
    return lambda z: module(z, y)


def test_variability_collapse_gradient():
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.random(12), requires_grad=True)
    labels = torch.tensor([0] * 5 + [1] * 4 + [2] * 2 + [3])
    for divisor in ("all", "present", "official"):
        assert torch.autograd.gradcheck(
            lambda r, d=divisor: losses.variability_collapse(r, labels, 6, d)[0], (rows,)
        )
    equal = torch.ones(4, dtype=torch.float64, requires_grad=True)  # no slope where std is zero
    loss, _ = losses.variability_collapse(equal, torch.tensor([0, 0, 1, 2]), 3, "official")
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(equal.grad, torch.zeros(4, dtype=torch.float64))
    for divisor in ("all", "present", "official"):  # nothing to compare, nothing to divide by
        alone, std = losses.variability_collapse(
            torch.tensor([3.0, 4.0]), torch.tensor([0, 1]), 2, divisor
        )
        assert alone.item() == 0
        assert std.tolist() == [0, 0]


def test_variability_collapse_of_large_close_losses_keeps_its_digits():
    rows = torch.tensor([1e6, 1e6 + 1, 1e6 + 2], dtype=torch.float64)
    loss, _ = losses.variability_collapse(rows, torch.zeros(3, dtype=torch.int64), 1)
    assert loss.item() == pytest.approx(1.0, abs=1e-9)


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[5, 0], [5, -1], [], [[5, 5]], [5, float("nan")]])
def test_bad_counts_are_refused_in_one_line(counts):
    with pytest.raises(UserError, match="class_counts") as caught:
        losses.BalancedSoftmaxLoss(counts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.ldam_margins(COUNTS, -0.1),
        lambda: losses.effective_number_weights(COUNTS, 1.0),
        lambda: losses.effective_number_weights(COUNTS, -0.1),
        lambda: losses.logit_adjustment_offset(COUNTS, -1.0),
        lambda: losses.plot_class_weights(COUNTS, 0.0),
        lambda: losses.label_aware_smoothing(COUNTS, 0.1, 0.2),
        lambda: losses.label_aware_smoothing(COUNTS, 1.2, 0.2),
        lambda: losses.label_aware_smoothing(COUNTS, 0.2, 0.1, "exponential"),
        lambda: losses.label_aware_smoothing(COUNTS, 0.2, 0.1, "linear", power=2.0),
        lambda: losses.label_aware_smoothing(COUNTS, 0.2, 0.1, "square"),
        lambda: losses.mixup_rows(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1]), 1.5),
        lambda: losses.ldam_rows(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2), 0.0),
        lambda: losses.variability_collapse(torch.zeros(1), torch.tensor([0]), 1, "none"),
    ],
)
def test_nonsensical_values_are_refused(call):
    with pytest.raises(ValueError, match="`"):
        call()


def test_the_example_of_the_module_runs():
    code = re.search(r"Example::\n\n((?:    .*\n|\n)+)", losses.__doc__).group(1)
    names: dict = {}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    assert names["logits"].grad.shape == (8, 4)
    assert names["rows"].shape == (8,)

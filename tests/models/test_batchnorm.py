from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import toys
from processes import Ranks
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from toy_stages import make_update, stage_of

from ltbench import get_recipe
from ltbench.config.optim import Optim
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.models.batchnorm import (
    PartStatistics,
    SyncBatchNorm2d,
    SyncBatchNormAct2d,
    convert_sync_batchnorm,
    counted_together,
    frozen_statistics,
    running_statistics,
    scale_and_shift,
    set_batchnorm_mode,
)
from ltbench.train.freezing import freeze, set_modes
from ltbench.train.optim import build_optimizer
from ltbench.updates.base import StepRun

SHARES = {"uneven": (6, 2), "one empty": (8, 0)}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        BatchNormAct2d(4, act_layer=nn.PReLU),
        nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=None)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(5, affine=False),
        nn.Linear(5, 3),
    ).double()


def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, 6, 6, generator=g, dtype=torch.float64)
    return 3 + 2 * x, torch.randn(8, 3, generator=g, dtype=torch.float64)


def gradients(net: nn.Module, x: Tensor, targets: Tensor) -> list[list[Tensor]]:
    """Differentiate several objectives on one graph, then run a second batch."""
    rows = ((net(x) - targets) ** 2).sum(1)
    found = []
    for power in (1, 2, 3):
        grads = torch.autograd.grad((rows**power).sum(), list(net.parameters()), retain_graph=True)
        found.append([ranks.all_reduce_(g.contiguous()) for g in grads])
    net(x + 1)
    return found


def on_ranks() -> dict[str, Any]:
    rank, out = ranks.rank(), {}
    for name, (first, _) in SHARES.items():
        x, targets = images()
        own = slice(0, first) if rank == 0 else slice(first, None)
        net = convert_sync_batchnorm(network())
        grads = gradients(net, x[own], targets[own])
        out[name] = (grads, dict(net.state_dict()))
    halves = torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.float64)[2 * rank :][:2]
    layer = SyncBatchNorm2d(1).double()
    layer(halves)
    out["vector"] = (float(layer.running_mean), float(layer.running_var))
    low = SyncBatchNorm2d(1)(halves.bfloat16())
    out["bf16"] = (low.dtype, low.detach().double().flatten().tolist())
    return out


@pytest.fixture(scope="module")
def two_ranks(two_processes: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = two_processes.call(on_ranks)[0]
    return found


@pytest.mark.parametrize("share", SHARES)
def test_two_ranks_are_one_global_batch(two_ranks: dict[str, Any], share: str) -> None:
    net = network()
    expected = gradients(net, *images())
    grads, state = two_ranks[share]
    assert list(state) == list(net.state_dict())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(grads, expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_shift_bn_vector(
    two_ranks: dict[str, Any], vector: Callable[[str], dict[str, Any]]
) -> None:
    v = vector("shift_bn_running_stats")
    layer = nn.BatchNorm1d(1, momentum=v["params"]["momentum"]).double().eval()
    set_batchnorm_mode(nn.Sequential(layer).eval(), "train")
    layer(torch.tensor(v["inputs"]["x"], dtype=torch.float64))
    expected = (v["expected"]["mean"], v["expected"]["var"])
    for found in [(float(layer.running_mean), float(layer.running_var)), two_ranks["vector"]]:
        assert found == pytest.approx(expected, abs=v["tolerance"])


def test_low_precision_keeps_its_type(two_ranks: dict[str, Any]) -> None:
    dtype, values = two_ranks["bf16"]
    assert dtype == torch.bfloat16
    assert values == pytest.approx([-3 / 5**0.5, -1 / 5**0.5], rel=1e-2)


def test_one_rank_is_plain_batch_normalisation() -> None:
    plain, net = network(), convert_sync_batchnorm(network())
    x, _ = images()
    assert torch.equal(net(x), plain(x))
    assert list(net.state_dict()) == list(plain.state_dict())
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_normalisation_with_activation_keeps_it_in_conversion() -> None:
    layer = BatchNormAct2d(4, act_layer=nn.PReLU, drop_layer=nn.Dropout)
    net = convert_sync_batchnorm(nn.Sequential(layer))
    assert type(net[0]) is SyncBatchNormAct2d
    assert net[0].act is layer.act
    assert net[0].drop is layer.drop
    assert net[0].weight is layer.weight
    assert convert_sync_batchnorm(net)[0] is net[0]


def test_conversion_keeps_parameters_modes_and_shared_layers() -> None:
    shared = nn.BatchNorm2d(4).eval()
    net = nn.Sequential(shared, nn.Sequential(shared), nn.BatchNorm2d(4))
    before = dict(net.named_parameters())
    converted = convert_sync_batchnorm(net)
    assert converted is net
    assert all(isinstance(m, SyncBatchNorm2d) for m in (net[0], net[1][0], net[2]))
    assert net[0] is net[1][0]
    assert [net[0].training, net[2].training] == [False, True]
    assert all(p is before[n] for n, p in net.named_parameters())
    assert convert_sync_batchnorm(net)[0] is net[0]


def test_conversion_refuses_layers_it_does_not_know() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match="Odd"):
        convert_sync_batchnorm(nn.Sequential(Odd(3)))


def test_frozen_statistics_are_bitwise_untouched() -> None:
    net, (x, _) = network(), images()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with frozen_statistics(net):
        inside = net(x)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(net(x), inside)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


def test_frozen_statistics_leave_evaluation_alone_and_end_on_errors() -> None:
    net, (x, _) = network().eval(), images()
    expected = net(x)
    with frozen_statistics(net):
        assert torch.equal(net(x), expected)
    with pytest.raises(ValueError, match="expected 4D"), frozen_statistics(net):
        net[1](x[0])
    assert net[1].track_running_stats


def test_batches_counted_together_are_those_of_the_layers() -> None:
    plain, net = network(), network()
    x, _ = images()
    for layers in (plain, net):
        layers[1].eval()
    for _ in range(2):
        plain(x)
    before = [t.clone() for t in net.state_dict().values()]
    with counted_together(net):
        net(x)
        for name, old, new in zip(net.state_dict(), before, net.state_dict().values(), strict=True):
            if "num_batches" in name and not name.startswith("3"):  # it reads its count
                assert torch.equal(old, new)
        with frozen_statistics(net):
            net(x)
    with pytest.raises(RuntimeError), counted_together(net):
        nn.Sequential(net, nn.Linear(1, 1))(x)  # fails after the passes that count
    assert list(net.state_dict()) == list(plain.state_dict())
    for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert net[2].num_batches_tracked == 2


def test_mode_reaches_batch_normalisation_only() -> None:
    fused = BatchNormAct2d(2, act_layer=nn.PReLU, drop_layer=nn.Dropout)
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2), fused)
    set_batchnorm_mode(net, "eval")
    assert [m.training for m in net] == [True, False, False]
    assert fused.drop.training
    scales = [id(p) for p in scale_and_shift(net)]
    assert id(fused.weight) in scales
    assert id(fused.act.weight) not in scales


def test_only_statistics_that_move_are_averaged_over_ranks() -> None:
    net = network()
    assert len(running_statistics(net)) == 8
    net[1].eval()
    assert len(running_statistics(net)) == 6
    net[2].eval()
    assert len(running_statistics(net)) == 4
    assert running_statistics(net.eval()) == []


def test_parts_move_statistics_as_ranks_do() -> None:
    """Also in layers that count batches, or only watch, and if a part comes back in a step."""
    net, (x, _) = network(), images()
    net[3][1].eval()
    shares = (x[:5], x[5:])
    parts = PartStatistics(net)
    for scale in (1, 3):  # two steps
        ranks = [network() for _ in shares]
        for rank, own in zip(ranks, shares, strict=True):
            rank.load_state_dict(net.state_dict())
            rank[3][1].eval()
            rank(own * scale)
            rank(own * scale + 1)
        for shift in (0, 1):
            for part, own in enumerate(shares):
                with parts.of(part):
                    net(own * scale + shift)
        parts.merge()
        for name, found in net.state_dict().items():
            mean = torch.stack([rank.state_dict()[name].double() for rank in ranks]).mean(0)
            torch.testing.assert_close(found.double(), mean, rtol=1e-12, atol=1e-12)
    assert int(net[1].num_batches_tracked) == 4
    assert int(net[3][1].num_batches_tracked) == 0


def method_under(policy: str, name: str = "ce", **stage: Any) -> tuple[Any, StepRun]:
    """A method made ready as the trainer does."""
    method, chosen = toys.method(name), stage_of(name).model_copy(update=stage)
    for p in method.parameters():  # scale and shift are not what they start as
        p.data += 0.1
    frozen = freeze(method, chosen, policy)  # type: ignore[arg-type]
    set_modes(method, chosen, frozen, policy)  # type: ignore[arg-type]
    named = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    return method, StepRun(method, build_optimizer(named, Optim(lr=0.05, momentum=0.9)))


def moved(method: nn.Module, run: StepRun, key: str) -> dict[str, bool]:
    before = {n: t.clone() for n, t in method.state_dict().items()}
    update = make_update(key, method)
    for step in range(2):
        toys.step(update, run, [toys.batch(seed=step)], toys.at(step))
    return {n: not torch.equal(t, before[n]) for n, t in method.state_dict().items()}


def of_norm(name: str) -> bool:
    return name.rpartition(".")[0].endswith(".1")


UPDATES = ["plain", "sam", "focal-sam", "imb-sam", "plot-cagrad", "plot-official"]
UPDATES += ["plot-exact", "plot-certified"]


@pytest.mark.parametrize("key", UPDATES)
@pytest.mark.parametrize("policy", ["local", "frozen", "statistics"])
def test_policies_say_what_of_batch_normalisation_moves(policy: str, key: str) -> None:
    method, run = method_under(policy)
    for name, did in moved(method, run, key).items():
        kind = name.rpartition(".")[2]
        if not of_norm(name):
            assert did, name
        elif kind in ("weight", "bias"):
            assert did == (policy == "local"), name
        else:
            assert did == (policy != "frozen"), name


@pytest.mark.parametrize(
    ("policy", "frozen_bn", "moves"),
    [
        ("local", None, True),  # cRT's own rule
        ("local", "eval", False),
        ("statistics", None, True),
        ("statistics", "eval", False),
        ("frozen", None, False),
        ("frozen", "train", False),
    ],
)
@pytest.mark.parametrize("key", ["plain", "sam", "plot-cagrad"])
def test_policies_and_frozen_parts(
    policy: str, frozen_bn: str | None, moves: bool, key: str
) -> None:
    method, run = method_under(policy, "crt", frozen_bn=frozen_bn)
    for name, did in moved(method, run, key).items():
        statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert did == (name.startswith("head.") or (statistics and moves)), name


def test_a_network_of_normalisation_alone_leaves_nothing_to_train() -> None:
    stage = stage_of("ce").model_copy(update={"freeze": ("head", "stem", "layer1", "layer2")})
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(toys.method("ce"), stage, "statistics")


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(UserError, match=r"run\.batchnorm.*should be 'local', 'sync', 'frozen'"):
        get_recipe("quickstart", "run.batchnorm=global")

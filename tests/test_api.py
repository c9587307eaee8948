from __future__ import annotations

import pytest
import torch

import ltbench
from ltbench.errors import UserError


def test_list_models_puts_ours_before_timms():
    names = ltbench.list_models("resnet*")
    assert names[: names.index("resnet152") + 1].count("resnet32_cifar") == 1
    assert "resnet18" in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_create_model_gives_logits(head):
    model = ltbench.create_model("resnet32_cifar", num_classes=7, head=head).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_create_model_refuses_what_it_does_not_know():
    with pytest.raises(UserError, match="did you mean `resnet32_cifar`"):
        ltbench.create_model("resnet32_cifr", num_classes=7)
    with pytest.raises(UserError, match="linear or cosine"):
        ltbench.create_model("resnet32_cifar", num_classes=7, head="cosin")
    for wrong in (0, -1, 2.5, "7"):
        with pytest.raises(UserError, match="`num_classes`: expected a whole number >= 1"):
            ltbench.create_model("resnet32_cifar", num_classes=wrong)


def test_evaluate_takes_any_module_and_says_when_classes_differ():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    metrics = ltbench.evaluate(module, "digits_lt", device="cpu", imbalance_ratio=10)
    assert sum(metrics.total) == 600
    assert 0 <= metrics.top1 <= 1
    wrong = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    with pytest.raises(UserError, match="10 classes"):
        ltbench.evaluate(wrong, "digits_lt", device="cpu")
    with pytest.raises(UserError, match="unknown dataset"):
        ltbench.evaluate(module, "digit_lt")


def test_plot_step_follows_the_paper_until_epoch_e_and_is_plain_after():
    def train(epoch, **options):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(30, 4).double(), torch.arange(30) % 3

        def rows():
            return torch.nn.functional.cross_entropy(model(x), y, reduction="none")

        step = ltbench.PlotStep(model, optimizer, class_counts=[10, 10, 10], epochs=2, **options)
        log = step(rows, y, epoch=epoch)
        return log, model.weight.detach().clone(), float(rows().mean().detach())

    active, moved, after = train(0)
    assert active["objectives"] == 3
    assert after < float(active["loss"])
    plain, plain_moved, _ = train(2)
    assert "objectives" not in plain
    assert not torch.equal(moved, plain_moved)
    with pytest.raises(UserError, match="from_features"):
        train(0, mode="official")
    with pytest.raises(UserError, match="unknown key"):
        train(0, solvr="mgda")


def test_public_names_are_the_documented_ones():
    for name in ltbench.__all__:
        assert getattr(ltbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        ltbench.nothing  # noqa: B018

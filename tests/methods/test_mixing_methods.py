"""CMO, GLMC and CUDA: what they mix, which images they ask for, and what they remember."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F
from toy_stages import ready

from ltbench import get_recipe
from ltbench.config import validation
from ltbench.data.base import Data
from ltbench.data.memory import MemorySplit
from ltbench.data.samplers import Power
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.losses import (
    cut_box,
    effective_number_weights,
    generalised_weights,
    kept_share,
    trial_counts,
)
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.methods.build import build_backbone
from ltbench.methods.cuda import draw_trials
from ltbench.methods.glmc import mixed
from ltbench.train.feed import Feed
from ltbench.updates.base import weighted_sum

COUNTS = torch.tensor(toys.COUNTS)


def of(name: str, norm: bool = True, **options):
    config, net = validation.build_options("METHODS", name, options), toys.backbone(norm)
    torch.manual_seed(1)
    return METHODS.get(name)(config, net, toys.INFO).double()


def batch(method, n: int = 24) -> Batch:
    """Images whose partners have other classes than they have themselves."""
    found = toys.dressed(toys.batch(n), method)
    double = {
        name: replace(other, views=tuple(v.double() for v in other.views), labels=3 - found.labels)
        for name, other in found.streams.items()
    }
    return replace(found, views=tuple(v.double() for v in found.views), streams=double)


def pasting(method, epoch: int = 4, epochs: int = 9):
    """The first step of an epoch in which patches are pasted, and what became of the batch."""
    for step in range(50):
        at = replace(toys.at(step, epoch), epochs=epochs)
        made = method.prepare(batch(method), at)
        if made.partner is not None and 0.1 < made.lam < 0.9:
            return at, made
    raise AssertionError("no step pastes")


def test_patches_are_pasted_in_half_of_the_steps_of_the_middle_epochs():
    method = of("cmo")
    for epoch, wanted in ((0, 0), (3, 0), (4, 100), (5, 100), (6, 0), (8, 0)):
        at = [replace(toys.at(step, epoch), epochs=9) for step in range(200)]
        found = sum(method.prepare(batch(method, 4), one).partner is not None for one in at)
        assert abs(found - wanted) < 30, epoch
        assert not (wanted == 0 and found)


def test_a_pasted_image_is_background_with_one_box_of_the_other():
    method = of("cmo")
    _, made = pasting(method)
    whole = batch(method)
    other = whole.streams["pasted"]
    changed = (made.views[0] != whole.views[0]).any(1)
    assert torch.equal(changed[0].expand_as(changed), changed)  # the same box in all images
    rows, columns = changed[0].nonzero().unbind(1)
    box = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    inside = torch.zeros_like(changed[0])
    inside[box[0] : box[2], box[1] : box[3]] = True
    assert torch.equal(changed[0], inside)
    assert torch.equal(made.views[0][:, :, inside], other.views[0][:, :, inside])
    assert made.lam == pytest.approx(1 - inside.double().mean().item())
    assert torch.equal(made.partner, other.labels)
    assert torch.equal(made.labels, whole.labels)


@pytest.mark.parametrize("loss", ["bs", "ce_drw", "ldam_drw"])
@pytest.mark.parametrize("epoch", [4, 5])
def test_the_loss_is_the_mean_of_both_criteria_as_in_the_authors_code(loss, epoch):
    """Weighted criteria divide by the weights of their own labels."""
    method = of("cmo", loss=loss, reweight_from=5)
    at, made = pasting(method, epoch)
    logits = method.predict(made.views[0])
    weights = effective_number_weights(toys.COUNTS) if epoch >= 5 and loss != "bs" else None
    margins = 0.5 * (5 / COUNTS.double()) ** 0.25

    def criterion(labels):
        z = logits
        if loss == "bs":
            z = z + (COUNTS.double() / COUNTS.sum()).log()
        if loss == "ldam_drw":
            z = z - 30 * margins * F.one_hot(labels, 4)
        return F.cross_entropy(z, labels, weight=weights)

    wanted = made.lam * criterion(made.labels) + (1 - made.lam) * criterion(made.partner)
    out = method.loss(made, at)
    total, divisor = weighted_sum(out)
    torch.testing.assert_close(total / divisor, wanted)
    assert torch.equal(out.labels, made.labels)
    assert len(out.rows) == out.images == 24
    plain = method.loss(made.unmixed(), at)
    total, divisor = weighted_sum(plain)
    torch.testing.assert_close(total / divisor, criterion(made.labels))


def test_both_loss_and_head_are_those_of_the_method_alone():
    for name, loss, options in (
        ("balanced_softmax", "bs", {}),
        ("ldam_drw", "ldam_drw", {"reweight_from": 0}),
    ):
        alone, wrapped = of(name, **options), of("cmo", loss=loss, **options)
        wrapped.head.load_state_dict(alone.head.state_dict())
        for at in (toys.at(), toys.at(epoch=1)):
            results = []
            for method in (alone, wrapped):
                total, divisor = weighted_sum(method.loss(batch(wrapped), at))
                results.append(total / divisor)
            torch.testing.assert_close(*results)


def shared(sizes: tuple[int, ...], name: str, options: dict) -> list[torch.Tensor]:
    """Mixed images and sums of the loss of some steps, without batch statistics."""
    method = of(name, norm=False, **options)
    whole = batch(method)
    start = sum(sizes[: ranks.rank()])
    own = slice(start, start + sizes[ranks.rank()])

    def cut(part: Batch) -> Batch:
        return replace(
            part, views=tuple(v[own] for v in part.views), labels=part.labels[own], sizes=sizes
        )

    part = replace(cut(whole), streams={k: cut(v) for k, v in whole.streams.items()})
    found = []
    for step in range(6):
        at = replace(toys.at(step, 4), epochs=9)
        made = method.prepare(part, at)
        total, divisor = weighted_sum(method.loss(made, at))
        found += [*(ranks.all_gather(v, sizes) for v in made.views)]
        found.append(ranks.all_reduce_(torch.stack([total.detach(), divisor.double()])))
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [("cmo", {}), ("cmo", {"loss": "ce_drw", "reweight_from": 0}), ("glmc", {})],
)
def test_ranks_paste_and_mix_as_one_process_does(two_processes, name, options):
    wanted = shared((24,), name, options)
    for sizes in ((12, 12), (15, 9)):
        for found in two_processes.call(shared, sizes, name, options):
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


def test_streams_follow_the_options():
    stream = METHODS.get("cmo").streams_for(of("cmo", oversampling=0.5).config)["pasted"]
    assert (stream.sampler, dict(stream.options), stream.views) == ("power", {"exponent": 0.5}, 1)
    stream = METHODS.get("glmc").streams_for(of("glmc", oversampling=0.2).config)["partners"]
    assert (stream.sampler, dict(stream.options), stream.views) == ("power", {"exponent": 0.8}, 2)
    cuda = METHODS.get("cuda")
    assert cuda.streams_for(of("cuda").config) == {}
    assert list(cuda.streams_for(of("cuda", paste=True).config)) == ["pasted"]
    with pytest.raises(UserError, match="less than or equal to 3"):
        of("cmo", oversampling=4)
    for a in (0.0, 3.0):
        assert Power.Config(exponent=1 - a).exponent == 1 - a


def digits(name: str, *words: str):
    recipe = get_recipe(
        f"{name}_cifar100", "data=digits_lt", "data.imbalance_ratio=5", "data.image_size=8",
        "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}", "epochs=2",
        "stages.0.batch_size=128", "run.device=cpu", *words,
    )  # fmt: skip
    return recipe, recipe.data.config.load()


def test_the_feed_gives_a_stream_its_sampler_and_views():
    recipe, data = digits("glmc", "stages.0.method.oversampling=1")
    torch.manual_seed(0)
    method = METHODS.get("glmc")(
        recipe.stages[0].method.config, build_backbone(recipe), data.info, None
    )
    steps = list(Feed(recipe, data, torch.device("cpu")).batches(method, 0, 0))
    partners = [step[0].streams["partners"] for step in steps]
    for (main,), other in zip(steps, partners, strict=True):
        assert len(main.views) == len(other.views) == 2
        assert main.views[0].shape == other.views[0].shape
        assert not torch.equal(other.views[0], other.views[1])
    counts = torch.cat([other.labels for other in partners]).bincount(minlength=10)
    assert counts.max() < 2 * counts.min()  # class-balanced, though the classes differ by 5


def test_loss_of_glmc_is_its_formula():
    method = of("glmc", consistency=3, reweighting=1.2)
    at = replace(toys.at(0, epoch=4), epochs=5)
    made = method.prepare(batch(method), at)
    first, second = (method.backbone(view) for view in made.views)
    weights = generalised_weights(toys.COUNTS, 1.2)
    q = made.lam * F.one_hot(made.labels, 4) + (1 - made.lam) * F.one_hot(made.partner, 4)
    alpha = 1 - (4 / 5) ** 2
    wanted = 0.0
    for features in (first, second):
        for head, share, target in (
            (method.plain, alpha, q),
            (method.head, 1 - alpha, q * weights),
        ):
            wanted = wanted - share * (target * head(features).log_softmax(1)).sum(1).mean()
    g = [method.projection(f) for f in (first, second)]
    h = [method.predictor(one) for one in g]
    for a, b in ((0, 1), (1, 0)):
        wanted = wanted - 3 * F.cosine_similarity(h[a], g[b].detach(), dim=1).mean()
    out = method.loss(made, at)
    total, divisor = weighted_sum(out)
    assert divisor == 24
    torch.testing.assert_close(total / divisor, wanted)
    assert torch.equal(out.labels, made.labels.repeat(2))
    by_hand, by_rows = (
        torch.autograd.grad(loss, list(method.parameters()), retain_graph=True)
        for loss in (wanted, total / divisor)
    )
    for a, b in zip(by_hand, by_rows, strict=True):
        torch.testing.assert_close(a, b)


def test_glmc_mixes_both_views_with_the_same_lambda_and_partners():
    method = of("glmc")
    whole = batch(method)
    partners = whole.streams["partners"]
    made = mixed(whole, partners, 0.4, (3, 5))
    torch.testing.assert_close(made.views[0], 0.4 * whole.views[0] + 0.6 * partners.views[0])
    top, left, bottom, right = cut_box(8, 8, 0.4, (3, 5), "up")
    cut = made.views[1][:, :, top:bottom, left:right]
    assert torch.equal(cut, partners.views[1][:, :, top:bottom, left:right])
    assert made.lam == 0.4 != kept_share((top, left, bottom, right), 8, 8)
    lams = [method.prepare(whole, toys.at(step)).lam for step in range(200)]
    assert 0.4 < np.mean(lams) < 0.6
    assert min(lams) < 0.05
    assert max(lams) > 0.95


def test_the_wide_network_is_sixteen_times_the_usual_one():
    sizes = [
        sum(p.numel() for p in build_backbone(get_recipe(name)).parameters())
        for name in ("glmc_cifar100", "glmc_cifar100_wide")
    ]
    assert 15 < sizes[1] / sizes[0] < 17
    assert 7.3e6 < sizes[1] < 7.4e6


@pytest.mark.parametrize("name", ["cmo", "glmc"])
def test_micro_batches_have_one_box(name):
    method = of(
        name, **({"probability": 1.0, "start": 0, "stop_before": 0} if name == "cmo" else {})
    )
    whole = batch(method)
    lams = {method.prepare(whole, replace(toys.at(2), micro=micro)).lam for micro in range(3)}
    assert len(lams) == 1


class Images:
    """Training images of which a model knows some classes up to a strength."""

    def __init__(self) -> None:
        self.labels = np.repeat(np.arange(4), toys.COUNTS)
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []

    def augmented(self, indices, strengths):
        self.asked.append((indices, strengths))
        for rows in np.array_split(np.arange(len(indices)), 3):
            labels = torch.from_numpy(self.labels[indices[rows]])
            x = torch.from_numpy(strengths[rows]).double()[:, None] + 100 * labels[:, None]
            yield Batch(
                (x,), labels, labels, extra={"strengths": torch.from_numpy(strengths[rows])}
            )


def knowing(limits: list[int], **options):
    """CUDA on a model that is right about class k up to strength ``limits[k]``."""
    method = of("cuda", **options)

    def predict(x):
        label, strength = (x[:, 0] // 100).long(), x[:, 0] % 100
        right = strength <= torch.tensor(limits)[label]
        return F.one_hot(torch.where(right, label, 3 - label), 4)

    method.predict = predict
    return method


def test_levels_rise_to_what_the_model_knows_and_swing_there():
    method, seen = knowing([-1, 0, 3, 99]), []
    for epoch in range(16):
        method.examine(Images(), toys.at(epoch=epoch))
        seen.append(method.levels.tolist())
    by_class = np.array(seen).T
    assert by_class[0].tolist() == [0] * 16
    assert by_class[1].tolist() == [1, 0] * 8
    assert by_class[2].tolist() == [1, 2, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4]
    assert by_class[3].tolist() == [*range(1, 11), *[10] * 6]
    found = method.strengths()
    assert found.by_class.tolist() == seen[-1]
    assert found.probability == 0.5
    assert of("cuda").strengths() is None  # every level is 0


def test_trials_are_drawn_within_classes_with_replacement():
    images, method = Images(), knowing([99] * 4, trials=10)
    method.levels.copy_(torch.tensor([0, 1, 2, 10]))
    method.examine(images, toys.at())
    ((indices, strengths),) = images.asked
    found = np.zeros((4, 11), dtype=int)
    np.add.at(found, (images.labels[indices], strengths), 1)
    wanted = trial_counts(torch.tensor([0, 1, 2, 10]), 10, 10)
    assert np.array_equal(found, wanted.numpy())
    rarest = indices[images.labels[indices] == 3]
    assert set(rarest) == set(np.flatnonzero(images.labels == 3))  # five images, 660 draws
    again = draw_trials(images.labels, wanted.numpy(), toys.at(epoch=1).key("trials"))[0]
    assert not np.array_equal(again, indices)


def test_examination_leaves_the_method_as_it_was():
    method, _ = ready("cuda")
    state = {n: t.clone() for n, t in method.state_dict().items()}
    modes = [module.training for module in method.modules()]

    class Pictures(Images):
        def augmented(self, indices, strengths):
            for part in super().augmented(indices, strengths):
                yield replace(part, views=(torch.randn(len(part.labels), 3, 8, 8),))

    method.examine(Pictures(), toys.at())
    assert modes == [module.training for module in method.modules()]
    after = method.state_dict()
    assert all(torch.equal(after[n], t) for n, t in state.items() if n != "levels")


def examined(seed: int, epochs: int) -> list[list[int]]:
    """Levels and first batch of some epochs, as the trainer finds them on this rank."""
    recipe, data = digits("cuda", "stages.0.method.accept=0.05", "stages.0.method.most=3")
    torch.manual_seed(seed)
    method = METHODS.get("cuda")(
        recipe.stages[0].method.config, build_backbone(recipe), data.info, None
    ).double()
    feed = Feed(recipe, data, torch.device("cpu"))
    double = feed.images

    class Double:
        def __init__(self, images):
            self.images, self.labels = images, images.labels

        def augmented(self, indices, strengths):
            for part in self.images.augmented(indices, strengths):
                yield replace(part, views=tuple(v.double() for v in part.views))

    seen = []
    for epoch in range(epochs):
        method.examine(Double(double(0, epoch)), toys.at(epoch=epoch))
        seen.append(method.levels.tolist())
        parts = next(feed.batches(method, 0, epoch))
        views = ranks.all_gather(parts[0].views[0], parts[0].sizes)
        seen.append([round(float(views.double().sum()), 6)])
    return seen


def test_two_ranks_find_the_levels_of_one(two_processes):
    whole = examined(3, 3)
    assert any(any(levels) for levels in whole[::2])
    for found in two_processes.call(examined, 3, 3):
        assert found == whole


def test_a_split_must_take_strengths():
    recipe, data = digits("cuda")

    class Fixed(MemorySplit):
        def load(self, indices, *, key, positions, views=1):  # type: ignore[override]
            return super().load(indices, key=key, positions=positions, views=views)

    split = Fixed(data.train.images, data.train.labels, mean=(0.5,) * 3, std=(0.5,) * 3)
    fixed = Data(data.info, split, data.test, None, data.manifest)
    images = Feed(recipe, fixed, torch.device("cpu")).images(0, 0)
    with pytest.raises(UserError, match="cannot be augmented with a strength by class"):
        list(images.augmented(np.arange(3), np.ones(3, dtype=np.int64)))

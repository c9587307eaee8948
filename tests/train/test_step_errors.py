"""Networks and batches that do not fit end in one line, before training where that can be known."""

from __future__ import annotations

import pytest
import torch

from ltbench import get_recipe, run
from ltbench.errors import UserError
from ltbench.evaluation.evaluate import evaluate
from ltbench.models.backbone import Backbone, create_backbone
from ltbench.models.image_size import check_size
from ltbench.models.stages import Stage
from ltbench.train.stage import StageRun
from ltbench.train.step_errors import explained

WORDS = {
    "data": "digits_lt",
    "data.image_size": "8",
    "backbone": "test_resnet",  # maps of 1 x 1 in the end
    "stages.0.epochs": "1",
    "stages.0.schedule.warmup": "0",
    "run.device": "cpu",
    "run.threads": "1",
}


def recipe(tmp_path, **words: str):
    given = {**WORDS, "out": str(tmp_path / "run"), **words}
    return get_recipe("ce", *(f"{key}={value}" for key, value in given.items()))


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> str:
    """A batch size that leaves one image for the last step."""
    images = len(recipe(tmp_path_factory.mktemp("odd")).data.config.load().train)
    return str(next(n for n in range(8, images) if images % n == 1))


@pytest.mark.parametrize("words", [{}, {"stages.0.update": "plot"}, {"stages.0.micro_batch": "1"}])
def test_a_pass_of_one_image_is_found_before_the_first_step(words, odd, tmp_path, monkeypatch):
    monkeypatch.setattr(StageRun, "step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(UserError, match=r"stages\.0\.last_batch=drop") as caught:
        run(recipe(tmp_path, **{"stages.0.batch_size": odd, **words}))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [{"stages.0.last_batch": "drop"}, {"backbone": "resnet20_cifar"}, {"run.batchnorm": "frozen"}],
)
def test_it_is_no_mistake_where_it_can_be_normalised(words, odd, tmp_path):
    run(recipe(tmp_path, **{"stages.0.batch_size": odd, "run.max_steps": "1", **words}))


def test_a_network_of_another_size_is_one_line(tmp_path, monkeypatch):
    forward = Backbone.forward

    def sized(self, images):
        assert images.shape[-1] == 224, (
            f"Input height ({images.shape[-1]}) doesn't match model (224)."
        )
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", sized)
    with pytest.raises(
        UserError, match=r"does not take images of 8 x 8 pixels .*\(224\)"
    ) as caught:
        run(recipe(tmp_path, **{"stages.0.batch_size": "16"}))
    assert len(str(caught.value).splitlines()) == 1


def test_other_errors_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(StageRun, "_prepared", lambda *_: (_ for _ in ()).throw(ValueError("ours")))
    with pytest.raises(ValueError, match="ours"):
        run(recipe(tmp_path, **{"stages.0.batch_size": "16"}))
    memory = torch.OutOfMemoryError("no memory")
    assert explained(memory, None, torch.zeros(1, 3, 4, 4), 0) is memory


def test_a_transformer_names_its_own_size():
    net = create_backbone("vit_tiny_patch16_224", depth=1)
    with pytest.raises(UserError, match=r"of 64 x 64 pixels .*data\.image_size=224`.*img_size=64"):
        check_size(net, torch.zeros(1, 3, 64, 64))
    assert net.training
    check_size(net, torch.zeros(1, 3, 224, 224))


def test_evaluation_with_another_size_is_one_line():
    model = torch.nn.Module()
    model.backbone = create_backbone("test_vit")
    model.forward = model.backbone.forward
    with pytest.raises(UserError, match="does not take images of 8 x 8 pixels") as caught:
        evaluate(model, "digits_lt", device="cpu", image_size=8)
    assert len(str(caught.value).splitlines()) == 1


def test_plot_on_a_network_without_parts_names_the_way_out(tmp_path, monkeypatch):
    def whole(net: torch.nn.Module) -> tuple[Stage, ...]:
        return (Stage("whole", ("forward_features", "forward_head")),)

    monkeypatch.setattr("ltbench.models.backbone.stages_of", whole)
    words = {"stages.0.batch_size": "16", "stages.0.update": "plot", "data.image_size": "32"}
    with pytest.raises(UserError, match=r"has no part `last`.*stages\.0\.update\.part=whole"):
        run(recipe(tmp_path, **words))

"""Every method's recipe trains through the real trainer: broken off, resumed, loaded, exported."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import ltbench
from ltbench import get_recipe, list_recipes, run
from ltbench.methods import METHODS
from ltbench.train.progress import NoProgress

pytestmark = pytest.mark.usefixtures("no_picture")

# The digits inside scikit-learn, a small network, four steps in two epochs of each stage.
TINY = (
    *("data=digits_lt", "data.imbalance_ratio=5", "data.image_size=8", "epochs=2"),
    "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}",
    *("run.device=cpu", "run.threads=1", "run.save_steps=1", "run.max_steps=4"),
    "run.eval_every=9",
)
NAMES = [n for n in METHODS.names() if not METHODS.facts(n).stage_of]
NAMES.remove("zero_shot")  # needs an encoder trained with text
SMALL = {
    "m2m": ("stages.1.method.gamma=0.2",),
    "paco": ("stages.0.method.queue=96",),
    "gpaco": ("stages.0.method.queue=96",),
    "bcl": ("stages.0.method.dim=16",),
    "cmo": ("stages.0.method.start=0", "stages.0.method.stop_before=0"),
    "cuda": ("stages.0.method.accept=0.05", "stages.0.method.augmented=1"),
    "lift": ("stages.0.method.init=random", "run.precision=fp32"),
    "lift_plus": ("stages.0.method.init=random", "run.precision=fp32"),
}


class Breaks(NoProgress):
    """Stops a run as Ctrl-C would, after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def step(self, *args, **kw) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def tiny(name: str, out):
    recipe = next(r for r in (f"{name}_cifar10", f"{name}_cifar100") if r in list_recipes())
    stages = len(get_recipe(recipe).stages)
    images = 574  # of the long tail: two steps an epoch
    sizes = [
        f"stages.{i}.batch_size={images // 2}"
        for i in range(stages)
        if get_recipe(recipe).stages[i].batch_size
    ]
    return get_recipe(recipe, *TINY, *sizes, *SMALL.get(name, ()), f"out={out}")


# These keep state of different kinds; `test_resume_methods` has the toy runs of all.
RESUMED = ("paco", "difficulty_net", "m2m", "cuda")  # the rest is slow


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_loads_and_exports(name, tmp_path):
    result = run(tiny(name, tmp_path / "run"))
    method = ltbench.load(result.folder)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        logits = method(x)
        assert torch.equal(method.export().eval()(x), logits)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "name", [n if n in RESUMED else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_it_resumes(name, tmp_path):
    whole = run(tiny(name, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(tiny(name, tmp_path / "broken"), reporter=Breaks(after=3))
    again = run(tiny(name, tmp_path / "broken"))
    ours, theirs = (load_file(r.folder / "model.safetensors") for r in (again, whole))
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert again.metrics == whole.metrics

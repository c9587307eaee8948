"""What a run says: header, stages, epochs and the time left, at 80 columns and in a log file."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ltbench import get_recipe
from ltbench.train import progress
from ltbench.train.feed import Feed
from ltbench.train.plan import make_plan, stage_title

CPU = torch.device("cpu")
RECIPE = get_recipe(
    "crt_mixup_plot",
    *("data=digits_lt", "stages.0.epochs=4", "stages.1.epochs=4", "stages.0.update.epochs=2"),
    *("stages.0.schedule.warmup=1", "run.eval_every=2", "out=runs/here"),
)
DATA = RECIPE.data.config.load()  # type: ignore[attr-defined]


def plan(at=(0, 0, 0)):
    return make_plan(Feed(RECIPE, DATA, CPU), Path("runs/here"), at)


def test_steps_on_stored_features_hardly_count():
    recipe = get_recipe("crt_caltech101", "data=digits_lt", "data.image_size=32")
    made = make_plan(Feed(recipe, DATA, CPU), Path("runs/here"))
    first, second = made.steps
    assert progress.plan_cost(made, first) == progress.ON_IMAGES * first
    assert progress.plan_cost(made) == progress.ON_IMAGES * first + progress.STORED * second


class Clock:
    """Time that passes by a second a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(monkeypatch, *, live: bool, seconds: float = 1.0, split: str = "test") -> str:
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    console = Console(file=out, force_terminal=live, width=80, color_system=None)
    bar = progress.ProgressBar(console)
    what = plan()
    try:
        bar.begin(what)
        for index, stage in enumerate(RECIPE.stages):
            bar.stage(index, stage, what.steps[index], 0)
            for epoch in range(1, stage.epochs + 1):
                for _ in range(what.per_epoch[index]):
                    clock.now += seconds
                    bar.step(lambda: 1.5, 64)
                row = {"epoch": epoch, "loss": 1.5, "train_top1": 0.25}
                row |= {f"{split}_top1": 0.5} if split and epoch % 2 == 0 else {}
                bar.epoch(row)
    finally:
        bar.close()
    return out.getvalue()


def test_the_header_is_five_short_lines():
    lines = plan().lines()
    assert [line.split()[0] for line in lines] == ["data", "counts", "test", "run", "folder"]
    assert max(map(len, lines)) <= 80
    counts = DATA.info.class_counts
    assert lines[0].endswith(f"digits_lt: 10 classes, {sum(counts):,} images")
    ratio = f"ratio {max(counts) / min(counts):.4g}"
    assert f"{max(counts)} (zero) to {min(counts)} (nine), {ratio}; 1 many" in lines[1]
    assert "600 images" in lines[2]
    assert "4 + 4 epochs, " in lines[3]
    assert lines[4].endswith("runs/here")


def test_a_resumed_run_says_what_is_done():
    each, later = plan().per_epoch[0], plan((1, 1, 2))
    assert later.done == 4 * each + later.per_epoch[1] + 2
    assert f"{later.done} of them done" in later.lines()[3]
    assert plan((2, 0, 0)).done == sum(plan().steps)


def test_a_line_names_the_split_or_shows_training_alone(monkeypatch):
    for split, text in (("val", "train 25.00 %  val 50.00 %  about"), ("", "train 25.00 %  about")):
        lines = shown(monkeypatch, live=False, seconds=0.1, split=split).splitlines()
        epochs = [line for line in lines if line.startswith("  epoch")]
        assert [line.split()[1] for line in epochs] == ["2", "4", "2", "4"]
        assert f"of 4  loss 1.500  {text}" in epochs[0]


def test_a_log_file_has_a_line_for_each_evaluated_epoch(monkeypatch):
    text = shown(monkeypatch, live=False, seconds=0.1)
    assert text.replace("\n", "").isprintable()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "stage 1 of 2 (mixup + plot)" in lines
    assert "stage 2 of 2 (crt)" in lines
    epochs = [line for line in lines if line.startswith("  epoch")]
    assert [line.split()[1] for line in epochs] == ["2", "4", "2", "4"]
    assert all("of 4  loss 1.500  train 25.00 %  test 50.00 %" in line for line in epochs)
    left = plan().steps[0] / 2 + plan().steps[1]
    assert epochs[0].endswith(f"about {progress.clock(0.1 * left)} left")
    assert "left" not in epochs[-1]
    assert len(lines) == 5 + 2 + 4


def test_a_log_file_is_never_silent_for_long(monkeypatch):
    text = shown(monkeypatch, live=False, seconds=35.0, split="")
    steps = [line for line in text.splitlines() if line.startswith("  step")]
    assert len(steps) > sum(plan().steps) / 4
    assert "loss 1.500, 2 img/s, about" in steps[0]


def test_a_terminal_has_one_bar_over_all_stages(monkeypatch):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown(monkeypatch, live=True))
    bars = [line for line in text.replace("\r", "\n").splitlines() if "━" in line]
    assert bars
    assert max(map(len, bars)) <= 80
    assert any(line.startswith("stage 2/2 epoch 4/4") and "100%" in line for line in bars)
    assert "epoch 4 of 4  loss 1.500  train 25.00 %  test 50.00 %" in text


def test_nothing_is_shown_without_a_terminal_by_default(capsys):
    bar = progress.default_progress()
    assert type(bar) is progress.NoProgress


@pytest.mark.parametrize(
    ("count", "expected"), [(2, "stage 1 of 2 (mixup + plot)"), (0, "stage 1 (mixup + plot)")]
)
def test_people_count_stages_from_one(count, expected):
    assert stage_title(0, RECIPE.stages[0], count) == expected

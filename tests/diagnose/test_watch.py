from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from safetensors.torch import load_file
from toy_stages import make_update, ready

from ltbench.config.recipe import Diagnose
from ltbench.config.validation import build_recipe
from ltbench.diagnose.report import drawing, picture
from ltbench.diagnose.trajectory import Trajectory
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.methods.base import Batch
from ltbench.train import watch as module
from ltbench.train.run import run
from ltbench.train.stage import StageRun
from ltbench.train.watch import Watch, read_log
from tests.diagnose.tiny import tiny_tree


def trained(out, every: int):
    """Three epochs with the solver and one of the second stage, of four steps each."""
    options = {"device": "cpu", "threads": 1, "workers": 0, "eval_every": 100, "save_steps": 2}
    tree = tiny_tree("crt", update="plot", out=str(out), diagnose={"every": every}, run=options)
    with pytest.MonkeyPatch.context() as quick:  # the curves take as long as the run
        quick.setattr("ltbench.train.curves._picture", lambda *_: b"")
        return run(build_recipe(tree))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    out = tmp_path_factory.mktemp("watched") / "run"
    trained(out, 1)
    return out


def test_training_is_bitwise_the_same_with_and_without(watched, tmp_path):
    result = trained(tmp_path / "run", 0)
    ours, theirs = (load_file(d / "model.safetensors") for d in (watched, tmp_path / "run"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    record = json.loads((watched / "record.json").read_text())
    assert record["metrics"] == json.loads(result.record.model_dump_json())["metrics"]
    assert record["recipe"]["digest"] == result.record.recipe.digest
    assert not (tmp_path / "run" / "diagnostics").exists()


def test_pandas_opens_the_log_and_its_tables_agree(watched):
    for name in module.TABLES:
        folder = pd.read_parquet(watched / "diagnostics" / name)
        assert len(folder) == len(read_log(watched, name))
    steps = read_log(watched, "steps")
    assert steps["count"].tolist() == [*range(12), *range(4)]
    assert steps["stage"].tolist() == [0] * 12 + [1] * 4
    assert steps["part"].tolist() == ["last"] * 12 + ["whole"] * 4  # a frozen backbone
    assert not (watched / "diagnostics" / module.PENDING).exists()
    assert (steps["solver_gap"][:12] >= 0).all()
    assert (steps["conflicts"] <= steps["pairs"]).all()
    assert ((steps["loss"] > 0) & (steps["mean_norm"] > 0)).all()
    classes, cosines = read_log(watched, "classes"), read_log(watched, "cosines")
    weights = classes[classes["stage"] == 0].groupby("count")["solver_weight"].sum()
    np.testing.assert_allclose(weights, 1)
    assert classes[classes["stage"] == 1]["solver_weight"].isna().all()
    negative = (cosines["cosine"] < 0).groupby([cosines["stage"], cosines["count"]]).sum()
    assert negative.tolist() == steps["conflicts"].tolist()
    shares = classes.groupby(["stage", "count"])["loss_share"].sum()
    np.testing.assert_allclose(shares, steps["loss"])


def test_killed_and_resumed_nothing_is_lost_or_twice(watched, tmp_path, monkeypatch):
    out, do_step = tmp_path / "run", StageRun.step
    for stop in (3, 7):  # inside an epoch, with looks after the last checkpoint
        left = [stop]

        def step(self, *args, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return do_step(self, *args)

        with monkeypatch.context() as broken:
            broken.setattr(StageRun, "step", step)
            with pytest.raises(KeyboardInterrupt):
                trained(out, 1)
        found = read_log(out, "steps")  # also while an epoch is under way
        assert not found.duplicated(["stage", "epoch", "step"]).any()
    trained(out, 1)
    for name in module.TABLES:
        found, unbroken = read_log(out, name), read_log(watched, name)
        pd.testing.assert_frame_equal(found, unbroken, check_exact=True)
        assert len(pd.read_parquet(out / "diagnostics" / name)) == len(found)
    ours, theirs = (load_file(d / "model.safetensors") for d in (out, watched))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def looked(name: str, key: str, folder, *, norm: bool = True, part: str = "last", micro: int = 1):
    """Two steps of an update on the toy problem, looked at both times."""
    method, step_run = ready(name, norm=norm)
    method.double()
    watch = Watch(make_update(key, method), Diagnose(every=1, part=part), folder, per_epoch=2)
    x, y = toys.images(22)
    order = y.argsort(stable=True)
    x, y = x[order].double(), y[order]
    for step in range(2):
        own = torch.tensor_split(torch.arange(22), ranks.world())[ranks.rank()]
        parts = [Batch((x[rows],), y[rows], rows) for rows in torch.tensor_split(own, micro)]
        toys.step(watch, step_run, parts, toys.at(step))
    watch.flush()
    return method


def test_every_nth_step_of_a_stage_is_looked_at(tmp_path):
    method, step_run = ready("ce")
    watch = Watch(make_update("plain", method), Diagnose(every=3), tmp_path, per_epoch=5)
    for count in range(10):
        epoch, step = divmod(count, 5)
        toys.step(watch, step_run, [toys.batch()], toys.at(step, epoch))
        if step == 4:
            watch.flush()
    assert read_log(tmp_path, "steps")["count"].tolist() == [0, 3, 6, 9]
    files = sorted(p.name for p in (tmp_path / "diagnostics" / "steps").iterdir())
    assert files == ["stage0-epoch0000.parquet", "stage0-epoch0001.parquet"]


def test_a_plain_step_goes_along_the_average(tmp_path):
    looked("ce", "plain", tmp_path)
    steps, classes = read_log(tmp_path, "steps"), read_log(tmp_path, "classes")
    np.testing.assert_allclose(steps["cosine_mean_direction"], 1, rtol=1e-9)
    np.testing.assert_allclose(classes["cosine_mean"], classes["cosine_direction"], rtol=1e-6)
    np.testing.assert_allclose(steps["direction_norm"], 4 * steps["mean_norm"], rtol=1e-9)
    # Without a past, momentum changes nothing: the step is the gradient times the rate.
    assert steps["step_norm"][0] == pytest.approx(steps["direction_norm"][0], rel=1e-9)
    assert steps["cosine_direction_step"][0] == pytest.approx(1)
    assert steps["step_norm"][1] > 1.2 * steps["direction_norm"][1]


@pytest.mark.parametrize(
    "key", ["sam", "focal-sam", "imb-sam", "plot-cagrad", "plot-mgda", "plot-official"]
)
@pytest.mark.parametrize("name", ["mixup", "paco", "m2m"])
def test_any_method_and_update_is_logged_without_a_trace(name, key, tmp_path):
    with_log = looked(name, key, tmp_path)
    method, step_run = ready(name)
    method.double()
    update = make_update(key, method)
    x, y = toys.images(22)
    order = y.argsort(stable=True)
    for step in range(2):
        part = Batch((x[order].double(),), y[order], torch.arange(22))
        toys.step(update, step_run, [part], toys.at(step))
    for (k, a), b in zip(method.state_dict().items(), with_log.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    steps = read_log(tmp_path, "steps")
    assert steps["cosine_mean_direction"].between(-1, 1).all()
    assert (steps["direction_norm"] > 0).all()


def look_on_each_rank(folder) -> None:
    looked("ce", "plot-exact", folder, norm=False)


def test_ranks_log_the_global_batch_once(tmp_path, two_processes):
    looked("ce", "plot-exact", tmp_path / "one", norm=False)
    looked("ce", "plot-exact", tmp_path / "cut", norm=False, micro=2)
    two_processes.call(look_on_each_rank, tmp_path / "two")
    for other in ("two", "cut"):
        for name in module.TABLES:
            one, found = read_log(tmp_path / "one", name), read_log(tmp_path / other, name)
            pd.testing.assert_frame_equal(one, found, rtol=1e-6, atol=1e-9)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"`diagnose\.part`: nothing is called `layer9`"):
        looked("ce", "plain", tmp_path, part="layer9")
    with pytest.raises(UserError, match=r"diagnose\.every=N"):
        read_log(tmp_path, "steps")
    folder = tmp_path / "diagnostics" / "steps"
    folder.mkdir(parents=True)
    (folder / "stage0-epoch0000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is damaged") as caught:
        read_log(tmp_path, "steps")
    assert len(str(caught.value).splitlines()) == 1
    for text in ("[]", "{}", '{"steps": 3, "classes": [], "cosines": []}'):
        home = tmp_path / "pending" / "diagnostics" / ".pending"
        home.mkdir(parents=True, exist_ok=True)
        (home / "s0-e0000-t000009.json").write_text(text)  # of no step that follows
        with pytest.raises(UserError, match="is damaged"):
            read_log(tmp_path / "pending", "steps")
        with pytest.raises(UserError, match="is damaged"):
            looked("ce", "plain", tmp_path / "pending")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder"):
        looked("ce", "plain", tmp_path / "file")


def test_the_log_is_drawn_for_one_and_for_several_runs(watched, subject):
    one = replace(subject, name="with <PLOT> $x_", folder=watched)
    diagnostic = Trajectory(Trajectory.Options())
    tables = diagnostic.measure(one)
    drawn = tables["classes"][tables["classes"]["drawn"]]
    assert set(drawn["name"]) == {"zero", "four", "nine"}
    with drawing():
        alone = diagnostic.draw({one.name: tables})
        both = diagnostic.draw({one.name: tables, "b": tables})
        assert len(picture("cosines", both["cosines"]).svg) > 5000
    assert set(alone) == {"cosines", "norms", "conflicts", "groups", "weights"}
    assert len(both["cosines"].axes) == 2 * len(alone["cosines"].axes)
    with pytest.raises(UserError, match=r"diagnose\.every"):
        diagnostic.measure(subject)

"""The commands as a newcomer types them, right and wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from processes import Forked, run_command

from ltbench.cli import main
from ltbench.errors import UserError

SHORT = [
    "stages.0.epochs=1",
    "stages.0.update=plain",
    "stages.1.epochs=1",
    "stages.1.schedule.shift=0",
    "backbone=resnet20_cifar",
    "run.device=cpu",
]


def ltbench(capsys, *words) -> tuple[int, str, str]:
    try:
        main(list(words))
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


def refused(capsys, *words) -> str:
    """Run a wrong command; it must end with code 2 and one line. Return that line."""
    code, _, err = ltbench(capsys, *words)
    assert code == 2, err
    lines = [x for x in err.splitlines() if x]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    process = Forked(run_command, ["run", "recipe=quickstart", *SHORT, f"out={out}"])
    printed, errors = process.communicate()
    code = process.returncode
    process.end()
    assert code == 0, errors
    return out, printed


def test_run_ends_with_a_table_files_and_what_to_type_next(finished):
    out, text = finished
    for word in ("overall", "many", "medium", "few", "ECE", "record.json", "curves.png", "next:"):
        assert word in text
    names = {p.name for p in out.iterdir()}
    assert {"record.json", "model.safetensors", "curves.csv", "curves.png", "checkpoints"} <= names
    record = json.loads((out / "record.json").read_text())
    assert sum(record["metrics"]["total"]) == 600
    assert "Traceback" not in text


def test_eval_gives_the_numbers_of_the_record(finished, capsys):
    out, text = finished
    code, shown, _ = ltbench(capsys, "eval", f"model={out}")
    assert code == 0
    row = next(x for x in text.splitlines() if "test, %" in x)
    assert row.split() == next(x for x in shown.splitlines() if "test, %" in x).split()


def test_shot_groups_are_those_of_the_models_own_training(capsys):
    lines = []
    for ratio in (20, 1):
        code, shown, err = ltbench(
            capsys, "eval", "model=quickstart", f"data.imbalance_ratio={ratio}", "device=cpu"
        )
        assert code == 0, err
        lines.append([x for x in shown.splitlines() if "training images" in x or "test, %" in x])
    assert lines[0] == lines[1]
    assert "10 / 0 / 0 classes" not in lines[0][1]  # all of them are many in the whole data set


def test_python_api_agrees(finished):
    import ltbench

    out, _ = finished
    record = json.loads((out / "record.json").read_text())
    model = ltbench.load(out)
    metrics = ltbench.evaluate(model, "digits_lt", device="cpu")
    assert list(metrics.correct) == record["metrics"]["correct"]
    assert not model.training


@pytest.mark.parametrize(
    "command", ["run", "list", "show", "eval", "leaderboard", "predict", "export"]
)
def test_help_teaches_by_example(command, capsys):
    code, out, _ = ltbench(capsys, command, "--help")
    assert code == 0
    assert out.count("ltbench " + command) >= 2


def test_the_verbs_are_frozen():
    from ltbench.cli.app import cli

    verbs = ["bench", "compare", "data", "diagnose", "download", "eval", "export"]
    verbs += ["import", "leaderboard", "list", "new", "predict", "publish", "run", "show"]
    assert sorted(cli.commands) == verbs


@pytest.mark.parametrize(
    "kind",
    [
        *("recipes", "methods", "updates", "solvers", "samplers", "backbones", "datasets"),
        "releases",
    ],
)
def test_list_shows_names_with_a_sentence(kind, capsys):
    code, out, _ = ltbench(capsys, "list", kind)
    assert code == 0
    for line in out.splitlines():
        assert len(line.split(None, 1)) == 2, f"`{line}` has no description"


def test_list_takes_patterns(capsys):
    _, out, _ = ltbench(capsys, "list", "recipes", "*plot_inat")
    assert "mislas_plot_inat" in out
    assert "cifar" not in out
    assert "no recipes match" in refused(capsys, "list", "recipes", "zzz*")
    assert '"*plot_inat*" matches' in refused(capsys, "list", "recipes", "plot_inat")
    _, out, _ = ltbench(capsys, "list", "backbones", "vit_tiny*")
    assert "vit_tiny_patch16_224" in out


def test_show_names_digest_sources_and_target(capsys):
    code, out, _ = ltbench(capsys, "show", "recipe=mislas_plot_inat", "seed=3")
    assert code == 0
    for word in ("digest", "mislas_inat.yaml", "command line", "default", "72.1"):
        assert word in out


def test_leaderboard_filters(capsys):
    code, out, _ = ltbench(capsys, "leaderboard", "dataset=cifar10", "ratio=100", "--csv")
    assert code == 0
    assert "LDAM-DRW" in out
    assert "iNaturalist" not in out
    assert "unknown key" in refused(capsys, "leaderboard", "datset=cifar10")
    assert "no row matches" in refused(capsys, "leaderboard", "dataset=mnist")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], "expected `recipe=...`"),
        (["run", "recipe=quikstart"], "did you mean `quickstart`?"),
        (["run", "recipe=quickstart", "stages.0.optim.lr=-1"], "should be greater than 0"),
        (["run", "recipe=quickstart", "stages.0.epochs=0"], "greater than or equal to 1"),
        (["run", "recipe=quickstart", "backbone=resnt32_cifar"], "did you mean `resnet32_cifar`"),
        (["run", "recipe=quickstart", "stages.0.batch_size=100000"], "larger than the data set"),
        (["run", "recipe=quickstart", "stages.0.method=mixap"], "did you mean `mixup`"),
        (["run", "recipe=quickstart", "stages.0.update.part=layer9"], "layer9"),
        (["run", "recipe=quickstart", "stages.0.freeze=[layr1]"], "layr1"),
        (["run", "recipe=ce_cifar10"], "data.root"),
        (["run", "recipe=ce_cifar10", "data.root=/nowhere"], "/nowhere"),
        (["run", "recipe=mislas_plot_inat"], "data.root"),
        (["eval", "model=nothing/here"], "nothing/here"),
        (["list", "recipies"], "recipies"),
    ],
)
def test_one_line_and_code_2(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = ltbench(capsys, *words)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    if words[0] == "run":
        assert len(err.strip().splitlines()) == 1, err


def test_an_output_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "run", "recipe=quickstart", f"out={tmp_path}/file/run")
    assert "cannot write" in line
    assert "out=" in line


def images(folder, n, value=0):
    folder.mkdir(parents=True)
    for i in range(n):
        rng = np.random.default_rng(1000 * value + i)
        pixels = rng.integers(0, 100, size=(12, 12, 3)) + 50 * value
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def own_images(tmp_path):
    root = tmp_path / "images"
    for k, n in enumerate((12, 6, 3)):
        images(root / "train" / f"class{k}", n, k)
        images(root / "test" / f"class{k}", 3, k)
    return root


FOLDER = [
    "recipe=crt_mixup_plot",
    "data.image_size=16",
    "backbone=resnet20_cifar",
    "stages.0.epochs=1",
    "stages.0.update.epochs=1",
    "stages.0.schedule.warmup=0",
    "stages.0.batch_size=8",
    "stages.1.epochs=1",
    "stages.1.schedule.shift=0",
    "stages.1.batch_size=8",
    "run.workers=0",
    "run.device=cpu",
]


def test_a_strangers_folder_is_trained_by_one_command(own_images, capsys, tmp_path):
    words = ["run", *FOLDER, f"data.root={own_images}", f"out={tmp_path}/run"]
    code, _, err = ltbench(capsys, *words)
    assert code == 0, err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["metrics"]["class_counts"] == [12, 6, 3]


def test_broken_image_is_named_and_nothing_is_left_half_written(own_images, capsys, tmp_path):
    broken = own_images / "train" / "class1" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    line = refused(capsys, "run", *FOLDER, f"data.root={own_images}", f"out={tmp_path}/run")
    assert "2.png" in line
    assert not (tmp_path / "run" / "record.json").exists()
    assert not list((tmp_path / "run").glob("**/.partial-*"))


def test_after_a_mistake_the_corrected_command_may_use_the_same_folder(capsys, tmp_path):
    words = ["run", "recipe=quickstart", *SHORT, f"out={tmp_path}/run"]
    assert "larger than" in refused(capsys, *words, "stages.0.batch_size=100000")
    code, _, err = ltbench(capsys, *words, "run.max_steps=1")
    assert code == 0, err


def test_class_without_test_image_is_named(own_images, capsys, tmp_path):
    for path in (own_images / "test" / "class2").iterdir():
        path.unlink()
    line = refused(capsys, "run", *FOLDER, f"data.root={own_images}", f"out={tmp_path}/run")
    assert "class2" in line


def list_files(root):
    for split in ("train", "test"):
        lines = [
            f"{split}/class{k}/{p.name} {k}"
            for k in range(3)
            for p in sorted((root / split / f"class{k}").iterdir())
        ]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (("train/class0/0.png 0", "train/class0/0.png zero"), "zero"),
        (("train/class0/0.png 0", "train/class0/0.png -4"), "-4"),
        (("train/class0/0.png 0", "train/class0/gone.png 0"), "gone.png"),
        (("test/class1/0.png 1", "test/class1/0.png 7"), "7"),
    ],
)
def test_wrong_lists_are_refused_with_the_line(own_images, damage, expected, capsys, tmp_path):
    list_files(own_images)
    words = [*FOLDER, "data=list", "data.train=train.txt", "data.test=test.txt"]
    words += ["data.image_size=16", f"data.root={own_images}", f"out={tmp_path}/run"]
    words.remove("data.image_size=16")  # the first one: `data=list` starts the options anew
    for name in ("train.txt", "test.txt"):
        text = (own_images / name).read_text()
        (own_images / name).write_text(text.replace(*damage))
    assert expected in refused(capsys, "run", *words)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no description"])
def test_damaged_models_are_refused(finished, damage, capsys, tmp_path):
    import shutil

    out, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    weights = copy / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "foreign":
        described = json.loads((copy / "model.json").read_text())
        described["recipe"]["backbone"]["name"] = "resnet32_cifar"
        (copy / "model.json").write_text(json.dumps(described))
    else:
        (copy / "model.json").unlink()
    assert "model" in refused(capsys, "eval", f"model={copy}")


def test_a_finished_run_needs_no_data(tmp_path):
    from ltbench.config.files import get_recipe
    from ltbench.train.folder import check_data

    recipe = get_recipe("ce_cifar10", f"out={tmp_path}")
    with pytest.raises(UserError, match=r"data\.root=DIR"):
        check_data(recipe)
    (tmp_path / "record.json").write_text("{}")
    check_data(recipe)


def test_missing_data_do_not_hide_a_misspelt_key(capsys):
    words = ["recipe=ce_cifar10", "stages.0.optim.lrr=1", "stages.0.epoch=3", "run.presicion=bf16"]
    with pytest.raises(SystemExit) as end:
        main(["run", *words])
    assert end.value.code == 2
    said = capsys.readouterr().err
    for key in ("stages.0.optim.lrr", "stages.0.epoch", "run.presicion"):
        assert f"`{key}`: unknown key" in said
    assert "data.root" not in said  # said once the words are right

"""Parts from outside the package: imported only where the user named them, known by their hash."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import ltbench
from ltbench.cli import main
from ltbench.config import plugin_modules, plugins
from ltbench.config.explain import explain
from ltbench.config.registry import HOMES, registry
from ltbench.config.validation import build_recipe
from ltbench.digest import digest_of
from ltbench.errors import UserError
from ltbench.train.claim import RunFolder

CODE = '''
import torch
from torch.nn.functional import cross_entropy
from ltbench.config import schema
from ltbench.methods import METHODS
from ltbench.methods.base import Method, Rows

class Options(schema.Config):
    strength: float = 0.5

@METHODS.register("tail_margin", title="Tail Margin")
class TailMargin(Method):
    """Margin for rare classes."""
    Config = Options

    def setup(self, previous):
        counts = torch.tensor(self.info.class_counts, dtype=torch.float32)
        self.register_buffer("margins", self.config.strength * (counts.max() / counts).log(), False)

    def loss(self, batch, at):
        logits = self.predict(batch.views[0])
        rows = cross_entropy(logits - self.margins, batch.labels, reduction="none")
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
'''
RECIPE = """
plugins: tail.py
data: {name: digits_lt, imbalance_ratio: 20}
backbone: {name: resnet20_cifar, args: {widths: [4, 4, 4]}}
stages:
  - {method: {name: tail_margin, strength: 0.3}, epochs: 1, batch_size: 16, optim: {lr: 0.1}}
run: {max_steps: 1}
"""


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(plugin_modules.PARENT, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tables = [registry(name) for name in HOMES]
    before = [(dict(t._parts), dict(t._loaded)) for t in tables]
    forget()
    yield
    forget()
    for table, (parts, loaded) in zip(tables, before, strict=True):
        table._parts, table._loaded = parts, loaded


def forget() -> None:
    """Bring the process to the state in which no plugin was imported."""
    modules = {*plugin_modules.FILES, *plugin_modules.MODULES, *plugin_modules.REGISTERING}
    for name in HOMES:
        table = registry(name)
        for part in [n for n, p in table._parts.items() if p.outside]:
            del table._parts[part], table._loaded[part]
    for module in modules:
        if not module.startswith("tests"):
            sys.modules.pop(module, None)
    for state in (plugin_modules.FILES, plugin_modules.MODULES, plugin_modules.REGISTERING):
        state.clear()
    plugins._named.clear()
    plugins._installed.clear()
    plugin_modules.describe.cache_clear()
    os.environ.pop(plugin_modules.PARENT, None)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Folder with a plugin and a recipe that uses it; it is not the current one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "tail.py").write_text(CODE)
    (folder / "tail.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with a plugin that has gone since."""
    home = tmp_path_factory.mktemp("home")
    (home / "tail.py").write_text(CODE)
    (home / "tail.yaml").write_text(RECIPE)
    ltbench.run(ltbench.get_recipe(str(home / "tail.yaml"), out=str(home / "run")))
    (home / "tail.py").unlink()
    forget()
    return home / "run"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code and output of a command."""
    capsys.readouterr()
    try:
        main(list(words))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def fails(*words: str, recipe: str = "quickstart") -> str:
    with pytest.raises(UserError) as caught:
        ltbench.get_recipe(recipe, *words)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Naming --------------------------------------------------------------------------------------


def test_a_recipe_finds_its_plugin_beside_itself_from_any_folder(mine):
    recipe = ltbench.get_recipe(str(mine / "tail.yaml"))
    choice = recipe.stages[0].method
    assert choice.config.strength == 0.3
    sha256 = plugin_modules.describe(next(iter(plugin_modules.FILES))).sha256
    assert choice.plugin == f"tail.py@{sha256}"
    assert recipe.tree()["plugins"] == [str(mine / "tail.py")]


@pytest.mark.parametrize(
    "words",
    [
        ("plugins=tail.py", "stages.0.method=tail_margin"),
        ("plugins=tail", "stages.0.method=tail_margin"),
        ("plugins=[tail.py]", "stages.0.method=tail_margin"),
        ("stages.0.method=tail:TailMargin",),
        ("stages.0.method=tail.py:TailMargin",),
        ("stages.0.method={name: tail.py:TailMargin, strength: 2}",),
    ],
    ids=" ".join,
)
def test_ways_to_name_a_method(mine, monkeypatch, words):
    monkeypatch.chdir(mine)
    choice = ltbench.get_recipe("quickstart", *words).stages[0].method
    assert choice.name in ("tail_margin", "tail:TailMargin")
    assert choice.plugin.startswith("tail.py@")


def test_one_file_has_one_digest_however_it_is_named(mine, monkeypatch):
    digests = set()
    for words, folder in (
        (["plugins=tail.py"], mine),
        (["plugins=tail"], mine),
        ([f"plugins={mine}/tail.py"], mine.parent),
    ):
        forget()
        monkeypatch.chdir(folder)
        recipe = ltbench.get_recipe("quickstart", *words, "stages.0.method=tail_margin")
        digests.add(recipe.digest)
    assert len(digests) == 1
    assert digests != {ltbench.get_recipe("quickstart").digest}


PARTS = """
import timm
from ltbench.data.base import DatasetConfig
from ltbench.data.samplers import Instance
from ltbench.data.digits import DigitsLT
from ltbench.moo.mean import Mean
from ltbench.updates.base import Update
from ltbench.updates import plain

class MyUpdate(plain.Plain): "Mine."
class MySolver(Mean): "Mine."
class MySampler(Instance): "Mine."
class MyData(DigitsLT): "Mine."
def net(**args): return timm.create_model("resnet18", **args)
"""


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["stages.0.update=parts:MyUpdate"], "stages.0.update"),
        (["stages.0.update.solver=parts:MySolver"], "stages.0.update.solver"),
        (["stages.0.sampler=parts:MySampler"], "stages.0.sampler"),
        (["data=parts:MyData"], "data"),
        (["backbone=parts:net"], "backbone"),
    ],
    ids=lambda x: "",
)
def test_every_kind_of_part_may_come_from_outside(tmp_path, monkeypatch, words, place):
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    node = ltbench.get_recipe("quickstart", *words).tree(digest_only=True)
    for step in place.split("."):
        node = node[int(step)] if step.isdigit() else node[step]
    assert node["plugin"].startswith("parts.py@")


def test_a_changed_file_is_another_recipe(mine):
    first = ltbench.get_recipe(str(mine / "tail.yaml")).digest
    forget()
    (mine / "tail.py").write_text(CODE + "# changed\n")
    assert ltbench.get_recipe(str(mine / "tail.yaml")).digest != first


def test_a_package_is_hashed_as_a_whole(tmp_path, monkeypatch):
    package = tmp_path / "lab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tail.py").write_text(CODE + "from lab import help\n")
    monkeypatch.chdir(tmp_path)
    found = []
    for text in ("x = 1", "x = 2"):
        (package / "help.py").write_text(text)
        recipe = ltbench.get_recipe("quickstart", "stages.0.method=lab.tail:TailMargin")
        found.append(recipe.stages[0].method.plugin)
        forget()
        for name in ("lab", "lab.help"):
            sys.modules.pop(name, None)
    assert found[0] != found[1]
    assert all(mark.startswith("lab.tail@") for mark in found)


def test_installed_plugins_are_imported_for_an_unknown_name_only(mine, monkeypatch, capsys):
    calls = []

    def entry_points(group):
        calls.append(group)
        return [metadata.EntryPoint("tail", "tail", group), metadata.EntryPoint("b", "gone", group)]

    monkeypatch.setattr(plugins.metadata, "entry_points", entry_points)
    monkeypatch.syspath_prepend(mine)
    ltbench.get_recipe("quickstart")
    assert not calls
    with pytest.warns(UserWarning, match="installed plugin `b` was not imported"):
        recipe = ltbench.get_recipe("quickstart", "stages.0.method=tail_margin")
    assert calls == ["ltbench.plugins"]
    assert recipe.stages[0].method.plugin.startswith("tail.py@")
    code, out, _ = said(capsys, "list", "methods", "tail*")
    assert code == 0
    assert "tail_margin" in out
    assert "(plugin tail.py" in out


# Errors --------------------------------------------------------------------------------------


def test_an_unknown_name_says_how_to_bring_one():
    assert "plugins=FILE" in fails("stages.0.method=tail_margin")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("x = 1\ny = nothing\n", "bad.py, line 2: NameError: name 'nothing' is not defined"),
        ("def f(:\n", "bad.py, line 1: SyntaxError"),
        ("import nothing_here\n", "line 1: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        (
            "from ltbench.methods import METHODS\n\nMETHODS.register('ce')(int)\n",
            "line 3: method `ce` is registered twice",
        ),
    ],
    ids=lambda x: "",
)
def test_a_plugin_that_fails_is_one_line_and_can_be_repaired(tmp_path, code, line):
    (tmp_path / "bad.py").write_text(code)
    assert line in fails(f"plugins={tmp_path}/bad.py")
    (tmp_path / "bad.py").write_text(CODE)
    ltbench.get_recipe("quickstart", f"plugins={tmp_path}/bad.py", "stages.0.method=tail_margin")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["plugins=gone.py"], "there is no plugin file gone.py"),
        (["plugins=~nobody/gone.py"], "there is no plugin file ~nobody/gone.py"),
        (["plugins=gone_module"], "there is no plugin module `gone_module`"),
        (["plugins=3"], "expected files or modules"),
        (["plugins=a-b"], "expected a file that ends in .py or"),
        (["plugins=ltbench.methods"], "is part of ltbench"),
        (["stages.0.method=ltbench.methods.ce:CE"], "is part of ltbench"),
        (["stages.0.method=tail:Nothing"], "has no `Nothing`"),
        (["stages.0.update=tail:TailMargin"], "ltbench.updates.base.Update"),
        (["stages.0.method=os:system"], "ltbench.methods.base.Method"),
        (["stages.0.method.plugin=x"], "is filled in by itself"),
    ],
    ids=lambda x: "",
)
def test_wrong_names(mine, monkeypatch, words, line):
    monkeypatch.chdir(mine)
    assert line in fails(*words)


@pytest.mark.parametrize(
    "note",
    ["", '"""Of\nmine."""\n        '],  # which has less indentation than its class
)
def test_keys_of_a_plugin_are_explained(tmp_path, note):
    code = textwrap.indent(CODE, "    ").replace("strength: float", f"{note}strength: float")
    (tmp_path / "tail.py").write_text(f"if True:\n{code}")
    (tmp_path / "tail.yaml").write_text(RECIPE)
    found = explain(ltbench.get_recipe(tmp_path / "tail.yaml"), ["stages.0.method"])
    keys = {"stages.0.method.plugin", "stages.0.method.strength"}
    assert keys <= {one.key for one in found}


def test_two_plugins_of_one_name_are_refused(mine, tmp_path):
    ltbench.load_plugins(mine / "tail.py")
    (tmp_path / "tail.py").write_text(CODE + "# other\n")
    with pytest.raises(UserError, match="two plugins are called"):
        ltbench.load_plugins(tmp_path / "tail.py")


# What runs code ------------------------------------------------------------------------------


def test_nothing_in_a_description_is_imported(mine, monkeypatch):
    monkeypatch.chdir(mine)
    monkeypatch.syspath_prepend(mine)
    tree = ltbench.get_recipe("quickstart").tree()
    sha256 = "a" * 64
    for method in (
        {"name": "tail:TailMargin"},
        {"name": f"{mine}/tail.py:TailMargin"},
        {"name": "tail:TailMargin", "plugin": f"tail.py@{sha256}"},
        {"name": "os:system"},
    ):
        evil = {**tree, "plugins": ["tail.py", "tail"], "stages": [*tree["stages"]]}
        evil["stages"][0] = {**tree["stages"][0], "method": method}
        with pytest.raises(UserError, match="plugins="):
            build_recipe(evil)
    assert not plugin_modules.FILES
    assert "tail" not in sys.modules


def test_a_recipe_beside_a_published_model_imports_nothing(mine):
    (mine / "config.json").write_text("{}")
    assert "unknown method" in fails(recipe=str(mine / "tail.yaml"))
    assert not plugin_modules.FILES
    ltbench.get_recipe(str(mine / "tail.yaml"), f"plugins={mine}/tail.py")  # named here


def test_a_run_keeps_its_plugin_and_loads_without_the_file(run, capsys):
    tree = json.loads((run / "recipe.json").read_text())["tree"]
    described = json.loads((run / "model.json").read_text())["recipe"]
    record = json.loads((run / "record.json").read_text())["recipe"]["resolved"]
    mark = tree["stages"][0]["method"]["plugin"]
    assert plugins.marks(described) == plugins.marks(record) == [mark]
    assert digest_of(record) == json.loads((run / "recipe.json").read_text())["digest"]
    assert (run / "plugins" / "tail.py").read_text() == CODE
    assert type(ltbench.load(run)).__name__ == "TailMargin"
    forget()
    assert said(capsys, "eval", f"model={run}")[0] == 0


def test_a_changed_copy_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "plugins" / "tail.py").write_text(CODE + "print('changed')\n")
    code, out, err = said(capsys, "eval", f"model={copy}")
    assert code == 2
    assert "was changed since the run" in err
    assert err.count("\n") == 1
    assert "changed\n" not in out


def test_another_hash_is_a_note_only_where_the_plugin_is_named(run, tmp_path, capsys):
    (tmp_path / "tail.py").write_text(CODE + "# newer\n")
    with pytest.warns(UserWarning, match="the recipe says"):
        code, _, _ = said(capsys, "eval", f"model={run}", f"plugins={tmp_path}/tail.py")
    assert code == 0


def test_a_published_model_says_which_plugin_it_needs(run, tmp_path, capsys):
    from ltbench.hub.export import export

    folder = export(run, tmp_path / "published")
    forget()
    (folder / "plugins").mkdir()
    (folder / "plugins" / "tail.py").write_text(CODE)
    (folder / "recipe.json").write_text("{}")
    code, _, err = said(capsys, "eval", f"model=local-dir:{folder}")
    assert code == 2
    assert "comes from plugin tail.py (SHA-256" in err
    assert "plugins=FILE" in err
    assert err.count("\n") == 1
    (tmp_path / "tail.py").write_text(CODE)
    words = (f"model=local-dir:{folder}", f"plugins={tmp_path}/tail.py")
    assert said(capsys, "eval", *words)[0] == 0


def test_a_run_that_cannot_keep_its_plugins_is_one_line(mine, tmp_path):
    folder = RunFolder(ltbench.get_recipe(mine / "tail.yaml", out=str(tmp_path / "run")))
    folder.claim()
    folder.release()
    shutil.rmtree(tmp_path / "run" / "plugins")
    (tmp_path / "run" / "plugins").write_text("")
    try:
        with pytest.raises(UserError, match="cannot write to the output folder"):
            folder.claim()
    finally:
        folder.release()


def test_a_run_is_finished_for_the_same_plugin_only(run, tmp_path):
    (tmp_path / "tail.py").write_text(CODE)
    (tmp_path / "tail.yaml").write_text(RECIPE)
    recipe = ltbench.get_recipe(str(tmp_path / "tail.yaml"), out=str(run))
    assert not ltbench.run(recipe).fresh
    forget()
    (tmp_path / "tail.py").write_text(CODE.replace("0.5", "0.6"))
    with pytest.raises(UserError, match="belongs to"):
        ltbench.run(ltbench.get_recipe(str(tmp_path / "tail.yaml"), out=str(run)))


# Other processes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_travels_to_a_new_process(mine):
    recipe = ltbench.get_recipe(str(mine / "tail.yaml"))
    script = (
        "import pickle, sys; recipe = pickle.load(sys.stdin.buffer); "
        "from ltbench.methods import METHODS; "
        "print(recipe.digest, METHODS.get('tail_margin').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(recipe), capture_output=True, check=True
    )
    assert done.stdout.decode().split() == [recipe.digest, "TailMargin"]


@pytest.mark.slow
def test_several_processes_train_with_a_plugin(mine, tmp_path):
    """A grid with two jobs, and two ranks of one run, end with the same recipe and plugin."""
    recipe = f"recipe={mine / 'tail.yaml'}"
    ltbench_ = [sys.executable, "-m", "ltbench", "run", recipe, "quiet=true"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command in (
        [*ltbench_, "seed=0,1", "jobs=2", f"out={tmp_path / 'grid'}"],
        [*torchrun, *ltbench_[1:], f"out={tmp_path / 'ranks'}", "run.device=cpu"],
    ):
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    assert sorted(record["seed"] for record in records) == [0, 0, 1]
    assert len({record["recipe"]["digest"] for record in records}) == 1
    copies = {path.read_text() for path in tmp_path.rglob("plugins/tail.py")}
    assert copies == {CODE}


@pytest.mark.slow
def test_a_wheel_announces_its_plugin(tmp_path):
    """An installed package is found by its entry point, in a process that names no plugin."""
    pytest.importorskip("hatchling", reason="the build back end is needed to build a wheel")
    from hatchling.builders.wheel import WheelBuilder

    source = tmp_path / "source"
    source.mkdir()
    (source / "lab_tail.py").write_text(CODE)
    (source / "pyproject.toml").write_text(
        """
[project]
name = "lab-tail"
version = "1.0"
[project.entry-points."ltbench.plugins"]
tail = "lab_tail"
[tool.hatch.build.targets.wheel]
include = ["lab_tail.py"]
"""
    )
    (wheel,) = WheelBuilder(str(source)).build(directory=str(tmp_path), versions=["standard"])
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), wheel], check=True)
    words = ["run", "recipe=quickstart", "stages.0.method=tail_margin", "dry_run=true"]
    done = subprocess.run(
        [sys.executable, "-m", "ltbench", *words],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was trained" in done.stdout


# The leaderboard -----------------------------------------------------------------------------


def test_the_leaderboard_takes_marks_and_verifies_outside_code(run, tmp_path):
    from ltbench.leaderboard import reproduce, tables
    from ltbench.leaderboard.submit import submit
    from ltbench.leaderboard.verify import verify
    from ltbench.records.record import load_content

    done = submit(run, folder=tmp_path)
    assert done.record.status == "claimed"
    forget()
    (row,) = (row for row in tables.board_rows(tmp_path) if row.get("records"))
    (mark,) = plugins.marks(done.record.recipe.resolved)
    assert plugins.title(mark) in row["note"]
    assert "plugins=tail.py" in reproduce.command(row["records"]).split()
    steps = verify(load_content(done.path), others=[]).steps
    assert steps[0].state == "not run"
    assert "plugin tail.py" in steps[0].text
    assert "plugins=FILE" in steps[0].text
    (tmp_path / "tail.py").write_text(CODE)
    ltbench.load_plugins(tmp_path / "tail.py")
    steps = verify(load_content(done.path), others=[]).steps
    assert (steps[0].state, steps[0].name) == ("passed", "digest")


@pytest.mark.slow
def test_the_page_shows_outside_code(run, tmp_path):
    from ltbench.leaderboard.page import build_page
    from ltbench.leaderboard.submit import submit

    done = submit(run, folder=tmp_path)
    (mark,) = plugins.marks(done.record.recipe.resolved)
    page = build_page(tmp_path)
    assert f"outside code: {plugins.title(mark)}" in page
    assert "plugins=tail.py" in page


def test_parts_registered_in_a_script_count_as_outside(monkeypatch):
    module = types.ModuleType("lab_script")
    monkeypatch.setitem(sys.modules, "lab_script", module)
    exec(CODE, module.__dict__)
    recipe = ltbench.get_recipe("quickstart", "stages.0.method=tail_margin")
    assert recipe.stages[0].method.plugin == "lab_script@unknown"


# ltbench new ---------------------------------------------------------------------------------


def test_a_new_method_comes_with_a_test_and_a_recipe_that_pass(tmp_path, capsys):
    out = tmp_path / "mine"
    assert said(capsys, "new", "method", "my_margin", f"out={out}")[0] == 0
    texts = {path.name: path.read_text() for path in out.iterdir()}
    assert set(texts) == {"my_margin.py", "my_margin.yaml", "test_my_margin.py"}
    assert not any(word in text for text in texts.values() for word in ("NAME", "TITLE", "CLASS"))
    tests = runpy.run_path(str(out / "test_my_margin.py"))
    tests["test_the_loss_has_one_finite_row_per_image_and_a_gradient"]()
    tests["test_it_trains_evaluates_and_loads"](tmp_path)
    recipe = ltbench.get_recipe(str(out / "my_margin.yaml"))
    assert [stage.epochs for stage in recipe.stages] == [1]


def test_a_new_method_replaces_nothing(tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "test_x.py").write_text("mine")
    code, _, err = said(capsys, "new", "method", "x", f"out={out}")
    assert code == 2
    assert "is not replaced" in err
    assert [path.name for path in out.iterdir()] == ["test_x.py"]
    for name in ("ce", "Bad", "../x", "class", "1x", "none", "rows", "json", "safetensors"):
        assert said(capsys, "new", "method", name, f"out={tmp_path / 'y'}")[0] == 2
    assert not (tmp_path / "y").exists()

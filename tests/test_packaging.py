"""The wheel works from an empty folder, and imports stay light."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code: str, **kw) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **kw
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_and_list_do_not_import_torch():
    words = (["list"], ["list", "methods"], ["list", "backbones"], ["list", "solvers"])
    python(
        "import sys, ltbench\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
        "from ltbench.cli import main\n"
        f"for words in {words!r}:\n"
        "    try: main(words)\n"
        "    except SystemExit as e: assert not e.code, e.code\n"
        "    heavy = {'torch', 'timm', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)"
    )


@pytest.mark.slow  # by default the other order is tested: tests/models/test_cifar_resnet.py
def test_timm_knows_our_models_when_it_is_imported_first():
    python(
        "import timm, ltbench\n"
        "m = timm.create_model('resnet32_cifar', num_classes=10); assert m.fc.out_features == 10"
    )


def build(tmp_path: Path) -> Path:
    pytest.importorskip("hatchling", reason="the build back end is needed to build a wheel")
    from hatchling.builders.wheel import WheelBuilder

    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path))))


def test_wheel_holds_recipes_and_leaderboard_and_runs_from_an_empty_folder(tmp_path):
    wheel = build(tmp_path)
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    recipes = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*.yaml")}
    assert len(recipes) > 300
    assert {f"ltbench/_{path}" for path in recipes} <= set(names)
    assert "ltbench/_leaderboard/published.csv" in names
    assert not [n for n in names if n.startswith(("tests/", "runs/"))]

    # A clean environment that borrows the dependencies of this one and has no checkout in sight.
    env = tmp_path / "env"
    venv.create(env, with_pip=False)
    site = next((env / "lib").glob("python*/site-packages"))
    (site / "deps.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    with zipfile.ZipFile(wheel) as z:
        z.extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = [
        str(env / "bin" / "python"),
        "-I",  # whatever PYTHONPATH says, only what is installed counts
        "-c",
        "import ltbench, sys; from ltbench.cli import main; "
        "assert 'site-packages' in ltbench.__file__ and '/env/' in ltbench.__file__; "
        "[main(words.split()) for words in sys.argv[1:]]",
    ]
    commands = {
        "list recipes quick*": "quickstart",
        "show recipe=mislas_plot_inat": "digest",
        "leaderboard dataset=inat": "MiSLAS",
    }
    done = subprocess.run([*run, *commands], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for expected in commands.values():
        assert expected in done.stdout


def test_version_and_bounds():
    tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in project["dependencies"]:
        line = next(x for x in text.splitlines() if f'"{requirement}"' in x)
        assert "#" in line, f"{requirement} has no reason"
    pins = (ROOT / "constraints.txt").read_text()
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=!~\[]", requirement)[0]
        assert re.search(rf"^{re.escape(name)}==", pins, re.MULTILINE | re.IGNORECASE), name
    changes = (ROOT / "CHANGELOG.md").read_text()
    import ltbench

    assert f"## {ltbench.__version__}" in changes

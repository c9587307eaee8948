"""Commands that compute nothing answer without importing torch, torchvision or timm."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import contextlib, io, sys
import ltbench
from ltbench.cli import main

def say(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words.split())
            code = 0
        except SystemExit as end:
            code = end.code or 0
    heavy = {'torch', 'torchvision', 'timm'} & set(sys.modules)
    assert not heavy, f'`{words}` imports {heavy}'
    return code, err.getvalue()

for words in %(right)r:
    assert say(words) == (0, ''), words
for words, line in %(wrong)r:
    code, said = say(words)
    assert code == 2 and line in said, f'`{words}`: {said}'

from ltbench.config.registry import HOMES, registry
for table in HOMES:
    for name in registry(table).names() if table != 'BACKBONES' else []:
        registry(table).options(name)
        assert 'torch' not in sys.modules, (
            f'the options of `{name}` import torch: see HOMES and `Registry.options`, or import '
            'torch inside the functions that need it'
        )
"""
RIGHT = [
    "show recipe=mislas_plot_inat",
    "show recipe=ce_cifar10_if50 stages.0.update=plot stages.0.update.solver=torchjd",
    "show key=stages.0.update.rho",
    "list methods --help",
    "compare crt_mixup_cifar100 crt_mixup_plot_cifar100 baseline=crt_mixup_cifar100",
    "bench --help",
    "bench plot --help",
    "bench train --help",
]
ONE, TWO = "recipe=focal_cifar100", "recipe=crt_mixup_cifar10"
WRONG = [  # words, and what is said
    (f"show {ONE} stages.0.method.gama=1", "did you mean `gamma`"),
    (f"run {ONE} stages.0.method.gama=1", "did you mean `gamma`"),
    (f"run {ONE} stages.0.method=fokal", "did you mean `focal`"),
    (f"run {ONE} stages.0.update=plot stages.0.update.foo=1", "`stages.0.update.foo`: unknown key"),
    (f"run {ONE} stages.0.update=sam stages.0.update.rho=-1", "`stages.0.update.rho`"),
    (f"run {ONE} stages.0.update=plot stages.0.update.epochs=9999", "longer than the stage"),
    (
        f"run {ONE} stages.0.update=plot stages.0.update.solver=cagrad stages.0.update.solver.d=1",
        "`stages.0.update.solver.d`: unknown key",
    ),
    (
        f"run {ONE} stages.0.update=plot stages.0.update.class_gradients=certified "
        "stages.0.update.solver=torchjd",
        "requires solver cagrad with c > 0 or mgda",
    ),
    (f"run {TWO} stages.1.sampler.per_clas=2", "did you mean `per_class`"),
    (f"run {TWO} stages.1.method=tau_norm", "does not train; leave it out"),
    (f"run {TWO} stages.1.epochs=null", "required, because method `crt` trains"),
    (f"run {ONE} stages.0.optim.lrr=1", "did you mean `lr`"),
    ("run", "expected `recipe=...`"),
    ("run recipe=quikstart", "did you mean `quickstart`"),
    ("run recipe=quickstart data.imbalance_ratio=x", "`data.imbalance_ratio`"),
    (f"run {ONE}", "data.root=DIR"),
    (f"run {ONE} data.root=nowhere", "nowhere"),
    ("run recipe=focal_cifar100,ce_cifar10 stages.0.method.gama=1", "ce_cifar10: `stages.0.meth"),
    ("run recipe=focal_cifar100,ce_cifar10 seed=0,1", "ce_cifar10, seed 1: cifar10_lt needs"),
    ("run grid=grid.yaml", "focal_cifar100: `stages.0.method.gama`"),
    ("run grid=gone.yaml", "gone.yaml"),
    ("bench plot wat=steps", "did you mean `what`"),
    ("bench plot what=agreement", "needs `model="),
    ("bench train recipe=quickstart stages.0.method.alfa=1", "did you mean `alpha`"),
    ("bench train recipe=quickstart stage=7", "expected a stage"),
    (f"bench train {ONE}", "data.root=DIR"),
    ("eval modle=x", "did you mean `model`"),
    ("data show .", ""),
    ("data prepare dataset=inat18", ""),
    ("diagnose model=a wat=norms", "did you mean `what`"),
    ("leaderboard datset=cifar10", "did you mean `dataset`"),
    ("publish run=x", ""),
]


def test_what_computes_nothing_does_not_import_torch(tmp_path):
    (tmp_path / "grid.yaml").write_text("recipes: [focal_cifar100]\nset: {stages.0.method.gama: 1}")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % {"right": RIGHT, "wrong": WRONG}],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr

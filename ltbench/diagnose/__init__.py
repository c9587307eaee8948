"""Diagnostics of trained models: tables, figures and a report, including the figures of PLOT.

Each diagnostic is a class in its own module; `base.py` defines its interface, `run.py` runs
diagnostics on one or several models. Modules are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltbench.config.registry import Registry

if TYPE_CHECKING:
    from ltbench.diagnose.base import Diagnostic

_BUILTIN = {
    "conflicts": "ltbench.diagnose.conflicts:Conflicts",
    "trajectory": "ltbench.diagnose.trajectory:Trajectory",
    "hessian": "ltbench.diagnose.hessian:Hessian",
    "landscape": "ltbench.diagnose.landscape:Landscape",
    "tsne": "ltbench.diagnose.tsne:Tsne",
    "cca": "ltbench.diagnose.cca:Cca",
    "norms": "ltbench.diagnose.norms:Norms",
    "calibration": "ltbench.diagnose.calibration:Calibration",
    "errors": "ltbench.diagnose.errors:Errors",
    "shift": "ltbench.diagnose.shift:Shift",
    "openset": "ltbench.diagnose.openset:Openset",
    "cost": "ltbench.diagnose.cost:Cost",
}
ORDER = tuple(_BUILTIN)  # order of the sections in a report
WITH_CLAIMS = ("conflicts", "trajectory", "hessian", "cca", "openset")  # see `claims.py`
PAGE = "report.html"
DIAGNOSTICS: Registry[type[Diagnostic]] = Registry("diagnostic", _BUILTIN)

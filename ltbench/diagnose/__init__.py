"""Questions asked of trained models: the figures of the PLOT paper and more, as numbers, pictures
and one page.

A diagnostic is a class in a module of its own; `base.py` says what it must do, `run.py` runs some
of them on one or several models. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltbench.registry import Registry

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
ORDER = tuple(_BUILTIN)  # in which a page has them
DIAGNOSTICS: Registry[type[Diagnostic]] = Registry("diagnostic", _BUILTIN)

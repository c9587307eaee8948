from __future__ import annotations

from ltbench.config.schema import Config
from ltbench.errors import UserError
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.mgda import MGDA


def check_certifiable(name: str, options: Config) -> None:
    """Check that a solver's optimality can be certified.

    Args:
        name: what recipes call the solver.
        options: its options.

    Raises:
        UserError: it cannot; names the solvers for which it can.
    """
    known = isinstance(options, CAGrad.Config) and options.c > 0
    known |= isinstance(options, MGDA.Config) and options.normalization == "none"
    if not known:
        raise UserError(
            "`class_gradients: certified` requires solver cagrad with c > 0 or mgda without "
            f"normalisation, found {name}; use one of them, or "
            "`class_gradients` = exact or fast"
        )

"""Multi-objective solvers on a Gram matrix, usable in any training loop.

Example, with G the inner products of three task gradients held as rows of ``grads``:

    >>> import numpy as np
    >>> from ltbench import moo
    >>> grads = np.array([[1.0, 0.2, 0.0], [-0.6, 1.0, 0.3], [0.1, -0.9, 1.2]])
    >>> gram = grads @ grads.T
    >>> moo.similarity(gram).conflicts
    3
    >>> solution = moo.cagrad(gram, c=0.5)
    >>> direction = solution.coefficients @ grads  # write this into .grad, then step
    >>> bool((grads @ direction > 0).all())  # no task gets worse
    True
"""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike
from pydantic import ValidationError

from ltbench.config.registry import Registry
from ltbench.errors import UserError
from ltbench.moo.base import Solution, Solver
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.conflict import Similarity, measure
from ltbench.moo.epo import EPO
from ltbench.moo.mgda import MGDA
from ltbench.moo.pcgrad import PCGrad

# The modules above are loaded before the functions below take their names, and importing a module
# again does not rebind its name: `ltbench.moo.cagrad` is the function.

__all__ = ["Similarity", "Solution", "Solver", "cagrad", "epo", "mgda", "pcgrad", "similarity"]

SOLVERS: Registry[type[Solver]] = Registry(
    "solver",
    {
        "mean": "ltbench.moo.mean:Mean",
        "cagrad": "ltbench.moo.cagrad:CAGrad",
        "mgda": "ltbench.moo.mgda:MGDA",
        "pcgrad": "ltbench.moo.pcgrad:PCGrad",
        "epo": "ltbench.moo.epo:EPO",
        "slsqp": "ltbench.moo.slsqp:SLSQP",
        "torchjd": "ltbench.moo.torchjd:TorchJD",
    },
)


def cagrad(
    gram: ArrayLike,
    c: float = 0.5,
    preference: ArrayLike | None = None,
    rescale: Literal["none", "sum", "official"] = "none",
) -> Solution:
    """Return CAGrad's coefficients for a Gram matrix [K, K]; see `CAGrad` for the options."""
    try:
        config = CAGrad.Config(c=c, rescale=rescale)
    except ValidationError as error:
        raise _mistake(error) from None
    return CAGrad(config).solve(gram, preference=preference)


def mgda(
    gram: ArrayLike,
    normalization: Literal["none", "l2", "loss", "loss+"] = "none",
    losses: ArrayLike | None = None,
) -> Solution:
    """Return the minimum-norm coefficients for a Gram matrix [K, K]; see `MGDA`."""
    try:
        config = MGDA.Config(normalization=normalization)
    except ValidationError as error:
        raise _mistake(error) from None
    return MGDA(config).solve(gram, losses=losses)


def pcgrad(gram: ArrayLike, seed: int = 0) -> Solution:
    """Return PCGrad's coefficients for a Gram matrix [K, K], in the random order of ``seed``."""
    return PCGrad(PCGrad.Config()).solve(gram, seed=seed)


def epo(gram: ArrayLike, losses: ArrayLike, preference: ArrayLike | None = None) -> Solution:
    """Return EPO's coefficients for a Gram matrix [K, K] and losses [K]; see `EPO`."""
    return EPO(EPO.Config()).solve(gram, losses=losses, preference=preference)


def similarity(gram: ArrayLike) -> Similarity:
    """Return cosines, conflicting pairs and dominated conflicts for a Gram matrix [K, K]."""
    return measure(gram)


def _mistake(error: ValidationError) -> UserError:
    lines = (f"`{e['loc'][0]}`: {e['msg']}, found {e['input']!r}" for e in error.errors())
    return UserError("; ".join(lines))

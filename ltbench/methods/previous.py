from __future__ import annotations

from ltbench.errors import UserError
from ltbench.methods.base import Method


def require_previous(name: str, previous: Method | None) -> Method:
    """Return the method of the stage before, which method ``name`` cannot do without.

    Raises:
        UserError: there is none.
    """
    if previous is None:
        raise UserError(
            f"method `{name}` continues a trained model, found it in the first stage; "
            "put a stage before it, e.g. `ce`"
        )
    return previous

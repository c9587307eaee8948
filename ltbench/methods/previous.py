from __future__ import annotations

from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.models.heads import CosineHead


def continued_cosine(
    previous: Method | None, num_features: int, num_classes: int, scale: float
) -> CosineHead:
    """Return the previous classifier if it is a cosine with this scale, else a new one."""
    head = None if previous is None else previous.head
    if isinstance(head, CosineHead) and head.scale == scale:
        return head
    return CosineHead(num_features, num_classes, scale)


def require_previous(name: str, previous: Method | None) -> Method:
    """Return the method of the previous stage, required by method ``name``.

    Raises:
        UserError: there is no previous stage.
    """
    if previous is None:
        raise UserError(
            f"method `{name}` continues a trained model, but is in the first stage; "
            "put a stage before it, e.g. `ce`"
        )
    return previous

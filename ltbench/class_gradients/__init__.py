"""Class gradients of a batch, at the cost of about one extra backward pass.

Example, agreement of the classes of a batch in the last stage of a network:

    >>> import torch
    >>> from torch.nn import functional as F
    >>> from ltbench import class_gram, create_model, moo
    >>> model = create_model("resnet20_cifar", num_classes=10)
    >>> images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    >>> def rows():
    ...     return F.cross_entropy(model(images), labels, reduction="none")
    >>> gram, classes = class_gram(model[0].net.layer3, rows, labels, model=model, mode="fast")
    >>> moo.similarity(gram).cosine.shape
    (10, 10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.class_gradients.engine import Engine, Pass
from ltbench.class_gradients.gram import with_exact_sum
from ltbench.errors import UserError
from ltbench.moo.base import Vector

__all__ = ["Engine", "Pass", "class_gram"]


def class_gram(
    part: nn.Module | Iterable[nn.Parameter],
    rows: Callable[[], Tensor],
    labels: Tensor,
    *,
    model: nn.Module | None = None,
    mode: Literal["exact", "fast"] = "exact",
) -> tuple[Vector, Vector]:
    """Return inner products of the gradients of all classes in a batch.

    A class's objective is the sum of its rows over the number of all rows, as in PLOT, so that
    the gradients add up to that of the mean. The weights and their ``.grad`` are not changed.

    Reference: Zhou et al., Pareto Deep Long-Tailed Recognition, ICLR 2024, Definitions 2.1-2.2.
    Departures: none known in ``exact``; ``fast`` is approximate, see ``Engine``.

    Args:
        part: module or parameters to differentiate.
        rows: runs the model and returns the loss of each image [B]; called once.
        labels: class of each image [B].
        model: the whole network; required by ``fast`` if ``part`` is not all of it.
        mode: ``exact`` is one backward pass per class, ``fast`` a single one.

    Returns:
        The Gram matrix [K, K] in float64, and the classes present, ascending [K].

    Raises:
        UserError: the numbers of rows and labels differ, or ``fast`` is not supported.
    """
    parameters = list(part.parameters() if isinstance(part, nn.Module) else part)
    if model is None:
        model = part if isinstance(part, nn.Module) else nn.ParameterList(parameters)
    classes, place = torch.unique(labels, return_inverse=True)
    engine, size = Engine(model, parameters), len(classes)
    with engine.recording():
        loss = rows()
    if loss.shape != labels.shape:
        raise UserError(
            f"expected one loss per label {list(labels.shape)}, found {list(loss.shape)}; "
            "`rows` must return unreduced losses"
        )
    weight = torch.full_like(loss.detach(), 1 / max(1, len(loss)))
    one = Pass(lambda: (loss, None), place, weight, weight, loss=(loss, None))
    if mode == "exact":
        return engine.exact([one], size).cpu().numpy(), classes.cpu().numpy()
    if not engine.supports_fast(one):
        raise UserError(f"fast class gradients cannot be used: {engine.problem}; use mode='exact'")
    products = engine.fast([one], size, [], additive=True)[1].cpu().numpy()
    engine.release()
    known = np.append(np.arange(size), size + 1)  # the row in between is empty here
    return with_exact_sum(products[np.ix_(known, known)]), classes.cpu().numpy()

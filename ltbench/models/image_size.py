"""Networks of a fixed image size: one line instead of torch's error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltbench.errors import UserError, visible

ERRORS = (AssertionError, RuntimeError, ValueError, IndexError)


def size_problem(error: Exception, backbone: nn.Module, images: Tensor) -> UserError | None:
    """Return the ``UserError`` that explains an error, if the network refuses images of that size.

    Args:
        error: raised by a pass.
        backbone: maps images to features; its mode is restored.
        images: of the pass [B, 3, H, W].
    """
    if isinstance(error, torch.OutOfMemoryError | UserError) or images.ndim != 4:
        return None
    modes = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad():
            backbone.eval()(images[:1])
    except ERRORS:
        pass
    else:
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode
    height, width = images.shape[2:]
    own = own_size(backbone)
    sizes = f"={own}" if own else ""
    reason = visible(str(error).partition("\n")[0]).rstrip(".")
    return UserError(
        f"the network does not take images of {height} x {width} pixels ({reason}); set "
        f"`data.image_size{sizes}`, or for a new network `backbone.args.img_size={height}`"
    )


def check_size(backbone: nn.Module, images: Tensor) -> None:
    """Check that a network takes images of this size.

    Args:
        backbone: maps images to features; its mode is restored.
        images: at least one [B, 3, H, W].

    Raises:
        UserError: it does not.
    """
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(images[:1])
    except ERRORS as error:
        raise size_problem(error, backbone, images) or error from error
    finally:
        backbone.train(training)


def own_size(backbone: nn.Module) -> int | None:
    """Return the image size that a network was built for, if it has a fixed one."""
    embed = getattr(getattr(backbone, "net", None), "patch_embed", None)
    size = getattr(embed, "img_size", None)
    return int(size[0]) if isinstance(size, tuple) and size else None

"""What methods need that look at, or train, something of their own before a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside, modules are in evaluation mode; afterwards each part is in the mode it had."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


class InnerAdam(nn.Module):
    """Adam for parameters that a method trains itself, with its state in the method's state dict.

    Args:
        parameters: what will be trained; given again to each step, in the same order.
        lr: learning rate.
        weight_decay: added to the gradient, times the parameter.
    """

    steps: Tensor

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, (0.9, 0.999), 1e-8
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for i, p in enumerate(parameters):
            self.register_buffer(f"mean_{i}", torch.zeros_like(p.detach()))
            self.register_buffer(f"square_{i}", torch.zeros_like(p.detach()))

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Change parameters in place."""
        self.steps += 1
        first, second = self.betas
        for i, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            mean, square = self.get_buffer(f"mean_{i}"), self.get_buffer(f"square_{i}")
            g = gradient + self.weight_decay * p
            mean.lerp_(g, 1 - first)
            square.mul_(second).addcmul_(g, g, value=1 - second)
            steps = self.steps.to(p.dtype)
            root = (square / (1 - second**steps)).sqrt() + self.eps
            p.sub_(self.lr * (mean / (1 - first**steps)) / root)

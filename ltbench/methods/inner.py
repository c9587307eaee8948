"""Inner optimisation and evaluation inside a method's step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Context manager that puts modules in evaluation mode and restores their modes on exit."""
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
        parameters: the parameters to train; pass them to each step in the same order.
        lr: learning rate.
        weight_decay: L2 penalty, added to the gradient.
    """

    steps: Tensor

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__()
        self.lr, self.weight_decay = lr, weight_decay
        self.register_buffer("steps", torch.zeros(()))
        for i, p in enumerate(parameters):
            self.register_buffer(f"mean_{i}", torch.zeros_like(p.detach()))
            self.register_buffer(f"square_{i}", torch.zeros_like(p.detach()))

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Update the parameters in place."""
        steps = [self.steps.clone() for _ in parameters]
        on_gpu = self.steps.device.type == "cuda"  # there, the host does not wait for the step
        adam(
            list(parameters),
            list(gradients),
            [self.get_buffer(f"mean_{i}") for i in range(len(parameters))],
            [self.get_buffer(f"square_{i}") for i in range(len(parameters))],
            [],
            steps,
            foreach=on_gpu,
            capturable=on_gpu,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        self.steps.copy_(steps[0])

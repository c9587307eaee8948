from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.losses import cross_entropy_rows
from ltbench.losses.adaptive import difficulty_weights, driver_loss
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows, Stream
from ltbench.methods.inner import InnerAdam, evaluating
from ltbench.models.batchnorm import frozen_statistics

make_dual: Any = forward_ad.make_dual  # untyped in torch
unpack_dual: Any = forward_ad.unpack_dual


class DifficultyNet(Method):
    """Cross-entropy with class weights that a small meta-trained network predicts from accuracies.

    Before each step the network is trained on a balanced meta batch: the weights should lower the
    meta loss after a step and stay near the difficulties given by the accuracies (driver loss).

    Reference: Sinha and Ohashi, Difficulty-Net: Learning to Predict Difficulty for Long-Tailed
        Recognition, WACV 2023, arXiv:2209.02960.
    Departures: in the authors' code no gradient of the meta loss reaches the network, which is
        `meta_gradient: false`; the default is the paper's. Meta images are those of the data
        set's validation split if it has one, else class-aware draws of the training images, where
        the authors hold out balanced images. Accuracies are those on the meta batches of an
        epoch. The gradient through the virtual step is exact, by one forward-mode pass. With
        gradient accumulation each micro-batch has its own meta step.
    """

    kind: ClassVar[Kind] = "meta"
    streams: ClassVar[Mapping[str, Stream]] = {"meta": Stream("class_aware", split="val")}
    freeze: ClassVar[tuple[str, ...]] = ("net",)

    Config = options.DifficultyNet
    config: options.DifficultyNet
    accuracy: Tensor
    right: Tensor
    seen: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the network, its optimizer state and the accuracy counters."""
        cfg, classes = self.config, self.info.num_classes
        widths = [classes, *[cfg.hidden] * cfg.layers]
        hidden = [
            layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b, bias=False), nn.ReLU())
        ]
        self.net = nn.Sequential(*hidden, nn.Linear(cfg.hidden, classes, bias=False))
        self.adam = InnerAdam(list(self.net.parameters()), cfg.lr, cfg.weight_decay)
        self.register_buffer("accuracy", torch.zeros(classes))
        self.register_buffer("right", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def on_epoch(self, at: Progress) -> None:
        """Update the class accuracies from the previous epoch; they start at zero.

        A class without meta images keeps its previous accuracy.
        """
        found = self.right / self.seen.clamp(min=1)
        self.accuracy.copy_(torch.where(self.seen > 0, found.to(self.accuracy), self.accuracy))
        self.right.zero_()
        self.seen.zero_()

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Train the network on the meta batch and compute new class weights."""
        self.count(batch.streams["meta"])
        with torch.enable_grad():
            names = [name for name, _ in self.net.named_parameters()]
            own = [p.detach().requires_grad_() for p in self.net.parameters()]
            inner = dict(zip(names, own, strict=True))
            difficulty = functional_call(self.net, inner, (self.accuracy,)).sigmoid()
            weights = difficulty_weights(difficulty)
            objective = self.config.lam * driver_loss(difficulty, self.accuracy)
            if self.config.meta_gradient:
                slopes = self.meta_slopes(batch, weights.detach(), at.lr)
                objective = objective + (slopes.to(weights) * weights).sum()
            gradients = torch.autograd.grad(objective, own)
        self.adam.step(list(self.net.parameters()), gradients)
        with torch.no_grad():
            weights = difficulty_weights(self.net(self.accuracy).sigmoid())
        return replace(batch, extra={**batch.extra, "class_weights": weights})

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, weighted by class."""
        logits = self.predict(batch.views[0])
        rows = cross_entropy_rows(logits, batch.labels)
        weight = batch.extra["class_weights"].to(rows)[batch.labels]
        return Rows(rows, batch.labels, images=len(rows), weight=weight, logits=logits.detach())

    @torch.no_grad()
    def count(self, meta: Batch) -> None:
        """Count correctly classified meta images of all ranks, by class."""
        with evaluating(self):
            hits = (self.predict(meta.views[0]).argmax(dim=1) == meta.labels).long()
        found = torch.stack([self.right.new_zeros(len(self.right)) for _ in range(2)])
        found[0].index_add_(0, meta.labels, hits)
        found[1].index_add_(0, meta.labels, torch.ones_like(hits))
        ranks.all_reduce_(found)
        self.right += found[0]
        self.seen += found[1]

    def meta_slopes(self, batch: Batch, weights: Tensor, lr: float) -> Tensor:
        """Return the derivative of the meta loss after a virtual step by the class weights [C].

        The virtual step is theta - lr * sum_k w_k G_k, where G_k is the gradient of class k's part
        of the batch loss; the derivative is -lr <G_k, gradient of the meta loss after the step>.

        Args:
            batch: this rank's part of the global batch, with its meta batch.
            weights: class weights [C].
            lr: learning rate of the virtual step.
        """
        images, labels = batch.views[0], batch.labels
        meta = batch.streams["meta"]
        sizes = to_device(torch.tensor([len(labels), len(meta.labels)]), labels.device)
        ranks.all_reduce_(sizes)
        trained = {n: p for n, p in self.named_parameters() if p.requires_grad}
        with frozen_statistics(self):
            rows = cross_entropy_rows(self.predict(images), labels)
            total = (weights.to(rows)[labels] * rows).sum() / sizes[0]
            step = _filled(trained, total)
            moved = {
                n: (p.detach() - lr * g).requires_grad_()
                for (n, p), g in zip(trained.items(), step, strict=True)
            }
            after = cross_entropy_rows(functional_call(self, moved, (meta.views[0],)), meta.labels)
            wish = _filled(moved, after.sum() / sizes[1])
            with torch.no_grad(), forward_ad.dual_level():
                dual = {
                    n: make_dual(p.detach(), u)
                    for (n, p), u in zip(trained.items(), wish, strict=True)
                }
                logits = functional_call(self, dual, (images,))
                slope = unpack_dual(cross_entropy_rows(logits, labels)).tangent
        slopes = weights.new_zeros(len(weights)).index_add(0, labels, slope.to(weights))
        return ranks.all_reduce_(-lr * slopes / sizes[0])


def _filled(parameters: Mapping[str, Tensor], loss: Tensor) -> list[Tensor]:
    """Return the gradients of a loss, summed over ranks; zero for unused parameters."""
    wanted = list(parameters.values())
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]
    ranks.all_reduce_each_(filled)
    return filled

"""Which images an epoch visits, in which order: pure functions of labels, seed and epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from ltbench import registries, schema
from ltbench.data.frequencies import class_probabilities as class_probabilities
from ltbench.data.frequencies import image_weights as image_weights
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_permutation, keyed_uniform


def class_aware_cycle(
    labels: np.ndarray, per_class: int, length: int, rng: random.Random
) -> np.ndarray:
    """Draw from an endless shuffled cycle over classes, each an endless shuffled cycle of images.

    Every visit to a class takes ``per_class`` images of it; a cycle is shuffled again when it is
    used up. Classes without images are left out.

    Reference:
        Shen et al., Relay Backpropagation for Effective Learning of Deep Convolutional Neural
        Networks, ECCV 2016, arXiv:1512.05830, Section 3.3; the order of random numbers is that
        of the code of Kang et al., ICLR 2020, arXiv:1910.09217.

    Departures:
        none known from that code; for the same state of ``rng`` the indices are equal.

    Args:
        labels: class of each image, int [N].
        per_class: images per visit to a class, at least 1.
        length: number of draws.
        rng: source of the shuffles.

    Returns:
        Indices, int64 [length].
    """
    counts = np.bincount(labels)
    cycles: np.ndarray = np.argsort(labels, kind="stable").astype(np.int64)  # class after class
    start = np.cumsum(counts) - counts
    at = counts.copy()  # next place in each class's cycle; its end: shuffle first
    classes = np.flatnonzero(counts).tolist()
    drawn = np.empty((-(-length // (len(classes) * per_class)), len(classes), per_class), np.int64)
    for cycle in drawn:
        rng.shuffle(classes)
        visited = np.array(classes)
        places = start[visited] + at[visited]
        at[visited] += per_class
        whole = at[visited] <= counts[visited]
        cycle[whole] = cycles[places[whole, None] + np.arange(per_class)]
        for row in np.flatnonzero(~whole).tolist():  # these use their cycles up, in this order
            c = classes[row]
            mine = cycles[start[c] : start[c] + counts[c]]
            held = mine.tolist()
            place = int(at[c]) - per_class
            taken = held[place:]
            while (missing := per_class - len(taken)) > 0:
                rng.shuffle(held)
                taken += held[:missing]
                at[c] = min(missing, len(held))
            mine[:] = held
            cycle[row] = taken
    return drawn.reshape(-1)[:length]


class Sampler:
    """Decides the global order of an epoch; slicing by rank and batching happen elsewhere."""

    class Config(schema.Config):
        """Options of the sampler."""

    def __init__(self, config: schema.Config | None = None) -> None:
        self.config = self.Config() if config is None else config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return the indices that one epoch visits, in order.

        Args:
            labels: class of each training image, int64 [N], N > 0.
            seed: which sequence of epochs.
            epoch: 0-based epoch.
            epochs: number of epochs, for samplers that change over training.
            batch_size: global batch, for samplers whose epoch is a number of batches.

        Returns:
            Indices, int64; how many depends on the sampler.
        """
        raise NotImplementedError


class Instance(Sampler):
    """Every image once per epoch, shuffled."""

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return a permutation of all images; see ``Sampler.order``."""
        return keyed_permutation(derive(seed, "order", epoch), len(labels))


class ClassAware(Sampler):
    """Equally many draws of every class, by shuffled cycles over classes and their images."""

    class Config(schema.Config):
        """Options of class-aware sampling."""

        per_class: int = Field(4, ge=1)
        """Images per visit to a class: 4 in cRT and MiSLAS, 1 in PLOT and CC-SAM."""
        length: Literal["images", "batches", "mislas", "oversample"] = "images"
        """Draws per epoch for n images, batch B and C classes: images = n (PLOT); batches =
        floor(n/B) B (cRT); mislas = (ceil(n/B) + 1) B; oversample = C times the largest class."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return the draws of one epoch; see ``Sampler.order``.

        Raises:
            UserError: ``length`` is ``"batches"`` and there are fewer images than a batch.
        """
        length = self._length(labels, batch_size)
        if length == 0:
            raise UserError(
                f"sampler length `batches` needs at least one batch of {batch_size} images, "
                f"found {len(labels)}; lower batch_size or use length `images`"
            )
        rng = random.Random(derive(seed, "order", epoch))
        return class_aware_cycle(labels, self.config.per_class, length, rng)

    def _length(self, labels: np.ndarray, batch_size: int) -> int:
        n = len(labels)
        if self.config.length == "batches":
            return n // batch_size * batch_size
        if self.config.length == "mislas":
            return (math.ceil(n / batch_size) + 1) * batch_size
        if self.config.length == "oversample":
            counts = np.bincount(labels)
            return int(np.count_nonzero(counts) * counts.max())
        return n


class Power(Sampler):
    """Classes in proportion to a power of their counts, with replacement."""

    class Config(schema.Config):
        """Options of power sampling."""

        exponent: float = Field(0.5, ge=-2, le=2)
        """1 is instance sampling, 0.5 square-root, 0 class-balanced, -1 reversed."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``."""
        p = class_probabilities(np.bincount(labels), "power", exponent=self.config.exponent)
        return _draw(labels, p, seed, epoch)


class SquareRoot(Sampler):
    """Classes in proportion to the square root of their counts, with replacement."""

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``."""
        return _draw(labels, class_probabilities(np.bincount(labels), "square_root"), seed, epoch)


class Weighted(Sampler):
    """Classes in proportion to given weights, with replacement."""

    class Config(schema.Config):
        """Options of weighted sampling."""

        weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
        """One weight per class, not all 0; none: all classes alike."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``.

        Raises:
            UserError: there is not one weight per class, or no class with images has one.
        """
        counts = np.bincount(labels)
        weights = np.array(self.config.weights or [1.0] * len(counts))
        if len(weights) != len(counts) or not weights[counts > 0].sum() > 0:
            raise UserError(
                f"sampler `weighted` needs one weight for each of {len(counts)} classes, not all "
                f"0; found {len(self.config.weights)}"
            )
        weights = weights * (counts > 0)
        return _draw(labels, weights / weights.sum(), seed, epoch)


class Subset(Sampler):
    """Every image of some classes once per epoch, shuffled."""

    class Config(schema.Config):
        """Options of sampling some classes only."""

        classes: tuple[Annotated[int, Field(ge=0)], ...] = ()
        """Labels of the classes; none is all."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return a permutation of the classes' images; see ``Sampler.order``.

        Raises:
            UserError: the classes have no image.
        """
        wanted = self.config.classes or tuple(range(int(labels.max()) + 1))
        images = np.flatnonzero(np.isin(labels, wanted))
        if not len(images):
            raise UserError(
                f"sampler `subset`: classes {list(wanted)} have no image; labels go from 0 to "
                f"{int(labels.max())}"
            )
        permuted: np.ndarray = images[keyed_permutation(derive(seed, "order", epoch), len(images))]
        return permuted


class Reversed(Sampler):
    """Classes in inverse proportion to their counts, with replacement (BBN)."""

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``."""
        return _draw(labels, class_probabilities(np.bincount(labels), "reversed"), seed, epoch)


class Progressive(Sampler):
    """From instance-balanced in the first epoch to class-balanced in the last, with replacement."""

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``."""
        progress = epoch / (epochs - 1) if epochs > 1 else 1.0
        p = class_probabilities(np.bincount(labels), "progressive", progress=progress)
        return _draw(labels, p, seed, epoch)


class Effective(Sampler):
    """Images weighted by one over their class's effective number, with replacement."""

    class Config(schema.Config):
        """Options of effective-number sampling."""

        beta: Annotated[float, Field(ge=0, le=1)] | Literal["class_based"] = 0.9999
        """In [0, 1]: 0 is instance sampling, 1 inverse counts (class-balanced); `class_based` is
        GCL's rule, 0.9999 for the largest class to 0.99991 for the smallest."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``."""
        p = class_probabilities(np.bincount(labels), "effective", beta=self.config.beta)
        return _draw(labels, p, seed, epoch)


class Deferred(Sampler):
    """Every image once per epoch at first, later draws balanced over classes with replacement.

    Reference: Cao et al., NeurIPS 2019, arXiv:1906.07413 (deferred re-sampling); Kim et al.,
        M2m, CVPR 2020, arXiv:2004.00431 (from epoch 160 of 200).
    Departures: none known.
    """

    class Config(schema.Config):
        """Options of deferred re-sampling."""

        start: int = Field(160, ge=0, json_schema_extra=schema.EPOCHS)
        """First epoch of the stage, counted from 0, that is re-sampled."""
        beta: float = Field(1.0, ge=0, le=1)
        """Of the effective numbers that divide: 1 is class-balanced, 0 instance-balanced."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return a permutation of all images, or N independent draws; see ``Sampler.order``."""
        if epoch < self.config.start:
            return Instance().order(labels, seed, epoch, epochs, batch_size)
        p = class_probabilities(np.bincount(labels), "effective", beta=self.config.beta)
        return _draw(labels, p, seed, epoch)


class TorchSampler(torch.utils.data.Sampler[int]):
    """Any sampler of ltbench as the ``sampler=`` of anyone's own ``DataLoader``.

    Call ``set_epoch`` before each epoch, as with PyTorch's ``DistributedSampler``.

    Args:
        labels: class of each training image, int [N].
        sampler: a sampler, or the name of one with its default options.
        seed: which sequence of epochs.
        batch_size: global batch, for samplers whose epoch is a number of batches.
        epochs: number of epochs, for samplers that change over training.
        rank: number of this process.
        ranks: number of processes; each gets every ``ranks``-th draw, equally many.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        sampler: Sampler | str,
        seed: int = 0,
        batch_size: int = 1,
        epochs: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.sampler = registries.SAMPLERS.get(sampler)() if isinstance(sampler, str) else sampler
        self.seed, self.batch_size, self.epochs = seed, batch_size, epochs
        self.rank, self.ranks = rank, ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch (0-based)."""
        order = self.sampler.order(self.labels, self.seed, epoch, self.epochs, self.batch_size)
        self._order = order[: len(order) // self.ranks * self.ranks][self.rank :: self.ranks]

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.tolist())

    def __len__(self) -> int:
        return len(self._order)


def _draw(labels: np.ndarray, probabilities: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw a class, then one of its images, independently N times."""
    n = len(labels)
    counts = np.bincount(labels)
    edges = np.cumsum(probabilities)
    key = derive(seed, "order", epoch)
    first, second = keyed_uniform(key, np.arange(2 * n)).reshape(2, n)
    # Scaled by the last edge, and edges searched from the right, so that no class of
    # probability 0 can be drawn.
    classes = np.searchsorted(edges, first * edges[-1], side="right")
    images = (second * counts[classes]).astype(np.int64)
    starts = np.cumsum(counts) - counts
    by_class: np.ndarray = np.argsort(labels, kind="stable")
    order: np.ndarray = by_class[starts[classes] + images].astype(np.int64)
    return order

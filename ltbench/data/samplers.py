"""Samplers: the order of images in an epoch, a pure function of labels, seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from ltbench.config import schema
from ltbench.config.registry import registry
from ltbench.data.frequencies import class_probabilities as class_probabilities
from ltbench.data.frequencies import image_weights as image_weights
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_bits, keyed_permutation, keyed_uniform

Keys = Callable[[np.ndarray, np.ndarray], np.ndarray]  # sort keys of (cycle, class or image)


def class_aware_visits(
    labels: np.ndarray, per_class: int, visits: range, class_keys: Keys, image_keys: Keys
) -> np.ndarray:
    """Return a range of visits of infinite shuffled cycles over classes and their images.

    Every visit to a class takes the next ``per_class`` images of its cycle; an exhausted cycle
    restarts in a new order. Classes without images are skipped. As each class is visited once per
    cycle over classes, a visit can be computed without the previous ones.

    Reference:
        Shen et al., Relay Backpropagation for Effective Learning of Deep Convolutional Neural
        Networks, ECCV 2016, arXiv:1512.05830, Section 3.3; visits of several images are those of
        the code of Kang et al., ICLR 2020, arXiv:1910.09217.

    Departures:
        none known from that code; for the same shuffles the indices are equal.

    Args:
        labels: class of each image, int [N].
        per_class: images per visit to a class, at least 1.
        visits: range of visits, counted from the start of training.
        class_keys: function from arrays (cycle, class) of equal shape to sort keys of the classes
            in a cycle over classes.
        image_keys: function from arrays (cycle, image) of equal shape to sort keys of the images
            in a cycle over the images of their class.

    Returns:
        Indices, int64 [visits, per_class].
    """
    counts = np.bincount(labels)
    by_class: np.ndarray = np.argsort(labels, kind="stable").astype(np.int64)
    start = np.cumsum(counts) - counts
    classes = np.flatnonzero(counts)
    visit = np.arange(visits.start, visits.stop)
    cycle, place = np.divmod(visit, len(classes))
    cycles, row = np.unique(cycle, return_inverse=True)
    keys = class_keys(*np.broadcast_arrays(cycles[:, None], classes))
    visited = classes[np.argsort(keys, axis=1, kind="stable")[row, place]]
    # The cycle over classes is also the number of previous visits to a class.
    at = cycle[:, None] * per_class + np.arange(per_class)
    image_cycle, position = np.divmod(at, counts[visited][:, None])
    # Each required (class, cycle over its images) is shuffled as a whole.
    span = image_cycle.max(initial=0) + 1
    pairs, pair = np.unique(visited[:, None] * span + image_cycle, return_inverse=True)
    of_class, of_cycle = np.divmod(pairs, span)
    size = counts[of_class]
    first = np.cumsum(size) - size
    number = np.repeat(np.arange(len(pairs)), size)
    images = by_class[start[of_class][number] + np.arange(len(number)) - first[number]]
    shuffled = images[np.lexsort((image_keys(of_cycle[number], images), number))]
    drawn: np.ndarray = shuffled[first[pair.reshape(at.shape)] + position]
    return drawn


class Sampler:
    """Base class of samplers: the global order of an epoch, before sharding and batching."""

    class Config(schema.Config):
        """Options of the sampler."""

    def __init__(self, config: schema.Config | None = None) -> None:
        self.config = self.Config() if config is None else config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return the image indices of an epoch, in order.

        Args:
            labels: class of each training image, int64 [N], N > 0.
            seed: seed of the sequence of epochs.
            epoch: 0-based epoch.
            epochs: number of epochs, for samplers that change over training.
            batch_size: global batch size, for samplers whose epoch is a number of batches.

        Returns:
            Indices, int64; their number depends on the sampler.
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
    """Equally many draws of every class, by shuffled cycles over classes and their images.

    The cycles continue across epochs, so that every image of a class is drawn before one is
    repeated. An epoch starts with a new visit to a class.

    Reference: that of ``class_aware_visits``.
    Departures: none known.
    """

    class Config(schema.Config):
        """Options of class-aware sampling."""

        revision: ClassVar[int] = 1  # cycles used to restart in each epoch

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
        each, images, classes = -(-length // self.config.per_class), len(labels), labels.max() + 1
        of_classes, of_images = derive(seed, "classes"), derive(seed, "images")
        drawn = class_aware_visits(
            labels,
            self.config.per_class,
            range(epoch * each, (epoch + 1) * each),
            lambda cycle, label: keyed_bits(of_classes, cycle * classes + label),
            lambda cycle, image: keyed_bits(of_images, cycle * images + image),
        )
        return drawn.reshape(-1)[:length]

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
        """One weight per class, not all 0; empty: equal weights."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return N independent draws; see ``Sampler.order``.

        Raises:
            UserError: there is not one weight per class, or all classes with images have weight 0.
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
        """Labels of the classes; empty: all classes."""

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
        """Beta of the effective number, in [0, 1]: 0 is instance sampling, 1 inverse counts
        (class-balanced); `class_based` is GCL's rule, from 0.9999 for the largest class to 0.99991
        for the smallest."""

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
        """First re-sampled epoch of the stage, counted from 0."""
        beta: float = Field(1.0, ge=0, le=1)
        """Beta of the effective number: 1 is class-balanced, 0 instance-balanced."""

    config: Config

    def order(
        self, labels: np.ndarray, seed: int, epoch: int, epochs: int, batch_size: int
    ) -> np.ndarray:
        """Return a permutation of all images, or N independent draws; see ``Sampler.order``."""
        if epoch < self.config.start:
            return Instance().order(labels, seed, epoch, epochs, batch_size)
        p = class_probabilities(np.bincount(labels), "effective", beta=self.config.beta)
        return _draw(labels, p, seed, epoch)


class TorchSampler:
    """Adapter of a sampler for ``torch.utils.data.DataLoader``, which takes any iterable.

    Call ``set_epoch`` before each epoch, as with PyTorch's ``DistributedSampler``.

    Args:
        labels: class of each training image, int [N].
        sampler: a sampler, or the name of one with its default options.
        seed: seed of the sequence of epochs.
        batch_size: global batch size, for samplers whose epoch is a number of batches.
        epochs: number of epochs, for samplers that change over training.
        rank: rank of this process.
        ranks: number of processes; each gets every ``ranks``-th draw, the same number each.
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
        self.sampler = registry("SAMPLERS").get(sampler)() if isinstance(sampler, str) else sampler
        self.seed, self.batch_size, self.epochs = seed, batch_size, epochs
        self.rank, self.ranks = rank, ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the 0-based epoch and draw its order."""
        order = self.sampler.order(self.labels, self.seed, epoch, self.epochs, self.batch_size)
        self._order = order[: len(order) // self.ranks * self.ranks][self.rank :: self.ranks]

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.tolist())

    def __len__(self) -> int:
        return len(self._order)


def _draw(labels: np.ndarray, probabilities: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw N times independently a class and one of its images."""
    n = len(labels)
    counts = np.bincount(labels)
    edges = np.cumsum(probabilities)
    key = derive(seed, "order", epoch)
    first, second = keyed_uniform(key, np.arange(2 * n)).reshape(2, n)
    # Scaled by the last edge and searched from the right, so that classes of probability 0 are
    # never drawn.
    classes = np.searchsorted(edges, first * edges[-1], side="right")
    images = (second * counts[classes]).astype(np.int64)
    starts = np.cumsum(counts) - counts
    by_class: np.ndarray = np.argsort(labels, kind="stable")
    order: np.ndarray = by_class[starts[classes] + images].astype(np.int64)
    return order

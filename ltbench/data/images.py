"""Split whose images are read, decoded and augmented on demand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltbench.data.augment import draw, finish
from ltbench.data.base import Source
from ltbench.data.decode import (
    Box,
    crop_box,
    crop_draws,
    decode_pil,
    decode_pixels,
    five_crops,
    least_area,
    resized_centre,
    resized_crop,
    resized_whole,
    square_box,
)
from ltbench.data.pipelines import (
    BATCHED,
    MINIMALIST,
    Augment,
    HostDecoder,
    Interpolation,
    Unreadable,
    statistics,
)
from ltbench.data.pixels import pixel_fingerprint
from ltbench.data.shards.reader import ShardSource
from ltbench.data.strengths import operate, operate_on_bytes
from ltbench.data.transforms import (
    JITTERED,
    Transform,
    eval_transform,
    train_transform,
    with_operations,
)
from ltbench.errors import UserError
from ltbench.seeding import derive, epoch_of, keyed_bits


class ImageSplit:
    """Images of any size and source; implements ``ltbench.data.base.Split``.

    ``load`` crops and resizes to bytes; ``finish`` flips, jitters colours and normalises the
    whole batch. Pipelines for single Pillow images (all but ``pipelines.BATCHED``) run completely
    in ``load``, as do all pipelines with ``decode="pil"``. Operations of a strength by class (see
    ``ltbench.data.strengths``) come last in ``load``, before the normalisation. Random numbers
    depend on (key, position, view) only, so that pixels are bitwise independent of the batch size.

    Departures:
        Compared with torchvision on Pillow images, resized values differ by at most two grey
        levels, one in evaluation; the colour jitter rounds as torchvision does for tensors.

    Args:
        source: source of the files' bytes, N images.
        labels: class of each image, int64 [N].
        augment: training pipeline, which also determines the normalisation.
        image_size: side of the output in pixels.
        augment_views: pipelines of the second, third, ... view; the last one repeats. Empty: all
            views are like the first.
        decode: ``"fast"``, or ``"pil"`` for Pillow and torchvision image by image.
        unreadable: treatment of training images that cannot be decoded: ``"raise"`` an error, or
            ``"replace"`` them by the next decodable image of their class in the (circular) order
            of the split, with a note. In evaluation it is always an error.
        lenient: accept JPEGs with damaged data; see ``decode_pixels``.
        interpolation: of the resizing in training and evaluation.
    """

    in_memory = False
    stream = False  # whether training reads shards sequentially; see ``StreamLoader``

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        *,
        augment: Augment,
        image_size: int,
        augment_views: Sequence[Augment] = (),
        decode: HostDecoder = "fast",
        unreadable: Unreadable = "raise",
        lenient: bool = False,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.source = source
        self.interpolation = interpolation
        self.labels = np.asarray(labels, dtype=np.int64)
        self.image_size = image_size
        self.decode, self.unreadable, self.lenient = decode, unreadable, lenient
        self._names = (augment, *augment_views)
        self._statistics = statistics(augment)
        self._transforms = [
            None
            if decode == "fast" and name in BATCHED
            else train_transform(name, image_size, augment, interpolation)
            for name in self._names
        ]
        self._whole = (
            None if decode == "fast" else eval_transform(augment, image_size, interpolation)
        )
        self._stand_ins: dict[int, int] = {}  # replacements found so far
        self._notes: list[str] = []
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.labels)

    def load(
        self,
        indices: np.ndarray,
        *,
        key: int | None,
        positions: np.ndarray,
        views: int = 1,
        strengths: np.ndarray | None = None,
    ) -> tuple[Tensor, ...]:
        """Return images for ``finish``: per view uint8 [B, 3, S, S], or float32 if completed.

        Args:
            indices: indices of the images, int64 [B].
            key: seed of the augmentation; ``None`` for the evaluation transform.
            positions: position of each image in the epoch's order, int64 [B].
            views: number of augmented views of each image.
            strengths: strength of the operations on each image, int64 [B]; ``None`` is none.

        Raises:
            UserError: an image cannot be read or decoded; the message names it.
        """
        files = self.source.read(indices)
        return self._made(files, indices, key, positions, views, strengths)

    def _made(
        self,
        files: Sequence[np.ndarray],
        indices: np.ndarray,
        key: int | None,
        positions: np.ndarray,
        views: int,
        strengths: np.ndarray | None = None,
    ) -> tuple[Tensor, ...]:
        """Return what ``load`` makes of the files of some images, uint8 [n] each."""
        if key is None:
            wanted = [_View(len(indices), self.image_size, self._whole, self.interpolation)]
        else:
            wanted = [self._view(view, key, positions, strengths) for view in range(views)]
        broken: list[tuple[int, UserError]] = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's CPU generator
            for row, data in enumerate(files):
                try:
                    picture = self._decode(data, int(indices[row]))
                except UserError as error:
                    if key is None or self.unreadable == "raise":
                        raise
                    broken.append((row, error))
                    continue
                for view in wanted:
                    view.put(row, picture)
            for row, reason in broken:
                picture = self._stand_in(int(indices[row]), reason)
                for view in wanted:
                    view.put(row, picture)
        images = tuple(view.images for view in wanted)
        return images * views if key is None else images

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return normalised float32 images [B, 3, S, S] of each view.

        Args:
            views: output of ``load``, on any device; float images are returned unchanged.
            key: as given to ``load``.
            positions: as given to ``load``.
        """
        return tuple(
            self._finish(view, images, key, positions) if images.dtype == torch.uint8 else images
            for view, images in enumerate(views)
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of labels and images in order: ``shards.format.content_of``.

        Raises:
            UserError: a file is missing or empty, or has changed since the first call.
        """
        if self._fingerprint is None:
            self._fingerprint = self.source.fingerprint(self.labels)
        else:
            check: Callable[[], None] = getattr(self.source, "check_unchanged", lambda: None)
            check()  # files; shards are checked by their checksums
        return self._fingerprint

    def subset(self, indices: np.ndarray) -> ImageSplit:
        """Return a split of some of the images, int64 [M], in this order.

        Raises:
            UserError: the source cannot be divided.
        """
        source: Any = self.source
        if not hasattr(source, "subset"):
            raise UserError(
                f"images of a `{type(source).__name__}` cannot be divided into training and "
                "validation images; it needs a method `subset(indices)`"
            )
        part = copy.copy(self)
        part.source, part.labels = source.subset(indices), self.labels[indices]
        part._stand_ins, part._notes, part._fingerprint = {}, [], None
        return part

    def five_crops(self, expand: int) -> FiveCrops:
        """Return a split with five evaluation views of each image, see ``FiveCrops``."""
        return FiveCrops(self, expand)

    def prefetch(self, order: np.ndarray) -> None:
        """Start to fetch remote images, in the order of their first use.

        Args:
            order: indices in the order of reading, int64 [n].
        """
        if isinstance(self.source, ShardSource):
            self.source.prefetch(order)

    def take_notes(self) -> list[str]:
        """Return a note for each image replaced by this process since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _view(
        self, view: int, key: int, positions: np.ndarray, strengths: np.ndarray | None
    ) -> _View:
        name, transform = self._pipeline(view)
        stream = derive(key, "view", view)
        made = _View(len(positions), self.image_size, transform, self.interpolation)
        if strengths is not None:
            made.operations = strengths, derive(stream, "operations"), positions
        if transform is not None:
            made.seeds = keyed_bits(stream, positions) >> 1
        elif name != "plain":
            made.draws = crop_draws(derive(stream, "crop"), positions)
            made.least = least_area(*epoch_of(key)) if name in MINIMALIST else None
        return made

    def _finish(self, view: int, images: Tensor, key: int | None, positions: np.ndarray) -> Tensor:
        if key is None:
            return finish(images, *self._statistics)
        if self._pipeline(view)[0] in MINIMALIST:  # no flip, no colours
            return finish(images, *self._statistics)
        draws = draw(derive(derive(key, "view", view), "colours"), positions)
        colours = self._pipeline(view)[0] in JITTERED
        return finish(images, *self._statistics, draws, colours=colours)

    def _pipeline(self, view: int) -> tuple[Augment, Transform | None]:
        which = min(view, len(self._names) - 1)
        return self._names[which], self._transforms[which]

    def _decode(self, data: np.ndarray, index: int) -> Tensor | Image.Image:
        name = partial(self.source.name, index)
        read = decode_pixels if self.decode == "fast" else decode_pil
        return read(data, name, lenient=self.lenient)

    def _stand_in(self, index: int, reason: UserError) -> Tensor | Image.Image:
        """Return the next decodable image of the class."""
        known = self._stand_ins.get(index)
        same = np.flatnonzero(self.labels == self.labels[index])
        following = np.roll(same, -int(np.searchsorted(same, index)))[1:]
        for other in following.tolist() if known is None else [known]:
            (data,) = self.source.read(np.array([other]))
            try:
                picture = self._decode(data, other)
            except UserError:
                continue
            if known is None:
                self._stand_ins[index] = other
                self._notes.append(f"{reason}; `{self.source.name(other)}` stands in for it")
            return picture
        raise UserError(f"{reason}; no other image of class {self.labels[index]} can be decoded")


class PixelSplit(ImageSplit):
    """Images in memory, of one size, in the pipelines of image files.

    Args:
        images: uint8 [N, H, W, 3].
        labels: class of each image [N].
        options: of ``ImageSplit``.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, **options: Any) -> None:
        super().__init__(PixelSource(images), labels, **options)

    def _decode(self, data: np.ndarray, index: int) -> Tensor | Image.Image:
        return torch.from_numpy(data) if self.decode == "fast" else Image.fromarray(data)


class PixelSource:
    """Pixels of images of one size; implements ``ltbench.data.base.Source``.

    Args:
        images: uint8 [N, H, W, 3].
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.images)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the pixels of images, uint8 [H, W, 3] each."""
        return list(self.images[indices])

    def name(self, index: int) -> str:
        """Return the number of an image."""
        return f"image {index}"

    def subset(self, rows: np.ndarray) -> PixelSource:
        """Return a source of some of these images, int64 [M], in this order."""
        return PixelSource(self.images[rows])

    def fingerprint(self, labels: np.ndarray) -> str:
        """Return the SHA-256 of shape, pixels and labels, as ``MemorySplit`` does."""
        return pixel_fingerprint(self.images, labels)


class FiveCrops:
    """Evaluation split with five views of each image: crops at the corners and in the centre.

    The image is first resized to a short side of ``image_size + expand``.

    Args:
        split: the images.
        expand: pixels by which the short side is longer than the crops, >= 0.
    """

    in_memory = False

    def __init__(self, split: ImageSplit, expand: int) -> None:
        self.split, self.expand, self.labels = split, expand, split.labels

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.split)

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return five views, uint8 [B, 3, S, S] each.

        Args:
            indices: indices of the images, int64 [B].
            key: ``None``.
            positions: unused.
            views: unused.

        Raises:
            UserError: an image cannot be read or decoded; the message names it.
        """
        side, split = self.split.image_size, self.split
        made = torch.empty((5, len(indices), 3, side, side), dtype=torch.uint8)
        for row, data in enumerate(split.source.read(indices)):
            picture = split._decode(data, int(indices[row]))
            if not isinstance(picture, Tensor):
                picture = torch.from_numpy(np.array(picture))
            small = resized_whole(picture, side + self.expand, split.interpolation)
            made[:, row] = five_crops(small, side)
        return tuple(made)

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return normalised float32 images [B, 3, S, S] of each view."""
        return self.split.finish(views, key=None, positions=positions)

    def fingerprint(self) -> str:
        """Return the fingerprint of the split."""
        return self.split.fingerprint()


class _View:
    """Buffer for one view of a batch.

    Args:
        count: number of images B.
        size: side S in pixels.
        transform: pipeline for single Pillow images; ``None`` crops boxes, or the centre if there
            are no ``draws``.
        interpolation: of the resizing, without a transform.
    """

    def __init__(
        self, count: int, size: int, transform: Transform | None, interpolation: Interpolation
    ) -> None:
        self.transform, self.interpolation = transform, interpolation
        self.seeds: np.ndarray | None = None  # seed of the pipeline for each image
        self.draws: np.ndarray | None = None  # see ``crop_draws``
        self.least: float | None = None  # area of a square crop, see ``square_box``
        self.operations: tuple[np.ndarray, int, np.ndarray] | None = None  # strengths, key, places
        self.images = torch.empty(
            (count, 3, size, size),
            dtype=torch.uint8 if transform is None else torch.float32,
            memory_format=torch.channels_last if transform is None else torch.contiguous_format,
        )

    def box(self, row: int, height: int, width: int) -> Box | None:
        """Return the box to crop from an image of row ``row``; ``None`` is the centre."""
        if self.draws is None:
            return None
        if self.least is None:
            return crop_box(self.draws[row], height, width)
        return square_box(self.draws[row], height, width, self.least)

    def put(self, row: int, picture: Tensor | Image.Image) -> None:
        """Transform a decoded image into row ``row``."""
        if self.transform is not None:
            if self.seeds is not None:
                torch.default_generator.manual_seed(int(self.seeds[row]))
            if isinstance(picture, Tensor):
                picture = Image.fromarray(picture.numpy())
            transform = self.transform
            if self.operations is not None:
                strengths, key, places = self.operations
                which = int(strengths[row]), key, int(places[row])
                transform = with_operations(transform, lambda image: operate(image, *which))
            self.images[row] = transform(picture)
        elif isinstance(picture, Tensor):
            box = self.box(row, *picture.shape[:2])
            if box is None:
                resized_centre(picture, self.images[row], interpolation=self.interpolation)
            else:
                resized_crop(picture, box, self.images[row], self.interpolation)
            if self.operations is not None:
                strengths, key, places = self.operations
                one, pixels = slice(row, row + 1), self.images[row].permute(1, 2, 0)
                operate_on_bytes(pixels.numpy()[None], strengths[one], key, places[one])

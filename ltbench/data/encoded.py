"""Image files whose JPEGs are decoded, cropped and resized on the device, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench.data import nvjpeg
from ltbench.data.base import Split
from ltbench.data.codecs import sound_jpeg
from ltbench.data.decode import resized_centre, resized_crop
from ltbench.data.images import ImageSplit
from ltbench.data.pipelines import Interpolation

AT_ONCE = 2**29  # bytes of pixels decoded at once
MOST_SHRUNK = 32  # length of a side over that of the output; torch's kernels refuse 48 and more
_SIZE, _HEIGHT, _WIDTH, _BOXES = range(4)  # columns of the table of a batch; four for each box


class EncodedSplit(ImageSplit):
    """Image files that loader processes only read: ``data.decode=cuda``.

    ``load_encoded`` makes a batch of the bytes of its JPEGs and the boxes to crop; ``receive``
    decodes, crops and resizes them on the device. Everything drawn is the same as in
    ``ImageSplit``, and so are errors. Other formats, JPEGs in CMYK or RGB, those that do not end
    as a JPEG should and very large ones are decoded and cropped in the loader processes; a JPEG
    that nvJPEG refuses, by the training process on the CPU. ``load`` and five crops decode on the
    CPU.

    Departures:
        Pixels are resized as float32 and then rounded, and nvJPEG's own differ from those of
        libjpeg-turbo by rounding and in the interpolation of subsampled colours, so that images are
        close to those of ``ImageSplit``, not equal. nvJPEG may accept a JPEG whose data are damaged
        between header and end.

    Args:
        options: of ``ImageSplit``, without ``decode``; pipelines of ``pipelines.BATCHED`` only.
    """

    decoded_by = "nvjpeg"  # in records

    def check_device(self, device: torch.device) -> None:
        """Check that images can be decoded on a device.

        Raises:
            UserError: they cannot.
        """
        nvjpeg.check_nvjpeg(device)

    def load_encoded(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return the files of images for ``receive``.

        Args:
            indices: as for ``load``.
            key: as for ``load``.
            positions: as for ``load``.
            views: as for ``load``.

        Returns:
            Bytes of the JPEGs, one after another, uint8 [n]; for each image the size of its JPEG
            in bytes, or 0, its height, its width and a box of each view, int64 [B, 3 + 4 V]; and
            the images without a JPEG as ``load`` makes them, uint8 [F, 3, S, S] per view, if
            there are any.

        Raises:
            UserError: an image cannot be read or decoded; the message names it.
        """
        files = self.source.read(indices)
        crops = [] if key is None else [self._view(v, key, positions, None) for v in range(views)]
        table = torch.zeros(len(files), _BOXES + 4 * len(crops), dtype=torch.int64)
        for row, data in enumerate(files):
            size = sound_jpeg(data)
            if size is not None and max(size) <= MOST_SHRUNK * self.image_size:
                boxes = [crop.box(row, *size) or (0, 0, 0, 0) for crop in crops]
                table[row] = torch.tensor([len(data), *size, *(x for box in boxes for x in box)])
        sizes = table[:, _SIZE].numpy()
        jpegs = [data for data, size in zip(files, sizes, strict=True) if size]
        block = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.uint8), *jpegs]))
        rest = np.flatnonzero(sizes == 0)
        if not len(rest):
            return block, table
        others = [files[row] for row in rest]
        made = self._made(others, indices[rest], key, positions[rest], max(1, len(crops)))
        return block, table, *made

    def receive(
        self,
        encoded: tuple[Tensor, ...],
        device: torch.device,
        *,
        indices: np.ndarray,
        key: int | None,
        positions: np.ndarray,
        views: int = 1,
    ) -> tuple[Tensor, ...]:
        """Return images on a device for ``finish``, uint8 [B, 3, S, S] per view.

        Args:
            encoded: output of ``load_encoded``, on the CPU.
            device: where the images are wanted.
            indices: as given to ``load_encoded``.
            key: as given to ``load_encoded``.
            positions: as given to ``load_encoded``.
            views: as given to ``load_encoded``.

        Raises:
            UserError: an image cannot be decoded; the message names it.
        """
        block, table, *made = encoded
        count, side = 1 if key is None else views, self.image_size
        buffers = [
            torch.empty(
                (len(table), 3, side, side), device=device, memory_format=torch.channels_last
            )
            for _ in range(count)
        ]
        sizes = table[:, _SIZE].tolist()
        rows_of = [row for row, size in enumerate(sizes) if size]
        parts = torch.split(block, [sizes[row] for row in rows_of])
        files = dict(zip(rows_of, parts, strict=True))
        refused: list[int] = []
        for rows in _portions(rows_of, 3 * table[:, _HEIGHT] * table[:, _WIDTH]):
            pictures = _decoded([files[row] for row in rows], device)
            for row, picture in zip(rows, pictures, strict=True):
                if picture is None:
                    refused.append(row)
                    continue
                boxes = table[row, _BOXES:].view(-1, 4).tolist()
                for view, buffer in enumerate(buffers):
                    box = boxes[view] if boxes and boxes[view][2] else None
                    cut(picture, box, buffer[row], self.interpolation)
        self._fill(buffers, [row for row in range(len(sizes)) if row not in files], made)
        if refused:
            at = np.array(refused)
            data = [files[row].numpy() for row in refused]
            self._fill(buffers, refused, self._made(data, indices[at], key, positions[at], count))
        images = tuple(b.round_().clamp_(0, 255).to(torch.uint8) for b in buffers)
        return images * views if key is None else images

    def _fill(self, buffers: Sequence[Tensor], rows: Sequence[int], made: Sequence[Tensor]) -> None:
        """Copy images that were decoded on the CPU to some rows."""
        for buffer, images in zip(buffers, made, strict=bool(rows)):
            if buffer.device.type == "cuda" and not images.is_pinned():
                images = images.pin_memory()
            there = images.to(buffer.device, non_blocking=True)
            for row, image in zip(rows, there, strict=True):
                buffer[row].copy_(image)


def received(
    split: Split,
    loaded: tuple[Tensor, ...],
    device: torch.device,
    *,
    indices: np.ndarray,
    key: int | None,
    positions: np.ndarray,
    views: int,
) -> tuple[Tensor, ...]:
    """Return what loader processes made of some images on the device, for ``Split.finish``.

    Args:
        split: the images.
        loaded: what they made of them.
        device: where the images are wanted.
        indices: as given to them.
        key: as given to them.
        positions: as given to them.
        views: as given to them.

    Raises:
        UserError: an image cannot be decoded; the message names it.
    """
    if isinstance(split, EncodedSplit):
        which: dict[str, Any] = {"indices": indices, "positions": positions}
        return split.receive(loaded, device, key=key, views=views, **which)
    return tuple(view.to(device, non_blocking=True) for view in loaded)


def cut(
    picture: Tensor, box: Sequence[int] | None, out: Tensor, interpolation: Interpolation
) -> None:
    """Crop a decoded image and resize it with antialiasing, without rounding.

    Args:
        picture: uint8 [3, H, W].
        box: top, left, height and width; ``None`` resizes the whole and crops its centre.
        out: output, float32 [3, S, S].
        interpolation: of the resizing.
    """
    if box is None:
        resized_centre(picture.permute(1, 2, 0).float(), out, interpolation=interpolation)
        return
    top, left, tall, wide = box
    part = picture[:, top : top + tall, left : left + wide].permute(1, 2, 0).float()
    resized_crop(part, (0, 0, tall, wide), out, interpolation)


def _portions(rows: Sequence[int], pixels: Tensor) -> Iterator[list[int]]:
    """Yield rows in runs of at most ``AT_ONCE`` bytes of pixels [B], or of one image."""
    sizes, run, total = pixels.tolist(), list[int](), 0
    for row in rows:
        if run and total + sizes[row] > AT_ONCE:
            yield run
            run, total = [], 0
        run.append(row)
        total += sizes[row]
    if run:
        yield run


def _decoded(files: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """Return the pixels of JPEGs, ``None`` for those that nvJPEG refuses."""
    try:
        return [*nvjpeg.nvjpeg(files, device)]
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        if len(files) == 1:
            return [None]
    half = len(files) // 2
    return _decoded(files[:half], device) + _decoded(files[half:], device)

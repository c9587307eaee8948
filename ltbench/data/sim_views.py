"""Views of contrastive learning for small images: whole batches of bytes, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ltbench.data.decode import RATIO, TRIES
from ltbench.data.pixels import (
    CONTRAST,
    HUE,
    SATURATION,
    blend,
    blur,
    box_blurs,
    enlarge,
    grey,
    on_rows,
    shift_hue,
    to_bytes,
    to_planes,
)
from ltbench.data.torch_random import TorchRandom

AREA = (0.2, 1.0)  # of a crop, as a share of the image
STRENGTH, TURN = 0.4, 0.1  # of the jitter: of brightness, contrast and saturation; of the hue
JITTERED, GREYED, BLURRED = 0.8, 0.2, 0.5  # probabilities
RADIUS = (0.1, 2.0)  # of the blur in pixels
_PARTS = [4, 1, 1, 12, 1, 12, 1, 1, 3]  # columns of ``draw_sim``, in the order of its text


def draw_sim(seeds: np.ndarray, height: int, width: int, *, flip: bool, blurs: bool) -> np.ndarray:
    """Return the parameters that torchvision's transforms draw after these seeds.

    Args:
        seeds: seed of each image [B].
        height: height of the images in pixels.
        width: width of the images in pixels.
        flip: whether to flip half of the images.
        blurs: whether to blur half of the images.

    Returns:
        Box (top, left, height, width), flip, jitter, three ``blend`` before the hue, shift of the
        hue, three after it, grey, blur, weights of the blur; what does not happen has parameters
        that change nothing. float64 [B, 36].
    """
    numbers = TorchRandom(seeds, 2 * TRIES + 2 + 13)
    box = _boxes(numbers, height, width)
    flipped = numbers.uniform() < 0.5 if flip else np.zeros(len(seeds), dtype=bool)
    jittered = numbers.uniform() < np.float32(JITTERED)
    order = numbers.permutation(4, jittered)
    ends = [(1 - STRENGTH, 1 + STRENGTH)] * HUE + [(-TURN, TURN)]
    factors = np.stack(
        [numbers.uniform(*end, rows=jittered).astype(np.float64) for end in ends], axis=1
    )
    greyed = numbers.uniform() < np.float32(GREYED)
    blurred = np.zeros(len(seeds), dtype=bool)
    weights = np.tile([2**24, 0, 0], (len(seeds), 1))
    if blurs:
        blurred = numbers.uniform() < np.float32(BLURRED)
        unit = numbers.uniform(rows=blurred).astype(np.float64)
        radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * unit
        weights = np.where(blurred[:, None], box_blurs(radius.astype(np.float32)), weights)
    flags = [values[:, None] for values in (flipped, jittered, greyed, blurred)]
    before, after = _blends(order, factors, jittered)
    jitter = [before, factors[:, HUE:], after]
    return np.hstack([box, *flags[:2], *jitter, *flags[2:], weights])


def apply_sim(images: Tensor, drawn: Tensor, *, blurs: bool) -> Tensor:
    """Return views after the drawn crops, flips and colours.

    They are bit for bit those of torchvision on bytes on the CPU, and of Pillow's blur.

    Args:
        images: uint8 [B, H, W, 3].
        drawn: output of ``draw_sim``, float64 [B, 36], on the same device.
        blurs: as for ``draw_sim``.
    """
    parts = torch.split(drawn, _PARTS, 1)
    box, flipped, jittered, before, turn, after, greyed, blurred, weights = parts
    images = enlarge(images, box.to(torch.int64), flipped[:, 0])
    colours = (values.to(torch.float32) for values in (before, turn, after))
    images = on_rows(images, jittered[:, 0] == 1, _jitter, *colours)
    images = on_rows(images, greyed[:, 0] == 1, _grey)
    if not blurs:
        return images
    return on_rows(images, blurred[:, 0] == 1, blur, weights, neutral=True)


def _blends(
    order: np.ndarray, factors: np.ndarray, jittered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of ``blend`` before and after the shift of the hue [B, 12] each."""
    place = (order == HUE).argmax(axis=1)[:, None]
    step = np.arange(3)
    made = []
    for used, own in ((step < place, order[:, :3]), (step >= place, order[:, 1:])):
        happens = used & jittered[:, None]
        share = np.where(happens, np.take_along_axis(factors, own, axis=1), 1.0)
        kinds = [own == kind for kind in (CONTRAST, SATURATION)]
        made.append(np.stack([share, 1.0 - share, *kinds], axis=2).reshape(-1, 12))
    return made[0], made[1]


def _jitter(images: Tensor, before: Tensor, turn: Tensor, after: Tensor) -> Tensor:
    planes = _blended(to_planes(images), before)
    return to_bytes(_blended(shift_hue(planes, turn[:, :, None]), after))


def _blended(planes: Tensor, table: Tensor) -> Tensor:
    for given in torch.split(table[:, :, None, None], 4, 1):
        share, rest, *flags = given[:, :, None].unbind(1)
        changes = rest.flatten() != 0
        planes = on_rows(planes, changes, blend, share, rest, *flags, neutral=True)
    return planes


def _grey(images: Tensor) -> Tensor:
    return to_bytes(grey(to_planes(images)).expand(-1, 3, -1, -1))


def _boxes(numbers: TorchRandom, height: int, width: int) -> np.ndarray:
    """Return boxes of torchvision's RandomResizedCrop: top, left, height, width, int64 [B, 4]."""
    low, high = torch.log(torch.tensor(RATIO)).tolist()
    open_ = np.ones(len(numbers), dtype=bool)
    # If no try fits: the largest box in the middle with an allowed ratio.
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    boxes = np.tile([(height - tall) // 2, (width - wide) // 2, tall, wide], (len(numbers), 1))
    for _ in range(TRIES):
        area = height * width * numbers.uniform(*AREA, rows=open_).astype(np.float64)
        drawn = torch.from_numpy(numbers.uniform(low, high, rows=open_))
        ratio = drawn.exp().numpy().astype(np.float64)
        across = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        down = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = open_ & (across > 0) & (across <= width) & (down > 0) & (down <= height)
        top = numbers.below(height - down + 1, fits)
        left = numbers.below(width - across + 1, fits)
        boxes[fits] = np.stack([top, left, down, across], axis=1)[fits]
        open_ &= ~fits
        if not open_.any():
            break
    return boxes

"""Loss rows and layers' samples of each image of a batch, if the images are independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ltbench.class_gradients.recorder import Call
from ltbench.distributed import ranks

Gradients = Mapping[Call, Tensor]


@dataclass(frozen=True)
class Layout:
    """Assignment of rows and samples to images.

    With B images, row i belongs to image ``i % B``, and sample i of a layer to image
    ``(i // windows) % B``: views come one batch after another, windows of an image together.

    Args:
        problem: why the images are not independent, or an empty string.
        rows: rows of each image.
        windows: consecutive samples of an image in a layer, where not 1.
        alike: whether the rows of an image belong to one objective.
    """

    problem: str = ""
    rows: int = 1
    windows: dict[nn.Module, int] = field(default_factory=dict)
    alike: bool = True

    @classmethod
    def of(
        cls, place: Tensor, images: int | None, gradients: Callable[[Tensor], Gradients]
    ) -> Layout:
        """Find the layout of a batch.

        Args:
            place: objective of each row [N].
            images: number of images if one has several rows or shares a row with others.
            gradients: returns the gradients of the layers' outputs for weights of the rows [N].
        """
        found = _layout(len(place), len(place), gradients)
        if not found.problem or images is None or images in (0, len(place)):
            return found
        if len(place) % images:
            return cls(f"the loss has {len(place)} rows for {images} images")
        found = _layout(len(place), images, gradients)
        return replace(found, alike=_alike(place.reshape(-1, images)))

    def agreed(self, place: Tensor) -> Layout:
        """Return the layout that all ranks use, so that they exchange the same tensors.

        Args:
            place: objective of each row of this rank [N]; a rank without images follows the others.
        """
        several = self.rows > 1
        own = [bool(self.problem), len(place) > 0, several, several * self.rows, not self.alike]
        sums = ranks.all_reduce_(torch.tensor(own, dtype=torch.float32, device=place.device))
        failed, filled, many, rows, apart = sums.tolist()
        if failed or 0 < many < filled:
            return replace(self, problem=self.problem or "not supported on another rank")
        return replace(self, rows=round(rows / many) if many else 1, alike=apart == 0)

    def split(self, place: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split rows into parts in which an image has one objective.

        Args:
            place: objective of each row [N].
            weight: of each row [N].

        Returns:
            The objective of each image [B] and the weights [N] of each part.
        """
        if self.rows == 1:
            return [(place, weight)]
        by_image = place.reshape(self.rows, len(place) // self.rows)
        alike = self.alike  # on a device asking anew would be a wait
        if place.device.type == "cpu" and ranks.world() == 1:
            alike = _alike(by_image)
        if alike:
            return [(by_image[0], weight)]
        view = torch.arange(self.rows, device=place.device).repeat_interleave(by_image.shape[1])
        return [(own, torch.where(view == i, weight, 0.0)) for i, own in enumerate(by_image)]


def _alike(by_image: Tensor) -> bool:
    return bool((by_image == by_image[0]).all())


def _layout(rows: int, images: int, gradients: Callable[[Tensor], Gradients]) -> Layout:
    """Return the layout of rows and images, from the rows of half of the images.

    They must depend on samples of these images only.
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    half = torch.zeros(images, dtype=torch.bool)
    half[order[: images // 2]] = True
    views = rows // images if images else 1
    fitting: dict[nn.Module, set[int]] = {}
    for call, z in gradients(half.repeat(views)).items():
        samples = len(z)
        each = samples // images if images else 1
        if each * images != samples or len(call.x) != samples or (images and not samples):
            return Layout(f"{call.name} sees {len(call.x)} samples, the loss has {rows} rows")
        reached = (z[:, None].flatten(1) != 0).any(1).cpu()
        fits = {
            n
            for n in range(1, each + 1)
            if each % n == 0 and not (reached & ~half.repeat_interleave(n).repeat(each // n)).any()
        }
        fits &= fitting.get(call.module, fits)
        if not fits:
            return Layout(f"rows of the loss depend on each other's samples at {call.name}")
        fitting[call.module] = fits
    windows = {module: min(fits) for module, fits in fitting.items() if min(fits) > 1}
    return Layout(rows=views, windows=windows)

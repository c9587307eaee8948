"""Views of contrastive learning in batches against torchvision's, image by image."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from ltbench.data.sim_views import apply_sim, draw_sim
from ltbench.data.transforms import GaussianBlur
from tests.data.photographs import HEIGHT, MANY, SEEDS, WIDTH, image_by_image, levels_apart


@pytest.mark.parametrize(("flip", "blurs"), [(True, True), (True, False), (False, True)])
def test_contrastive_views_are_torchvisions(flip, blurs):
    blurred = [v2.ToPILImage(), GaussianBlur(0.1, 2.0), v2.PILToTensor()]
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop((HEIGHT, WIDTH), scale=(0.2, 1.0)),
            *([v2.RandomHorizontalFlip()] if flip else []),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            *([v2.RandomApply(blurred, p=0.5)] if blurs else []),
        ]
    )
    drawn = draw_sim(SEEDS, HEIGHT, WIDTH, flip=flip, blurs=blurs)
    found = apply_sim(MANY.clone(), torch.from_numpy(drawn), blurs=blurs)
    assert torch.equal(found, image_by_image(theirs))


@pytest.mark.parametrize("size", [(8, 60), (60, 8)])
def test_boxes_of_narrow_images_fall_back_to_the_middle(size):
    theirs = v2.RandomResizedCrop(size, scale=(0.2, 1.0))
    drawn = draw_sim(SEEDS, *size, flip=False, blurs=False)[:, :4].astype(int)
    image = [torch.zeros(3, *size)]
    with torch.random.fork_rng(devices=[]):
        for box, seed in zip(drawn.tolist(), SEEDS.tolist(), strict=True):
            torch.manual_seed(seed)
            wanted = theirs.make_params(image)
            assert box == [wanted[name] for name in ("top", "left", "height", "width")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_device_makes_the_same_pixels():
    drawn = torch.from_numpy(draw_sim(SEEDS, HEIGHT, WIDTH, flip=True, blurs=True))
    here = apply_sim(MANY.clone(), drawn, blurs=True)
    there = apply_sim(MANY.cuda(), drawn.cuda(), blurs=True)
    assert levels_apart(here, there.cpu()) <= 1
    assert (here != there.cpu()).float().mean() < 1e-4

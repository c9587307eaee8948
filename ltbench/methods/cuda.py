from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ltbench.config import schema
from ltbench.data.strengths import Strengths
from ltbench.distributed import ranks
from ltbench.losses import next_levels, trial_counts
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Stream, TrainingImages
from ltbench.methods.cmo import CMO
from ltbench.methods.inner import evaluating
from ltbench.seeding import keyed_uniform


class CUDA(CMO):
    """Augmentation of each class as strong as the model still classifies its training images.

    Reference: Ahn et al., CUDA: Curriculum of Data Augmentation for Long-Tailed Recognition,
        ICLR 2023, arXiv:2302.05499, Algorithms 1 and 2.
    Departures: none known from the authors' code for CIFAR, in which the operations follow crop
        and flip, before Cutout. In their code for large sets the levels of all classes but one
        stay at 0; here those sets have the curriculum, too. The pipelines imagenet and inat_jitter
        jitter colours after the operations, theirs before. RIDE, NCL and BCL, with which the
        authors combine it as well, are not among the losses.
    """

    Config = options.CUDA
    config: options.CUDA
    levels: Tensor

    @classmethod
    def streams_for(cls, config: schema.Config) -> Mapping[str, Stream]:
        """Return the stream of pasted images, if there are any."""
        assert isinstance(config, options.CUDA)
        return super().streams_for(config) if config.paste else {}

    def setup(self, previous: Method | None) -> None:
        """Create the loss, and the level of each class, 0."""
        super().setup(previous)
        levels = torch.zeros(self.info.num_classes, dtype=torch.int64)
        self.register_buffer("levels", levels)

    def strengths(self) -> Strengths | None:
        """Return the levels of the classes, if one of them is above 0."""
        levels = self.levels.cpu().numpy().copy()
        return Strengths(levels, self.config.augmented) if levels.any() else None

    @torch.no_grad()
    def examine(self, images: TrainingImages, at: Progress) -> None:
        """Raise the levels of the classes that are classified at all strengths; lower the rest."""
        cfg = self.config
        trials = trial_counts(self.levels, cfg.most, cfg.trials)
        indices, strengths = draw_trials(images.labels, trials.cpu().numpy(), at.key("trials"))
        correct = torch.zeros_like(trials)
        with evaluating(self):
            for batch in images.augmented(indices, strengths):
                hits = (self.predict(batch.views[0]).argmax(dim=1) == batch.labels).long()
                at_strength = batch.labels * (cfg.most + 1) + batch.extra["strengths"]
                correct.view(-1).index_add_(0, at_strength, hits)
        ranks.all_reduce_(correct)
        self.levels.copy_(next_levels(self.levels, correct, trials, cfg.accept, cfg.most))

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Paste images as CMO does, if that is wanted."""
        return super().prepare(batch, at) if self.config.paste else batch


def draw_trials(labels: np.ndarray, trials: np.ndarray, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images to try, drawn within their class with replacement, and their strengths.

    Args:
        labels: class of each training image, int64 [N].
        trials: number of images by class and strength, int64 [C, S].
        key: seed of the draws.

    Returns:
        Indices and strengths, int64 [M] each.
    """
    counts = np.bincount(labels, minlength=len(trials))
    starts = np.cumsum(counts) - counts
    by_class = np.argsort(labels, kind="stable")
    classes = np.repeat(np.arange(len(trials)), trials.sum(axis=1))
    strengths = np.repeat(np.tile(np.arange(trials.shape[1]), len(trials)), trials.reshape(-1))
    place = (keyed_uniform(key, np.arange(len(classes))) * counts[classes]).astype(np.int64)
    return by_class[starts[classes] + place].astype(np.int64), strengths.astype(np.int64)

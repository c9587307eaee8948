"""Classifiers that are not trained: class means of features, and text."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ltbench.data.text_table import MAKE
from ltbench.errors import UserError
from ltbench.methods import options
from ltbench.methods.base import Kind, Method, Start
from ltbench.methods.head_init import class_means, initialise
from ltbench.models.heads import CosineHead


class ClassMean(Method):
    """Nearest class mean: the cosine between features and the mean feature of each class.

    Nothing is trained. After a training stage this is NCM of the decoupling paper; as the only
    stage it shows what the features of a pretrained backbone give by themselves.

    Reference: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217, section 4 (NCM, with cosine similarity).
    Departures: the authors' code by default centres features on their mean and compares squared
        distances; its cosine is `cos`. The means are of features of the evaluation transform. The
        scale matters for calibration only.
    """

    kind: ClassVar[Kind] = "post-hoc"
    trains: ClassVar[bool] = False

    Config = options.ClassMean
    config: options.ClassMean

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a cosine classifier."""
        return CosineHead(self.backbone.num_features, self.info.num_classes, self.config.scale)

    def begin(self, start: Start) -> None:
        """Set the directions to the class means."""
        assert isinstance(self.head, CosineHead)
        classes, most = self.info.num_classes, self.config.images
        self.head.point(class_means(self.backbone, classes, start, most))


class ZeroShot(Method):
    """Cosine classifier from the text features of the class names; no image is trained on.

    It needs an encoder that was trained with text, and a table of text features.

    Reference: Radford et al., Learning Transferable Visual Models From Natural Language
        Supervision, ICML 2021, arXiv:2103.00020, section 3.1.
    Departures: the text features are brought back to the encoder's width and to unit length there,
        as the initial classifier of LIFT is; CLIP compares in the projected space.
    """

    kind: ClassVar[Kind] = "post-hoc"
    trains: ClassVar[bool] = False

    Config = options.ZeroShot
    config: options.ZeroShot

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a cosine classifier."""
        return CosineHead(self.backbone.num_features, self.info.num_classes, self.config.scale)

    def begin(self, start: Start) -> None:
        """Set the directions to those of the class names.

        Raises:
            UserError: there is no table, or the encoder has no projection to it.
        """
        if self.config.file is None:
            raise UserError(
                "method `zero_shot` needs a table of text features of the class names as "
                f"stages.{start.stage}.method.file=FILE; {MAKE}"
            )
        init = options.HeadInit(name="text", file=self.config.file)
        initialise(self, init, start)

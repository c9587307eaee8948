from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
from pydantic import Field

from ltbench.config.paths import expanded
from ltbench.data.base import Data
from ltbench.data.listing import Listing, check_parts, look_for, read_list
from ltbench.data.lists import ListOptions
from ltbench.data.pipelines import Augment
from ltbench.data.shards.dataset import assemble, is_packed, listings, open_parts
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError

LISTS = "https://github.com/facebookresearch/classifier-balancing"
FLEX_SAMPLING = "https://github.com/PyJulie/FlexSampling"
NPY = "each line an image's name from a part's .npy file and its label in dic.npy"
SSL_EVALUATION = "https://github.com/cvl-umass/ssl-evaluation"


EDITIONS = {"isic2019_lt": (100, 200, 500)}  # imbalance ratios with lists of their own


class PartFacts(TypedDict):
    """Facts about an official list.

    Args:
        lines: number of images.
        counts: images of each class [C], or one number if it is the same for all classes.
        sha256: ``Listing.sha256`` of the list, or ``None`` if unknown.
    """

    lines: int
    counts: list[int] | int
    sha256: str | None


class Facts(TypedDict):
    """Facts about an official data set, by part."""

    num_classes: int
    parts: dict[str, PartFacts]


@functools.cache
def facts(name: str) -> Facts:
    """Return the facts of an official data set by its ``Official.edition``, e.g. ``"inat18"``."""
    text = resources.files("ltbench.data").joinpath("facts", f"{name}.json").read_text("utf-8")
    loaded: Facts = json.loads(text)
    return loaded


def edition(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of the facts of a data set with its options.

    Args:
        name: registered name of the data set.
        options: its options by name.
    """
    if name not in EDITIONS:
        return name
    ratio = options.get("imbalance_ratio")
    return f"{name}_{int(ratio) if isinstance(ratio, (int, float)) else ratio}"


class Official(ListOptions):
    """Data set with official lists, which ``load`` verifies first."""

    registered: ClassVar[str]  # name in the registry
    lenient: ClassVar[bool] = True
    needs: ClassVar[str]  # description of the images and their source, for messages
    lists_from: ClassVar[str] = LISTS  # source of the lists
    lists_in: ClassVar[str] = "data"  # folder of the lists there
    published_as: ClassVar[Mapping[str, str]] = {}  # other names of the default lists, by part
    also: ClassVar[str] = ""  # how the lists are made from what is there, if they are not there

    image_size: int = Field(224, ge=8, le=2048, description="side of the network's input in pixels")
    verify: Literal["official", "counts", "none"] = Field(
        "official",
        description="checks of the lists: class counts and known hashes, counts only, or none",
    )

    @property
    def edition(self) -> str:
        """Name of the facts of these options."""
        return edition(self.registered, self.model_dump())

    def load(self) -> Data:
        """Read and verify the lists and check that all images exist.

        Raises:
            UserError: images or lists are missing, or are not the official ones.
        """
        parts = open_parts(self.root)
        if parts is not None:
            return self._from_shards(parts)
        root, files = self._find()
        listings = {part: read_list(file) for part, file in files.items()}
        manifest = {"source": "official lists", "verify": self.verify}
        for part, listing in listings.items():
            manifest[f"{part}_official"] = self._verify(part, listing)
        check_parts(listings)
        data = self.assemble(self.registered, root, listings)
        return self.hold_out(replace(data, manifest={**manifest, **data.manifest}))

    def ready(self) -> None:
        """Check that the folder and the lists exist."""
        if not is_packed(self.root):
            self._find()

    def _from_shards(self, parts: Mapping[str, ShardSource]) -> Data:
        named = parts["train"].manifest.dataset
        if named != self.registered and self.verify != "none":
            raise UserError(
                f"data.root=`{self.root}` holds shards of `{named}`, needed are those of "
                f"`{self.registered}`; give another root, or use data=shards"
            )
        manifest: dict[str, str] = {"verify": self.verify}
        for part, listing in listings(parts, self.root).items():
            manifest[f"{part}_official"] = self._verify(part, listing)
        data = assemble(self, self.registered, parts)
        return self.hold_out(replace(data, manifest={**manifest, **data.manifest}))

    def _wanted(self) -> dict[str, str]:
        lists = {"train": self.train, "val": self.val, "test": self.test}
        return {part: name or "" for part, name in lists.items() if name or part != "val"}

    def _find(self) -> tuple[Path, dict[str, Path]]:
        """Return the root and the paths of the lists; one message names everything missing."""
        if not self.root:
            raise UserError(self._missing("no data.root is given"))
        root = expanded(self.root)
        if not root.is_dir():
            raise UserError(self._missing(f"data.root=`{self.root}` is not a folder"))
        if next(root.iterdir(), None) is None:
            raise UserError(self._missing(f"data.root=`{self.root}` is empty"))
        files = {part: self._look_for(root, part, name) for part, name in self._wanted().items()}
        absent = [name for part, name in self._wanted().items() if files[part] is None]
        if absent:
            raise UserError(
                self._missing(f"no list {', '.join(absent)} (nor .gz) in `{self.root}`")
            )
        return root, {part: file for part, file in files.items() if file is not None}

    def _look_for(self, root: Path, part: str, name: str) -> Path | None:
        """Return the path of a list, a default one also under the name it is published by."""
        found, other = look_for(root, name), self.published_as.get(part)
        if found or not other or Path(name).name != type(self).model_fields[part].default:
            return found
        return look_for(root, str(Path(name).with_name(other)))

    def _missing(self, found: str) -> str:
        lists = self._wanted()
        return (
            f"data set `{self.registered}`: {found}; needed are {self.needs}, and the lists "
            f"{', '.join(lists.values())} ({self.lists_from}, folder {self.lists_in}"
            f"{self._called()}); then run this again with "
            f"data.root=DIR, the folder that holds the images as the lists name them, and the "
            f"lists (or give these by "
            f"{' '.join(f'data.{part}=FILE' for part in lists)}); or pack both once with `ltbench "
            f"data prepare dataset={self.registered} root=IMAGES lists=LISTS out=SHARDS` and give "
            "data.root=SHARDS"
        )

    def _called(self) -> str:
        """Return how the lists are called or made where they are published, if that differs."""
        names = [name for part, name in self.published_as.items() if part in self._wanted()]
        words = [f"there {', '.join(names)}"] * bool(names) + [self.also] * bool(self.also)
        return "".join(f": {text}" for text in words)

    def _verify(self, part: str, listing: Listing) -> str:
        """Check a list and return whether it is official: ``"yes"``, ``"no"`` or ``"unknown"``."""
        known = facts(self.edition)["parts"].get(part)
        if known is None:
            return "unknown"
        if self.verify != "none":
            self._check_counts(part, listing, known["counts"])
        if known["sha256"] is None:
            return "unknown"
        if listing.sha256 == known["sha256"]:
            return "yes"
        if self.verify == "official":
            raise UserError(
                f"`{listing.file}` has the counts of the official {part} list of "
                f"{self.registered} but other images: sha256 of its sorted `label basename` lines "
                f"is {listing.sha256[:12]}..., official {known['sha256'][:12]}...; take the list "
                f"from {self.lists_from}, or use data.verify=counts"
            )
        return "no"

    def _check_counts(self, part: str, listing: Listing, official: list[int] | int) -> None:
        num_classes = facts(self.edition)["num_classes"]
        expected = np.broadcast_to(np.array(official), num_classes)
        largest = int(listing.labels.max())
        if largest >= num_classes:
            line = listing.lines[int(listing.labels.argmax())]
            raise UserError(
                f"{listing.file}, line {line}: label {largest}, but {self.registered} has classes "
                f"0..{num_classes - 1}; take the list from {self.lists_from}"
            )
        counts = np.bincount(listing.labels, minlength=num_classes)
        wrong = np.nonzero(counts != expected)[0]
        if len(wrong):
            first = int(wrong[0])
            raise UserError(
                f"`{listing.file}` does not have the counts of the official {part} list of "
                f"{self.registered}: {len(listing.labels):,} images, official "
                f"{int(expected.sum()):,}; {len(wrong):,} classes differ, first class {first}: "
                f"{counts[first]}, official {expected[first]}; take the list from "
                f"{self.lists_from}, or use data.verify=none"
            )


OF_RATIO = "list; RATIO in its name is the imbalance ratio"


def _list(default: str, description: str = "list") -> Any:
    return Field(default, description=description, json_schema_extra={"digest": False})


class ImageNetLT(Official):
    """ImageNet-LT: 1,000 classes, 115,846 training images, 1,280 to 5 a class.

    Reference:
        Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019,
        arXiv:1904.05160.
    """

    registered: ClassVar[str] = "imagenet_lt"
    needs: ClassVar[str] = (
        "the train and val images of ImageNet ILSVRC-2012 (https://image-net.org, after "
        "registration) as train/<wnid>/ and val/<wnid>/"
    )

    train: str = _list("ImageNet_LT_train.txt")
    val: str | None = _list("ImageNet_LT_val.txt")
    test: str = _list("ImageNet_LT_test.txt")


class PlacesLT(Official):
    """Places-LT: 365 classes, 62,500 training images, 4,980 to 5 a class.

    Reference:
        Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019,
        arXiv:1904.05160.
    """

    registered: ClassVar[str] = "places_lt"
    needs: ClassVar[str] = (
        "the train and val images of Places365-Standard (http://places2.csail.mit.edu) as "
        "train/<category>/ and val/<category>/"
    )

    train: str = _list("Places_LT_train.txt")
    val: str | None = _list("Places_LT_val.txt")
    test: str = _list("Places_LT_test.txt")


class INat18(Official):
    """iNaturalist 2018: 8,142 classes, 437,513 training images, 1,000 to 2 a class.

    The official validation list, 3 images per class, is the test set, as in all of the literature.

    Reference:
        Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018,
        arXiv:1707.06642.
    """

    registered: ClassVar[str] = "inat18"
    needs: ClassVar[str] = (
        "the images of iNaturalist 2018 (https://github.com/visipedia/inat_comp, train_val2018) as "
        "train_val2018/<supercategory>/<category>/"
    )

    augment: Augment = Field("inat", description="name of the training pipeline")
    train: str = _list("iNaturalist18_train.txt")
    test: str = _list("iNaturalist18_val.txt")


class ISIC2019LT(Official):
    """ISIC-2019-LT: 8 classes of skin lesions, 5,000 training images of the largest class.

    There are lists for three imbalance ratios; 50 validation and 100 test images a class.

    Reference:
        Ju et al., Flexible Sampling for Long-tailed Skin Lesion Classification, MICCAI 2022,
        arXiv:2204.03161 (the lists); Combalia et al., BCN20000: Dermoscopic Lesions in the Wild,
        2019, arXiv:1908.02288, and Tschandl et al., The HAM10000 dataset, 2018, arXiv:1803.10417
        (images).
    """

    registered: ClassVar[str] = "isic2019_lt"
    needs: ClassVar[str] = (
        "the training images of ISIC 2019 (https://challenge.isic-archive.com/data/#2019, "
        "ISIC_2019_Training_Input) in one folder"
    )
    lists_from: ClassVar[str] = FLEX_SAMPLING
    lists_in: ClassVar[str] = "dataset/8-class"
    also: ClassVar[str] = NPY

    imbalance_ratio: Literal[100, 200, 500] = Field(
        100, description="largest over smallest class, each with lists of its own"
    )
    train: str = _list("isic2019_lt8_train_RATIO.txt", OF_RATIO)
    val: str | None = _list("isic2019_lt8_val_RATIO.txt", OF_RATIO)
    test: str = _list("isic2019_lt8_test_RATIO.txt", OF_RATIO)

    def _wanted(self) -> dict[str, str]:
        ratio = str(self.imbalance_ratio)
        return {part: name.replace("RATIO", ratio) for part, name in super()._wanted().items()}


class ISICArchiveLT(Official):
    """ISIC-Archive-LT: 14 classes of skin lesions, 17,508 training images, 9,012 to 9 a class.

    Validation and test images are as imbalanced as training images, 3 to 2,575 a class: compare
    the mean recall of the classes beside the accuracy.

    Reference:
        Ju et al., Flexible Sampling for Long-tailed Skin Lesion Classification, MICCAI 2022,
        arXiv:2204.03161.
    """

    registered: ClassVar[str] = "isic_archive_lt"
    needs: ClassVar[str] = (
        "the images of ISIC 2019 and further ones of the ISIC archive "
        "(https://www.isic-archive.com) in one folder"
    )
    lists_from: ClassVar[str] = FLEX_SAMPLING
    lists_in: ClassVar[str] = "dataset/14-class"
    also: ClassVar[str] = NPY

    train: str = _list("isic_archive_lt14_train.txt")
    val: str | None = _list("isic_archive_lt14_val.txt")
    test: str = _list("isic_archive_lt14_test.txt")


class SemiAves(Official):
    """Semi-Aves, labelled part: 200 birds, 3,959 training images, 43 to 5 a class.

    Reference:
        Su and Maji, The Semi-Supervised iNaturalist-Aves Challenge at FGVC7 Workshop, 2021,
        arXiv:2103.06937; Su et al., A Realistic Evaluation of Semi-Supervised Learning for
        Fine-Grained Classification, CVPR 2021, arXiv:2104.00679 (the lists).
    """

    registered: ClassVar[str] = "semi_aves"
    needs: ClassVar[str] = (
        "the images of Semi-Aves (https://github.com/cvl-umass/semi-inat-2020) as "
        "trainval_images/<class>/ and test/"
    )
    lists_from: ClassVar[str] = SSL_EVALUATION
    lists_in: ClassVar[str] = "data/semi_aves"
    published_as: ClassVar[Mapping[str, str]] = {
        "train": "l_train.txt",
        "val": "val.txt",
        "test": "test.txt",
    }

    augment: Augment = Field("crop", description="name of the training pipeline")
    train: str = _list("semi_aves_l_train.txt")
    val: str | None = _list("semi_aves_val.txt")
    test: str = _list("semi_aves_test.txt")


class SemiFungi(Official):
    """Semi-Fungi, labelled part: 200 fungi, 4,141 training images, 78 to 6 a class.

    Training and validation images are one list, as in the authors' experiments.

    Reference:
        Su et al., A Realistic Evaluation of Semi-Supervised Learning for Fine-Grained
        Classification, CVPR 2021, arXiv:2104.00679.
    """

    registered: ClassVar[str] = "semi_fungi"
    needs: ClassVar[str] = (
        "the images of the FGVCx Fungi challenge of 2018 "
        "(https://github.com/visipedia/fgvcx_fungi_comp) as images/<class>/"
    )
    lists_from: ClassVar[str] = SSL_EVALUATION
    lists_in: ClassVar[str] = "data/semi_fungi"
    published_as: ClassVar[Mapping[str, str]] = {"train": "l_train_val.txt", "test": "test.txt"}

    augment: Augment = Field("crop", description="name of the training pipeline")
    train: str = _list("semi_fungi_l_train_val.txt")
    test: str = _list("semi_fungi_test.txt")


class SemiINat(Official):
    """Semi-iNat, labelled part: 810 species, 9,721 training images, 80 to 5 a class.

    The validation list, 5 images a class, is the test set: the labels of the challenge's test
    images are not public.

    Reference:
        Su and Maji, The Semi-Supervised iNaturalist Challenge at the FGVC8 Workshop, 2021,
        arXiv:2106.01364.
    """

    registered: ClassVar[str] = "semi_inat"
    needs: ClassVar[str] = (
        "the labelled images of Semi-iNat (https://github.com/cvl-umass/semi-inat-2021) as "
        "l_train/<class>/ and val/<class>/"
    )
    lists_from: ClassVar[str] = SSL_EVALUATION
    lists_in: ClassVar[str] = "data/semi_inat"
    published_as: ClassVar[Mapping[str, str]] = {"train": "l_train.txt", "test": "val.txt"}

    augment: Augment = Field("crop", description="name of the training pipeline")
    train: str = _list("semi_inat_l_train.txt")
    test: str = _list("semi_inat_val.txt")

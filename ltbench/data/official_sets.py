"""The data sets with official lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from ltbench.data.official import Official
from ltbench.data.pipelines import Augment

FLEX_SAMPLING = "https://github.com/PyJulie/FlexSampling"
NPY = "each line an image's name from a part's .npy file and its label in dic.npy"
SSL_EVALUATION = "https://github.com/cvl-umass/ssl-evaluation"
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

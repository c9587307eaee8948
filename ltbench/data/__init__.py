"""Data sets, samplers and loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltbench.config.registry import Part, Registry

if TYPE_CHECKING:
    from ltbench.data.base import DatasetConfig
    from ltbench.data.samplers import Sampler

SAMPLERS: Registry[type[Sampler]] = Registry(
    "sampler",
    {
        "instance": "ltbench.data.samplers:Instance",
        "class_aware": "ltbench.data.samplers:ClassAware",
        "square_root": "ltbench.data.samplers:SquareRoot",
        "reversed": "ltbench.data.samplers:Reversed",
        "progressive": "ltbench.data.samplers:Progressive",
        "power": "ltbench.data.samplers:Power",
        "weighted": "ltbench.data.samplers:Weighted",
        "subset": "ltbench.data.samplers:Subset",
        "effective": "ltbench.data.samplers:Effective",
        "deferred": "ltbench.data.samplers:Deferred",
    },
)

DATASETS: Registry[type[DatasetConfig]] = Registry(
    "dataset",
    {
        "digits_lt": Part(
            "ltbench.data.digits:DigitsLT",
            title="Digits-LT",
            aliases=("digits",),
            side=16,
            rootless=True,
        ),
        "cifar10_lt": Part(
            "ltbench.data.cifar:CIFAR10LT",
            title="CIFAR-10-LT",
            suffix="cifar10",
            side=32,
            hub_id="uoft-cs/cifar10",
        ),
        "cifar100_lt": Part(
            "ltbench.data.cifar:CIFAR100LT",
            title="CIFAR-100-LT",
            suffix="cifar100",
            side=32,
            hub_id="uoft-cs/cifar100",
        ),
        "imagenet_lt": Part(
            "ltbench.data.official_sets:ImageNetLT",
            title="ImageNet-LT",
            suffix="imagenet_lt",
            hub_id="ILSVRC/imagenet-1k",
        ),
        "places_lt": Part(
            "ltbench.data.official_sets:PlacesLT", title="Places-LT", suffix="places_lt"
        ),
        "inat18": Part(
            "ltbench.data.official_sets:INat18",
            title="iNaturalist-2018",
            suffix="inat",
            aliases=("inat2018", "inaturalist"),
        ),
        "caltech101_lt": Part(
            "ltbench.data.caltech:Caltech101LT",
            title="Caltech-101-LT",
            suffix="caltech101",
        ),
        "isic2019_lt": Part(
            "ltbench.data.official_sets:ISIC2019LT", title="ISIC-2019-LT", suffix="isic2019"
        ),
        "isic_archive_lt": Part(
            "ltbench.data.official_sets:ISICArchiveLT",
            title="ISIC-Archive-LT",
            suffix="isic_archive",
        ),
        "semi_aves": Part(
            "ltbench.data.official_sets:SemiAves", title="Semi-Aves", suffix="semi_aves"
        ),
        "semi_fungi": Part(
            "ltbench.data.official_sets:SemiFungi", title="Semi-Fungi", suffix="semi_fungi"
        ),
        "semi_inat": Part(
            "ltbench.data.official_sets:SemiINat", title="Semi-iNat", suffix="semi_inat"
        ),
        "folder": "ltbench.data.folder:Folder",
        "list": "ltbench.data.lists:ImageList",
        "shards": "ltbench.data.shards.dataset:Shards",
    },
)

"""The registries of ltbench: what exists under which name. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltbench.registry import Registry

if TYPE_CHECKING:
    from ltbench.data.base import DatasetConfig
    from ltbench.data.samplers import Sampler
    from ltbench.methods.base import Method
    from ltbench.moo.base import Solver
    from ltbench.updates.base import Update

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "ce": "ltbench.methods.ce:CE",
        "mixup": "ltbench.methods.mixup:Mixup",
        "ldam_drw": "ltbench.methods.ldam_drw:LDAMDRW",
        "balanced_softmax": "ltbench.methods.balanced_softmax:BalancedSoftmax",
        "logit_adjustment": "ltbench.methods.logit_adjustment:LogitAdjustment",
        "logit_adjustment_posthoc": "ltbench.methods.logit_adjustment:LogitAdjustmentPosthoc",
        "crt": "ltbench.methods.crt:CRT",
        "lws": "ltbench.methods.lws:LWS",
        "tau_norm": "ltbench.methods.tau_norm:TauNorm",
        "mislas": "ltbench.methods.mislas:MiSLAS",
        "plot_stage2": "ltbench.methods.plot_stage2:PlotStage2",
        "focal": "ltbench.methods.focal:Focal",
        "class_balanced": "ltbench.methods.class_balanced:ClassBalanced",
        "vs": "ltbench.methods.vs:VS",
        "lade": "ltbench.methods.lade:LADE",
        "gcl": "ltbench.methods.gcl:GCL",
        "gcl_stage2": "ltbench.methods.gcl:GCLStage2",
        "disalign": "ltbench.methods.disalign:DisAlign",
        "cc_sam": "ltbench.methods.cc_sam:CCSAM",
        "bbn": "ltbench.methods.bbn:BBN",
        "reslt": "ltbench.methods.reslt:ResLT",
        "ride": "ltbench.methods.ride:RIDE",
        "sade": "ltbench.methods.sade:SADE",
        "rsg": "ltbench.methods.rsg:RSG",
        "paco": "ltbench.methods.paco:PaCo",
        "bcl": "ltbench.methods.bcl:BCL",
        "difficulty_net": "ltbench.methods.difficulty_net:DifficultyNet",
        "m2m": "ltbench.methods.m2m:M2m",
    },
)

UPDATES: Registry[type[Update]] = Registry(
    "update",
    {
        "plain": "ltbench.updates.plain:Plain",
        "sam": "ltbench.updates.sam:SAM",
        "plot": "ltbench.updates.plot:Plot",
    },
)

SOLVERS: Registry[type[Solver]] = Registry(
    "solver",
    {
        "mean": "ltbench.moo.mean:Mean",
        "cagrad": "ltbench.moo.cagrad:CAGrad",
        "mgda": "ltbench.moo.mgda:MGDA",
        "pcgrad": "ltbench.moo.pcgrad:PCGrad",
        "epo": "ltbench.moo.epo:EPO",
        "slsqp": "ltbench.moo.slsqp:SLSQP",
        "torchjd": "ltbench.moo.torchjd:TorchJD",
    },
)

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
        "digits_lt": "ltbench.data.digits:DigitsLT",
        "cifar10_lt": "ltbench.data.cifar:CIFAR10LT",
        "cifar100_lt": "ltbench.data.cifar:CIFAR100LT",
        "imagenet_lt": "ltbench.data.official:ImageNetLT",
        "places_lt": "ltbench.data.official:PlacesLT",
        "inat18": "ltbench.data.official:INat18",
        "folder": "ltbench.data.folder:Folder",
        "list": "ltbench.data.lists:ImageList",
        "shards": "ltbench.data.shards.dataset:Shards",
    },
)

# Ours; every other timm name is accepted as a backbone too.
BACKBONES: Registry[Any] = Registry(
    "backbone",
    {
        "resnet20_cifar": "ltbench.backbones.cifar_resnet:resnet20_cifar",
        "resnet32_cifar": "ltbench.backbones.cifar_resnet:resnet32_cifar",
        "resnet44_cifar": "ltbench.backbones.cifar_resnet:resnet44_cifar",
        "resnet56_cifar": "ltbench.backbones.cifar_resnet:resnet56_cifar",
        "resnet10": "ltbench.backbones.resnet:resnet10",
        "resnet50": "ltbench.backbones.resnet:resnet50",
        "resnet152": "ltbench.backbones.resnet:resnet152",
        "resnext50_32x4d": "ltbench.backbones.resnet:resnext50_32x4d",
    },
)

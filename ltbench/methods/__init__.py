"""Methods of the literature: one module each, with its loss, sampler or network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltbench.config.registry import Part, Registry

if TYPE_CHECKING:
    from ltbench.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "ce": Part("ltbench.methods.ce:CE", title="CE", aliases=("CE (joint)",)),
        "mixup": Part("ltbench.methods.mixup:Mixup", title="Mixup"),
        "ldam_drw": Part("ltbench.methods.ldam_drw:LDAMDRW", title="LDAM-DRW"),
        "balanced_softmax": Part(
            "ltbench.methods.balanced_softmax:BalancedSoftmax", title="Balanced Softmax"
        ),
        "logit_adjustment": Part(
            "ltbench.methods.logit_adjustment:LogitAdjustment", title="Logit Adjustment"
        ),
        "logit_adjustment_posthoc": Part(
            "ltbench.methods.logit_adjustment:LogitAdjustmentPosthoc",
            title="Logit Adjustment (post-hoc)",
            trains=False,
        ),
        "crt": Part("ltbench.methods.crt:CRT", title="cRT", aliases=("Decouple",)),
        "lws": Part("ltbench.methods.lws:LWS", title="LWS"),
        "tau_norm": Part(
            "ltbench.methods.tau_norm:TauNorm",
            title="tau-norm",
            aliases=("Decouple-tau-norm",),
            trains=False,
        ),
        "mislas": Part("ltbench.methods.mislas:MiSLAS", title="MiSLAS"),
        "plot_stage2": Part("ltbench.methods.plot_stage2:PlotStage2", stage_of="plot_official"),
        "focal": Part("ltbench.methods.focal:Focal", title="Focal Loss"),
        "class_balanced": Part(
            "ltbench.methods.class_balanced:ClassBalanced", title="Class-Balanced CE"
        ),
        "vs": Part("ltbench.methods.vs:VS", title="VS"),
        "lade": Part("ltbench.methods.lade:LADE", title="LADE"),
        "gcl": Part("ltbench.methods.gcl:GCL", title="GCL"),
        "gcl_stage2": Part("ltbench.methods.gcl:GCLStage2", stage_of="gcl"),
        "disalign": Part("ltbench.methods.disalign:DisAlign", title="DisAlign"),
        "cc_sam": Part("ltbench.methods.cc_sam:CCSAM", title="CC-SAM"),
        "bbn": Part("ltbench.methods.bbn:BBN", title="BBN"),
        "reslt": Part("ltbench.methods.reslt:ResLT", title="ResLT"),
        "ride": Part("ltbench.methods.ride:RIDE", title="RIDE"),
        "sade": Part("ltbench.methods.sade:SADE", title="SADE"),
        "rsg": Part("ltbench.methods.rsg:RSG", title="RSG"),
        "paco": Part("ltbench.methods.paco:PaCo", title="PaCo"),
        "bcl": Part("ltbench.methods.bcl:BCL", title="BCL"),
        "difficulty_net": Part(
            "ltbench.methods.difficulty_net:DifficultyNet", title="Difficulty-Net"
        ),
        "m2m": Part("ltbench.methods.m2m:M2m", title="M2m"),
    },
    options="ltbench.methods.options",
)

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
        "lift": Part("ltbench.methods.lift:LIFT", title="LIFT"),
        "lift_plus": Part("ltbench.methods.lift:LIFTPlus", title="LIFT+"),
        "crt": Part("ltbench.methods.crt:CRT", title="cRT", aliases=("Decouple",)),
        "lws": Part("ltbench.methods.lws:LWS", title="LWS"),
        "tau_norm": Part(
            "ltbench.methods.tau_norm:TauNorm",
            title="tau-norm",
            aliases=("Decouple-tau-norm",),
            trains=False,
        ),
        "class_mean": Part(
            "ltbench.methods.fixed_heads:ClassMean", title="NCM", trains=False, alone=True
        ),
        "zero_shot": Part(
            "ltbench.methods.fixed_heads:ZeroShot", title="Zero-shot", trains=False, alone=True
        ),
        "mislas": Part("ltbench.methods.mislas:MiSLAS", title="MiSLAS"),
        "los": Part("ltbench.methods.los:LOS", title="LOS"),
        "weight_balancing": Part(
            "ltbench.methods.weight_balancing:WeightBalancing",
            title="Weight balancing",
            aliases=("Weight balancing (stage 2: weight decay + MaxNorm)",),
        ),
        "h2t": Part("ltbench.methods.h2t:H2T", title="H2T"),
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
        "mdcs": Part("ltbench.methods.mdcs:MDCS", title="MDCS"),
        "shike": Part("ltbench.methods.shike:SHIKE", title="SHIKE"),
        "shike_stage2": Part("ltbench.methods.shike:SHIKEStage2", stage_of="shike"),
        "balpoe": Part(
            "ltbench.methods.balpoe:BalPoE", title="BalPoE", aliases=("BalPoE (3 experts)",)
        ),
        "ncl": Part("ltbench.methods.ncl:NCL", title="NCL"),
        "nclpp": Part("ltbench.methods.ncl:NCLPlusPlus", title="NCL++"),
        "dirmixe": Part("ltbench.methods.dirmixe:DirMixE", title="DirMixE"),
        "etf": Part("ltbench.methods.etf:ETF", title="ETF + dot regression"),
        "rsg": Part("ltbench.methods.rsg:RSG", title="RSG"),
        "paco": Part("ltbench.methods.paco:PaCo", title="PaCo"),
        "gpaco": Part("ltbench.methods.gpaco:GPaCo", title="GPaCo"),
        "bcl": Part("ltbench.methods.bcl:BCL", title="BCL"),
        "proco": Part(
            "ltbench.methods.proco:ProCo",
            title="ProCo",
            aliases=("ProCo (200 epochs)", "ProCo (90 epochs)"),
        ),
        "difficulty_net": Part(
            "ltbench.methods.difficulty_net:DifficultyNet", title="Difficulty-Net"
        ),
        "m2m": Part("ltbench.methods.m2m:M2m", title="M2m"),
        "cmo": Part("ltbench.methods.cmo:CMO", title="CMO", aliases=("BS + CMO",)),
        "glmc": Part("ltbench.methods.glmc:GLMC", title="GLMC"),
        "cuda": Part("ltbench.methods.cuda:CUDA", title="CUDA"),
    },
    options="ltbench.methods.options",
)

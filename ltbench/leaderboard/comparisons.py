"""Pairs of recipes that are compared, and the rows that a paper prints of them."""

from __future__ import annotations

ENDINGS = {"_small": "small track", "": "ratio 100", "_if200": "ratio 200", "_if50": "ratio 50"}
"""Endings of the recipes that a contribution is looked for in, and what they mean."""
GRIDS = (
    *("small_cifar10", "small_table4_ladder", "small_table1_solvers", "small_confounders"),
    "small_cifar100",
)
LADDER = (  # name, recipes without and with it, the printed rungs
    (
        "window: the classes are objectives in the first epochs",
        ("crt_mixup_cifar10", ""),
        ("crt_mixup_moo_cifar10", "_paper"),
        ("cRT+Mixup", "cRT+Mixup + temporal design"),
    ),
    (
        "climb: the gradients are those after an ascent step",
        ("crt_mixup_moo_cifar10", "_paper"),
        ("crt_mixup_moo_sam_cifar10", ""),
        (
            "cRT+Mixup + temporal design",
            "cRT+Mixup + temporal design + anticipated worst case",
        ),
    ),
    (
        "collapse term: the variance of each class's losses",
        ("crt_mixup_moo_sam_cifar10", ""),
        ("crt_mixup_plot_cifar10", ""),
        (
            "cRT+Mixup + temporal design + anticipated worst case",
            "cRT+Mixup + temporal design + anticipated worst case + variability collapse",
        ),
    ),
)
CONFOUNDERS = (  # name, recipes without and with it
    (
        "un-mixed labels in the first epochs, nothing else of PLOT",
        ("crt_mixup_cifar10", ""),
        ("plot_official_cifar10", "_unmixed_only_plain_crt"),
    ),
    (
        "the released stage 2 in the place of cRT's",
        ("plot_official_cifar10", "_plain_crt"),
        ("plot_official_cifar10", ""),
    ),
    (
        "both of these, nothing else of PLOT",
        ("crt_mixup_cifar10", ""),
        ("plot_official_cifar10", "_unmixed_only"),
    ),
    (
        "objectives, climb and collapse term, both of these on either side",
        ("plot_official_cifar10", "_unmixed_only"),
        ("plot_official_cifar10", ""),
    ),
    (
        "all that the released code changes",
        ("crt_mixup_cifar10", ""),
        ("plot_official_cifar10", ""),
    ),
)
SOLVED = ("crt_mixup", "ldam_drw", "balanced_softmax", "m2m", "mislas", "gcl")
SOLVERS = (  # name, variant of the recipe, words of the printed row
    ("EPO throughout", "_epo_naive", "w/ EPO (naive, no early stop)"),
    ("MGDA throughout", "_mgda_naive", "w/ MGDA (naive, no early stop)"),
    ("CAGrad throughout", "_cagrad_naive", "w/ CAGrad (naive, no early stop)"),
    ("EPO, early stop", "_epo", "w/ EPO (early stop)"),
    ("MGDA, early stop", "_mgda", "w/ MGDA (early stop)"),
    ("CAGrad, early stop", "", "w/ CAGrad (early stop)"),
)

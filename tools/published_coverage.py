"""Print which published results a recipe aims at, and why the others have none.

Exits with 1 if a top-1 row of the PLOT paper's tables has neither recipe nor reason.

python tools/published_coverage.py
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from ltbench.config.files import get_recipe, list_recipes, list_variants
from ltbench.config.recipe import Recipe
from ltbench.leaderboard import INAT_RATIOS, published
from ltbench.records.aggregate import Row
from ltbench.records.titles import backbone_title, dataset_title, key, method_title, usual_title

Place = tuple[str, str, float, str]  # method, data set, ratio, backbone
RATIOS = {"ImageNet-LT": 256.0, "Places-LT": 996.0, "iNaturalist-2018": min(INAT_RATIOS)}
LEFT_OUT = {
    "NCM": "not among the methods",
    "BALMS": "its meta sampler is not among the methods",
    "CE class-balanced sampling": "a sampler of cross-entropy, not a method",
    "CE square-root sampling": "a sampler of cross-entropy, not a method",
    "CE progressively-balanced sampling": "a sampler of cross-entropy, not a method",
    "GCL stage 1": "the first stage of gcl_*, not a recipe of its own",
    "CE-DRW + SAM": "not among the methods",
    "RIDE-ResLT (3 experts)": "an ensemble of two methods",
    "cRT+Mixup + temporal design + anticipated worst case + variability collapse": (
        "the rung is crt_mixup_plot_cifar10_if200"
    ),
}


def main() -> int:
    """Return the exit status."""
    aimed: dict[Place, str] = {}
    for recipe in every_recipe():
        for place in places(recipe):
            aimed.setdefault(place, recipe.name)
    console, left = Console(), []
    totals: dict[str, list[int]] = {}
    for row in published(None):
        paper = row["source"].startswith("PLOT")
        if row["metric"] != "top1":
            left.append((row, f"no top-1 result ({row['metric']})"))
            continue
        table = row["source"] if paper else "repositories"
        name = usual_title(row["method"])
        ratio = RATIOS.get(row["dataset"], float(row["imbalance_ratio"] or 0))
        place = (key(name), row["dataset"], ratio, row["backbone"])
        plain = (key(name.split(" (")[0]), *place[1:])
        found = aimed.get(place) or (aimed.get(plain) if " w/ " not in name else None)
        count = totals.setdefault(table, [0, 0])
        count[0] += found is not None
        count[1] += 1
        if found is None:
            left.append((row, LEFT_OUT.get(row["method"], "") or other_network(row)))
    show = Table("rows of", "with a recipe", "in all")
    for table, (found_rows, rows) in sorted(totals.items()):
        show.add_row(table, str(found_rows), str(rows))
    console.print(show)
    missing = [r for r, reason in left if not reason and r["source"].startswith("PLOT")]
    for row, reason in left:
        console.print(
            f"{row['source']}: {row['method']}, {row['dataset']} {row['imbalance_ratio']}, "
            f"{row['backbone']}: {reason or 'no recipe'}",
            soft_wrap=True,
        )
    return int(bool(missing))


def other_network(row: Row) -> str:
    """Return why a repository's row has no recipe, as far as its name and network say."""
    if "distill" in row["method"]:
        return "distilled from a larger ensemble"
    if row["source"].startswith("PLOT"):
        return ""
    return f"no recipe with the backbone {row['backbone']}"


def every_recipe() -> Iterator[Recipe]:
    """Yield all recipes, with their variants, and these at each ratio."""
    for name in list_recipes():
        variants = list_variants(name)
        ratios = [v for v in variants if v.startswith("if")]
        others = [v for v in variants if not v.startswith("if")]
        for one, ratio in itertools.product(["", *others], ["", *ratios]):
            yield get_recipe("_".join(part for part in (name, one, ratio) if part))


def places(recipe: Recipe) -> Iterator[Place]:
    """Yield what a recipe aims at, by its target's name and by its own."""
    dataset = dataset_title(recipe.data.name)
    ratio = getattr(recipe.data.config, "imbalance_ratio", None)
    where = (dataset, RATIOS.get(dataset, float(ratio or 0)), backbone_title(recipe.backbone.name))
    if recipe.target is not None:
        yield (key(usual_title(recipe.target.method)), *where)
    if "_moo" not in recipe.name:
        yield (key(method_title(recipe.name)), *where)


if __name__ == "__main__":
    sys.exit(main())

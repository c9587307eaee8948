"""All branches of a network are trained alike: the same parts, at the same rates."""

from __future__ import annotations

import re

import torch
import toys

from ltbench import get_recipe, list_recipes
from ltbench.config.files import list_variants
from ltbench.config.recipe import Recipe
from ltbench.data.base import DatasetInfo
from ltbench.methods import METHODS
from ltbench.methods.build import build_backbone, build_method
from ltbench.models.branches import Branches
from ltbench.train.freezing import freeze
from ltbench.train.optim import parameter_groups

COPY = re.compile(r"branches\.copies\.(\d+)\.(.+)")
BLOCK, EXPERTS = ("net.layer4.2",), ("net.layer3", "net.layer4")
# By method and data: what each branch has for itself, and the rate of trunk, branches and
# classifiers over the base rate. Where the authors have a setting it is theirs; nothing is frozen.
EXPECTED = {
    ("bbn", "cifar"): (2, ("net.layer3.4",), (1, 1, 1)),
    ("bbn", "small"): (2, ("net.layer3.2",), (1, 1, 1)),
    ("bbn", "imagenet_lt"): (2, BLOCK, (1, 1, 1)),
    ("bbn", "inat"): (2, BLOCK, (1, 1, 1)),
    ("bbn", "places_lt"): (2, BLOCK, (0.01, 0.01, 1)),
    ("ride", "cifar"): (3, ("net.layer2", "net.layer3"), (1, 1, 1)),
    ("ride", "imagenet_lt"): (3, EXPERTS, (1, 1, 1)),
    ("ride", "inat"): (3, EXPERTS, (1, 1, 1)),
    ("ride", "places_lt"): (3, EXPERTS, (0.1, 0.1, 1)),
    ("sade", "cifar"): (3, ("net.layer2", "net.layer3"), (1, 1, 1)),
    ("sade", "imagenet_lt"): (3, EXPERTS, (1, 1, 1)),
    ("sade", "inat"): (3, EXPERTS, (1, 1, 1)),
    ("sade", "places_lt"): (3, EXPERTS, (0.1, 0.1, 1)),
    ("balpoe", "cifar"): (3, ("net.layer2", "net.layer3"), (1, 1, 1)),
    ("balpoe", "small"): (3, ("net.layer2", "net.layer3"), (1, 1, 1)),
    ("balpoe", "imagenet_lt"): (3, EXPERTS, (1, 1, 1)),
    ("balpoe", "inat"): (3, EXPERTS, (1, 1, 1)),
    ("mdcs", "cifar"): (3, ("net.layer2", "net.layer3"), (1, 1, 1)),
    ("mdcs", "imagenet_lt"): (3, EXPERTS, (1, 1, 1)),
    ("mdcs", "inat"): (3, EXPERTS, (1, 1, 1)),
    ("mdcs", "places_lt"): (3, EXPERTS, (0.1, 0.1, 1)),
    ("dirmixe", "cifar"): (3, ("net.layer2", "net.layer3"), (1, 1, 1)),
    ("dirmixe", "imagenet_lt"): (3, EXPERTS, (1, 1, 1)),
    ("dirmixe", "inat"): (3, EXPERTS, (1, 1, 1)),
    ("dirmixe", "places_lt"): (3, EXPERTS, (0.1, 0.1, 1)),
    ("ncl", "cifar"): (3, ("net",), (None, 1, 1)),
    ("ncl", "imagenet_lt"): (3, ("net",), (None, 1, 1)),
    ("ncl", "inat"): (3, ("net",), (None, 1, 1)),
    ("ncl", "places_lt"): (3, ("net",), (None, 1, 1)),
    ("nclpp", "cifar"): (2, ("net",), (None, 1, 1)),
    ("shike", "cifar"): (3, ("net.layer3",), (1, 1, 1)),
    # The branches of ResLT are one layer of the classifier's part.
    ("reslt", "cifar"): (1, (), (1, None, 1)),
    ("reslt", "imagenet_lt"): (1, (), (1, None, 1)),
    ("reslt", "inat"): (1, (), (1, None, 1)),
    ("reslt", "places_lt"): (1, (), (0.01, None, 1)),
}
DATA = {"cifar10": "cifar", "cifar100": "cifar"}
CLASSES = {"cifar10_lt": 10, "cifar100_lt": 100, "imagenet_lt": 1000, "places_lt": 365}


def branched() -> list[str]:
    names = (name for method in {m for m, _ in EXPECTED} for name in list_recipes(f"{method}_*"))
    return sorted(f"{n}_{v}" if v else n for n in names for v in ("", *list_variants(n)))


def expected(recipe: Recipe):
    """The row of a recipe; `_plot` twins and variants have that of the recipe itself."""
    method, _, rest = recipe.name.partition("_")
    found = re.match(r"(?:plot_)?(cifar100?|imagenet_lt|places_lt|inat)(?:_|$)", rest)
    assert found is not None, recipe.name
    data = "small" if rest.endswith("_small") else DATA.get(found[1], found[1])
    return EXPECTED[method, data]


SEEN: dict[str, list[dict[str, tuple[float, bool]]]] = {}  # by what of a recipe matters here


def trained(recipe: Recipe) -> list[dict[str, tuple[float, bool]]]:
    """Rate factor and whether it is trained, of each parameter, by stage."""
    parts = [(s.method, s.optim, s.freeze, s.frozen_bn) for s in recipe.stages]
    key = str((recipe.data.name, recipe.backbone, parts, recipe.run.batchnorm))
    if key not in SEEN:
        classes = CLASSES.get(recipe.data.name, 8142)
        counts = tuple(max(5, 1000 // (k + 1)) for k in range(classes))
        info = DatasetInfo(recipe.data.name, counts, tuple(map(str, range(classes))))
        SEEN[key], method = [], None
        for index, stage in enumerate(recipe.stages):
            method = build_method(recipe, index, info, method)
            assert stage.optim is not None
            freeze(method, stage, recipe.run.batchnorm)
            groups = parameter_groups(method.known_as(), stage.optim)
            factors = {id(p): group["factor"] for group in groups for p in group["params"]}
            named = method.named_parameters()
            SEEN[key].append({n: (factors[id(p)], p.requires_grad) for n, p in named})
    return SEEN[key]


def test_branches_are_trained_alike_and_as_the_authors_do(monkeypatch):
    def without_memory(recipe, classes):  # a large network of the right shapes
        with torch.device("meta"):
            return build_backbone(recipe, classes)

    monkeypatch.setattr("ltbench.methods.build.build_backbone", without_memory)
    wrong = [line for name in branched() for line in problems(name)]
    assert not wrong, "\n".join(wrong)


def problems(name: str) -> list[str]:
    """What is wrong with a recipe, one line each."""
    recipe = get_recipe(name, "backbone.pretrained=false")
    branches, own, factors = expected(recipe)
    kinds = zip(("trunk", "branch", "head"), factors, strict=True)
    wanted = {kind: {(factor, True)} for kind, factor in kinds if factor is not None}
    wrong = []
    for stage in trained(recipe):
        if not any(how[1] for n, how in stage.items() if not n.startswith("head.")):
            continue  # a stage of the classifiers alone
        found: dict[str, set[tuple[float, bool]]] = {}
        holders: dict[str, set[int]] = {}  # which branches have a layer
        for parameter, how in stage.items():
            copy = COPY.fullmatch(parameter)
            place = parameter.removeprefix("backbone.") if copy is None else copy[2]
            if not parameter.startswith("head."):
                holders.setdefault(place, set()).add(0 if copy is None else int(copy[1]) + 1)
            if copy is not None and how != stage[f"backbone.{place}"]:
                wrong.append(f"{name}: `{parameter}` is not trained as in the first branch")
            found.setdefault(kind_of(parameter, place, own), set()).add(how)
        for place, which in holders.items():
            count = branches if kind_of("", place, own) == "branch" else 1
            if which != set(range(count)):
                wrong.append(f"{name}: `{place}` is in branches {sorted(which)} of {count}")
        if found != wanted:
            wrong.append(f"{name}: trained {found}, expected {wanted}")
    return wrong


def kind_of(parameter: str, place: str, own: tuple[str, ...]) -> str:
    if parameter.startswith("head."):
        return "head"
    return "branch" if any(f"{place}.".startswith(f"{part}.") for part in own) else "trunk"


def test_every_method_with_branches_is_looked_at():
    has = {
        METHODS.facts(name).stage_of or name
        for name in METHODS.names()
        if any(isinstance(module, Branches) for module in toys.method(name).modules())
    }
    assert has <= {method for method, _ in EXPECTED}

"""A new method, data set or backbone has all that its table, recipes and tests need."""

from __future__ import annotations

from pathlib import Path

import toys

from ltbench import list_recipes
from ltbench.config.files import family
from ltbench.data import DATASETS
from ltbench.methods import METHODS
from ltbench.models import BACKBONES

ROOT = Path(__file__).parent.parent
OWN_IMAGES = ("folder", "list", "shards")  # formats: what they hold has a name of its own
WITHOUT_TABLES = ("digits_lt",)  # the demonstration of `quickstart`


def test_every_method_has_facts_recipes_settings_and_a_contract_test():
    families = {family(recipe) for recipe in list_recipes()}
    missing = []
    for name, part in METHODS.parts().items():
        group = part.stage_of or name
        if not part.title and not part.stage_of:
            missing.append(f"{name}: give it `title=` in ltbench/methods/__init__.py")
        if not list_recipes(f"{group}_*"):
            missing.append(f"{name}: add recipes/{group}/{group}_cifar10.yaml")
        if not (ROOT / "tests" / "authors" / f"{group}.yaml").is_file():
            missing.append(
                f"{name}: add tests/authors/{group}.yaml, what the authors ran; "
                "tests/authors/README.md says how"
            )
        if name not in (*toys.STAGE1, *toys.STAGE2, *toys.POSTHOC):
            missing.append(f"{name}: add it to STAGE1, STAGE2 or POSTHOC in tests/toys.py")
    missing += [
        f"recipes/{group}: no method of that name in ltbench/methods/__init__.py"
        for group in families - {""}
        if not any(group in (name, part.stage_of) for name, part in METHODS.parts().items())
    ]
    assert not missing, "\n".join(missing)


def test_a_recipe_lies_with_the_longest_family_that_its_name_begins_with():
    families = {family(recipe) for recipe in list_recipes()} - {""}
    wrong = []
    for recipe in list_recipes():
        fitting = [group for group in families if f"{recipe}_".startswith(f"{group}_")]
        folder = max(fitting, key=len, default="")
        if family(recipe) != folder:
            wrong.append(f"{recipe}.yaml: move it to recipes/{folder}")
    assert not wrong, "\n".join(wrong)


def test_every_data_set_has_facts_and_recipes():
    missing = []
    for name, part in DATASETS.parts().items():
        place = "in ltbench/data/__init__.py"
        if name in OWN_IMAGES:
            continue
        if not part.title:
            missing.append(f"{name}: give it `title=` {place}")
        if name not in WITHOUT_TABLES and not part.suffix:
            missing.append(f"{name}: give it `suffix=`, how its recipes' names end, {place}")
        if part.suffix and not list_recipes(f"mislas_plot_{part.suffix}"):
            missing.append(f"{name}: add recipes/mislas/mislas_plot_{part.suffix}.yaml")
        if part.suffix and not list_recipes(f"ce_{part.suffix}"):
            missing.append(f"{name}: add recipes/ce/ce_{part.suffix}.yaml")
        if part.rootless == ("root" in DATASETS.get(name).model_fields):
            missing.append(f"{name}: give it `rootless={not part.rootless}` {place}")
    assert not missing, "\n".join(missing)


def test_every_backbone_of_ours_has_a_title():
    missing = [name for name, part in BACKBONES.parts().items() if not part.title]
    assert not missing, f"give them `title=` in ltbench/models/__init__.py: {', '.join(missing)}"


def test_names_and_titles_are_those_of_one_part():
    for table in (METHODS, DATASETS):
        parts = table.parts()
        titles = [t for part in parts.values() for t in (part.title, *part.aliases) if t]
        suffixes = [part.suffix for part in parts.values() if part.suffix]
        assert len(titles) == len(set(titles)), table.kind
        assert len(suffixes) == len(set(suffixes)), table.kind

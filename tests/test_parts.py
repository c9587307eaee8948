"""A new method, data set or backbone has all that its table, recipes and tests need."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ltbench import list_recipes
from ltbench.config import schema
from ltbench.config.files import family
from ltbench.config.registry import Registry
from ltbench.data import DATASETS
from ltbench.methods import METHODS
from ltbench.methods import options as methods_options
from ltbench.methods.base import Method
from ltbench.models import BACKBONES
from ltbench.updates import UPDATES
from ltbench.updates import options as updates_options

ROOT = Path(__file__).parent.parent
OWN_IMAGES = ("folder", "list", "shards")  # formats: what they hold has a name of its own
WITHOUT_TABLES = ("digits_lt",)  # the demonstration of `quickstart`


def test_every_method_has_facts_recipes_and_settings():
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
        if part.trains != METHODS.get(name).trains:
            missing.append(
                f"{name}: give it `trains={not part.trains}` in ltbench/methods/__init__.py, as in "
                "its class"
            )
    missing += [
        f"recipes/{group}: no method of that name in ltbench/methods/__init__.py"
        for group in families - {""}
        if not any(group in (name, part.stage_of) for name, part in METHODS.parts().items())
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("table", "apart"), [(METHODS, methods_options), (UPDATES, updates_options)], ids=lambda x: ""
)
def test_options_of_every_method_and_update_lie_apart(table: Registry, apart: ModuleType):
    missing = []
    for name in table.names():
        part = table.get(name)
        own = part.__name__
        if part.Config is not getattr(apart, own, None):
            missing.append(
                f"{name}: its options belong in {apart.__name__} as `class {own}(Config)`, if "
                f"there are none with a docstring only, and `Config = options.{own}` in its class; "
                "so checking a recipe imports no torch"
            )
        elif table.options(name) is not part.Config:
            missing.append(f"{name}: give the table of {table.kind}s `options={apart.__name__!r}`")
    used = [table.options(name) for name in table.names()]
    used += [f.annotation for options in used for f in options.model_fields.values()]
    missing += [
        f"{apart.__name__}: `{name}` has no line in the table of {table.kind}s, in __init__.py"
        for name, options in vars(apart).items()
        if isinstance(options, type) and options.__module__.startswith(apart.__name__)
        if options not in used and not options.__subclasses__()
    ]
    assert not missing, "\n".join(missing)


def test_a_part_from_outside_keeps_its_options_in_its_class():
    class Focal(Method):  # the name of one of ours
        """A method of somebody else."""

        trains = False

        class Config(schema.Config):
            """Options."""

            power: float = 1.0

    table: Registry = Registry("method", METHODS.parts(), options=methods_options.__name__)
    table.register("theirs", title="Theirs")(Focal)
    assert table.options("theirs") is Focal.Config
    assert table.options("focal") is methods_options.Focal
    assert not table.facts("theirs").trains


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

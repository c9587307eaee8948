"""Compares recipes with what the authors ran; `python tests/authors_settings.py` prints how.

The settings are in `tests/authors`, whose README says how they are written.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ltbench import get_recipe, list_recipes
from ltbench.config.files import list_variants
from ltbench.config.recipe import Recipe
from ltbench.config.registry import registry as find_registry
from ltbench.config.tree import assign, leaves
from ltbench.methods import METHODS

FOLDER = Path(__file__).parent / "authors"
OF_DATA = ("augment", "augment_views")
OF_BACKBONE = ("name", "pretrained")
OF_STAGE = (
    *("method", "epochs", "batch_size", "last_batch", "sampler", "optim"),
    *("freeze", "frozen_bn", "head_init", "factor"),
)
OF_OPTIM = ("name", "lr", "momentum", "weight_decay", "nesterov", "lr_factors")
TWIN = re.compile(r"_(plot|moo_sam|moo)(?=_|$)")  # such a recipe extends the one without


@dataclass
class Comparison:
    """What became of comparing one recipe with its entry.

    Args:
        name: of the recipe.
        authors: whether the settings are the authors', or those of a similar recipe.
        pairs: number of settings compared.
        schedules: how many of them are a stage's learning rate in every epoch.
        equal: how many of them are equal.
        declared: differences that the note names, path to (authors' value, recipe's, words).
        problems: one line each.
    """

    name: str
    authors: bool
    pairs: int = 0
    schedules: int = 0
    equal: int = 0
    declared: dict[str, tuple[Any, Any, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def entries() -> dict[str, dict[str, Any]]:
    """Return the entry of every recipe that has one."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, entry in document["recipes"].items():
            if name in found:
                raise ValueError(f"{path.name}: `{name}` has an entry in another file too")
            found[name] = {"repository": document.get("repository"), **entry}
    return found


def resolved(name: str) -> dict[str, Any]:
    """Return the entry of a recipe with what `like` and `but` say filled in."""
    entry = entries()[name]
    if "like" not in entry:
        return entry
    base = copy.deepcopy(resolved(entry["like"]))
    parts = ("data", "backbone", "stages", "differs", "beyond", "silent")
    kept = {k: base[k] for k in parts if k in base}
    kept["differs"] = {**kept.get("differs", {}), **entry.get("differs", {})}
    for key, value in entry.get("but", {}).items():
        kept["differs"].pop(key, None)
        assign(kept, {}, key, copy.deepcopy(value), "")
    if entry.get("authors") == "none":
        kept.pop("beyond", None)  # that is of the authors' own setting
    own = {k: v for k, v in entry.items() if k not in ("but", "differs")}
    return {**kept, **own}


def entry_of(name: str) -> str | None:
    """Return the recipe whose entry holds for a recipe: its own, or its twin's without PLOT."""
    for candidate in (name, TWIN.sub("", name)):
        if candidate in entries():
            return candidate
    return None


def compared() -> list[tuple[str, str]]:
    """Return every recipe and variant of theirs, with the name of the variant or nothing.

    The small track's schedules are this project's own, with nothing to compare.
    """
    return [
        (name, variant)
        for name in list_recipes()
        for variant in ("", *list_variants(name))
        if variant != "small"
    ]


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe as entries have them, by dotted path."""
    tree = recipe.tree()
    for plain, stage in zip(tree["stages"], recipe.stages, strict=True):
        method = METHODS.get(stage.method.name)
        plain["freeze"] = list(method.freeze if stage.freeze is None else stage.freeze)
        frozen = bool(plain["freeze"])
        plain["frozen_bn"] = (stage.frozen_bn or method.frozen_bn) if frozen else None
        if stage.epochs is not None:
            plain["factor"] = [stage.schedule.factor(e, stage.epochs) for e in range(stage.epochs)]
        del plain["schedule"]
    return dict(leaves(tree))


def factors(pieces: list[list[Any]]) -> list[float]:
    """Return the factor of every epoch, from pieces that end before an epoch."""
    values: list[float] = []
    for end, formula in pieces:
        code = compile(str(formula), "factor", "eval")
        names = {"cos": math.cos, "pi": math.pi, "__builtins__": {}}
        values += [float(eval(code, names, {"e": e})) for e in range(len(values), int(end))]
    return values


def missing(entry: dict[str, Any]) -> list[str]:
    """Return the settings that an entry of the authors' must have and has not."""
    lacking = [f"data.{k}" for k in OF_DATA if k not in entry.get("data", {})]
    lacking += [f"backbone.{k}" for k in OF_BACKBONE if k not in entry.get("backbone", {})]
    for i, stage in enumerate(entry.get("stages", [])):
        wanted = OF_STAGE if "epochs" in stage else ("method",)
        lacking += [f"stages.{i}.{k}" for k in wanted if k not in stage]
        if "optim" in stage:
            lacking += [f"stages.{i}.optim.{k}" for k in OF_OPTIM if k not in stage["optim"]]
        for part, registry in (("method", "METHODS"), ("sampler", "SAMPLERS")):
            if part in stage:
                config = find_registry(registry).get(stage[part]["name"]).Config
                lacking += [
                    f"stages.{i}.{part}.{k}" for k in config.model_fields if k not in stage[part]
                ]
    return [k for k in lacking if k not in entry.get("silent", [])]


def compare(name: str, variant: str = "") -> Comparison:
    """Compare a recipe, or a variant of it, with its entry."""
    own = entry_of(name)
    full = f"{name}_{variant}" if variant else name
    if own is None:
        return Comparison(full, False, problems=[f"{name}: no entry in tests/authors"])
    entry = copy.deepcopy(resolved(own))
    authors = entry.get("authors") != "none"
    result = Comparison(full, authors)
    recipe = get_recipe(full)
    if authors and not (entry.get("source") and entry.get("repository")):
        result.problems.append(f"{full}: the entry has no `source` or its file no `repository`")
    note = " ".join(recipe.note.split())
    if not authors and " ".join(str(entry.get("note")).split()) not in note:
        result.problems.append(f"{full}: the note does not say `{entry.get('note')}`")
    if authors and own == name and not variant:
        result.problems += [f"{full}: the entry lacks `{key}`" for key in missing(entry)]
    changed = entry.get("variants", {}).get(variant, {})
    if re.fullmatch(r"if\d+", variant):
        changed = {"data.imbalance_ratio": int(variant[2:]), **changed}
    for key, value in changed.items():
        assign(entry, {}, key, value, "")
    expected: dict[str, Any] = {}
    for part in ("data", "backbone", "stages"):
        expected |= dict(leaves({part: entry[part]}) if entry.get(part) else ())
    ours, differs = settings(recipe), dict(entry.get("differs", {}))
    for key in ours.keys() - expected.keys():
        if ".lr_factors." in key and any(k.startswith(key.rpartition(".")[0]) for k in expected):
            expected[key] = "none"
    unchecked = {k for k in ours if k.endswith(".factor")} - expected.keys()
    result.problems += [f"{full}: the entry has no `{key}`" for key in sorted(unchecked)]
    for key, value in expected.items():
        if key in entry.get("silent", []) or (key.endswith("head_init") and value is None):
            continue
        if key.endswith(".factor"):
            value = factors(value)
        result.pairs += 1
        result.schedules += key.endswith(".factor")
        if _equal(value, ours.get(key, "absent")):
            result.equal += 1
            if key in differs and not variant and own == name:
                result.problems.append(f"{full}: `{key}` is the authors', though `differs` has it")
        elif key in differs:
            result.declared[key] = (value, ours.get(key, "absent"), str(differs[key]))
        else:
            result.problems.append(
                f"{full}: `{key}` is {_short(ours.get(key, 'absent'))}, the authors have "
                f"{_short(value)} ({entry.get('source')})"
            )
    words = {k: w for k, (_, _, w) in result.declared.items()} | dict(entry.get("beyond", {}))
    for key, text in words.items():
        if " ".join(str(text).split()).lower() not in note.lower():
            result.problems.append(f"{full}: the note does not say `{text}` of `{key}`")
    return result


def _equal(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, bool) or isinstance(ours, bool):
        return theirs is ours
    if isinstance(theirs, int | float) and isinstance(ours, int | float):
        return math.isclose(theirs, ours, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(theirs, list) and isinstance(ours, list):
        same = len(theirs) == len(ours)
        return same and all(map(_equal, theirs, ours))
    return bool(theirs == ours)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 12:
        return f"[{', '.join(f'{v:.4g}' for v in value[:8])}, ... {value[-1]:.4g}]"
    return str(value)


def main() -> None:
    """Print how many settings were compared, the declared differences and the problems."""
    results = [compare(name, variant) for name, variant in compared()]
    counts: Counter[str] = Counter()
    for result in results:
        kind = "authors'" if result.authors else "similar recipe's"
        counts[f"{kind} settings compared"] += result.pairs
        counts[f"{kind} settings compared, schedules"] += result.schedules
        counts[f"{kind} settings equal"] += result.equal
        counts[f"recipes and variants with {kind} settings"] += 1
    for what, count in sorted(counts.items()):
        print(f"{count:6d} {what}")
    print("\ndeclared differences:")
    for result in results:
        if result.authors and result.name in entries():
            for key, (theirs, ours, words) in result.declared.items():
                line = f"{_short(theirs)} -> {_short(ours)} ({words})"
                print(f"  {result.name}: {key}: {line}")
            for setting, words in entries()[result.name].get("beyond", {}).items():
                print(f"  {result.name}: {setting} ({words})")
    problems = [line for result in results for line in result.problems]
    print(f"\n{len(problems)} problems")
    print("\n".join(problems))


if __name__ == "__main__":
    main()

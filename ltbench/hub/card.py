"""Model card of published weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from ltbench.config.registry import docstring_section
from ltbench.data import DATASETS
from ltbench.records.aggregate import VALUES, Row, imbalance_ratio, percentages
from ltbench.records.literature import nearest_published, target_row
from ltbench.records.record import Record
from ltbench.records.titles import dataset_title, method_title, network_title

TEMPLATE = "card.md.jinja"
LIBRARY = "ltbench"


def make_card(record: Record, recipe: Mapping[str, Any], repository: str | None) -> str:
    """Return the card of a published model: YAML front matter, then Markdown.

    Args:
        record: of the published weights.
        recipe: the recipe's tree without paths.
        repository: repository of the model; ``None`` leaves a placeholder.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )  # Markdown, no HTML: `md` and `code` do the escaping
    environment.filters.update(md=escaped, code=as_code)
    source = resources.files("ltbench.hub").joinpath(TEMPLATE).read_text("utf-8")
    body = environment.from_string(source).render(
        title=f"{method_title(record.recipe.name)}, {_network(record)}, {_data(record)}",
        record=record,
        recipe=recipe,
        data=_data(record),
        network=_network(record),
        source=repository or "ORG/NAME",
        values=_printed(percentages(record)),
        literature=_literature(record),
        target=_target(recipe),
        command=_command(record, recipe),
        classes=len(record.metrics.class_counts),
        images=sum(record.metrics.class_counts),
        largest=max(record.metrics.class_counts),
        smallest=min(record.metrics.class_counts),
        tested=sum(record.metrics.total),
        hardware=record.execution.gpu or record.execution.cpu,
        papers=_papers(recipe),
    )
    return f"---\n{_front_matter(record, repository)}\n---\n\n{body}"


def results_of(record: Record) -> list[dict[str, Any]]:
    """Return the entries of ``.eval_results/<dataset>.yaml``, in percent.

    The Hub shows them beside a benchmark it knows under this name; the long-tailed sets are none
    of these, so the entries name the data set as ltbench does.
    """
    return [
        {
            "dataset": {"id": f"{LIBRARY}/{record.dataset.name}", "task_id": name},
            "value": round(value, 4),
            "date": record.date,
            "notes": f"{_data(record)}, {record.recipe.name}, digest {record.recipe.digest}, "
            f"seed {record.seed}",
        }
        for name, value in percentages(record).items()
        if value is not None
    ]


def escaped(text: object) -> str:
    """Return text for Markdown in which no character has a meaning, on one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", line)


def as_code(text: object) -> str:
    """Return text for a fenced block of code: one line without backticks, which would end it."""
    return " ".join(str(text).split()).replace("`", "'")


def _front_matter(record: Record, repository: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    licence = record.licence
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence) is not None
    name = record.dataset.name
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=f"{LIBRARY}/{name}",
            dataset_name=_data(record),
            metric_type="ece" if value == "ece" else "accuracy",
            metric_name="expected calibration error, %" if value == "ece" else f"top-1, {value}, %",
            metric_value=round(found, 2),
        )
        for value, found in percentages(record).items()
        if found is not None
    ]
    hub_id = DATASETS.facts(name).hub_id
    stated = licence != "unspecified"
    card = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "long-tailed-recognition", LIBRARY],
        datasets=[hub_id] if hub_id else None,
        model_name=repository or f"{record.recipe.name}-seed{record.seed}",
        eval_results=results,
        license=(licence if known else "other") if stated else None,
        license_name=" ".join(licence.split()) if stated and not known else None,
    )
    text: str = card.to_yaml()
    return text


def _data(record: Record) -> str:
    return f"{dataset_title(record.dataset.name)} (ratio {imbalance_ratio(record):g})"


def _network(record: Record) -> str:
    return network_title(record.recipe.resolved["backbone"])


def _printed(values: Mapping[str, float | None]) -> dict[str, str]:
    return {name: "-" if value is None else f"{value:.2f}" for name, value in values.items()}


def _literature(record: Record) -> dict[str, str] | None:
    """Return the published row that is set beside the results, if there is one."""
    row: Row | None = nearest_published(
        record.dataset.name,
        imbalance_ratio(record),
        record.recipe.name,
        str(record.recipe.resolved["backbone"]["name"]),
    )
    if row is None:
        return None
    names = ("method", "backbone", "source", *VALUES)
    return {name: str(row.get(name) or "-") for name in names}


def _target(recipe: Mapping[str, Any]) -> str | None:
    """Return the published row that the recipe aims at, as one line."""
    from ltbench.config.validation import build_recipe
    from ltbench.errors import UserError

    if recipe["target"] is None:
        return None
    backbone = {**recipe["backbone"], "weights": None}
    try:
        return target_row(build_recipe({**recipe, "backbone": backbone}))
    except UserError:
        return None


def _command(record: Record, recipe: Mapping[str, Any]) -> str:
    """Return the command that repeats the run: by name, or from the resolved file beside the card.

    The resolved recipe is taken where values were overridden or the name is not a registered one.
    """
    from ltbench.config.files import list_recipes

    if record.imported is not None:
        facts = record.imported
        what = [f"file={facts.file}", f"recipe={record.recipe.name}", f"family={facts.family}"]
        return " ".join(
            ["ltbench import", *what, f"sha256={facts.sha256}", *_root(recipe), "out=DIR"]
        )
    base = re.sub(r"(_if\d+)?$", "", record.recipe.name, count=1)
    named = base in list_recipes() and not record.recipe.overrides
    words = [f"recipe={record.recipe.name if named else 'recipe.yaml'}", f"seed={record.seed}"]
    return " ".join(["ltbench run", *words, *_root(recipe)])


def _root(recipe: Mapping[str, Any]) -> list[str]:
    return [] if DATASETS.facts(recipe["data"]["name"]).rootless else ["data.root=DIR"]


def _papers(recipe: Mapping[str, Any]) -> list[str]:
    """Return references of the methods and updates used, in the order of their stages."""
    import inspect

    from ltbench.methods import METHODS
    from ltbench.updates import UPDATES

    used = [
        part
        for stage in recipe["stages"]
        for part in (
            METHODS.get(stage["method"]["name"]),
            UPDATES.get(stage["update"]["name"]),
        )
    ]
    docs = [inspect.getdoc(part) or "" for part in used]
    found = [docstring_section(doc, "Reference").replace("``", "") for doc in docs]
    return list(dict.fromkeys(text for text in found if re.search(r"arXiv|\b(19|20)\d\d\b", text)))

"""Import of a released checkpoint: read it, put it into our network, evaluate, record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ltbench.config.files import get_recipe
from ltbench.config.paths import expanded
from ltbench.config.recipe import Recipe
from ltbench.data import DATASETS
from ltbench.data.base import Data, DatasetInfo
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError, visible
from ltbench.evaluation.evaluate import evaluate
from ltbench.evaluation.metrics import Metrics
from ltbench.files import check_replaceable, replaced_folder
from ltbench.importing.checks import check_training_images, far_from_chance, known_info
from ltbench.importing.fitting import fitting_network, fitting_recipe
from ltbench.importing.layouts import find_family
from ltbench.importing.layouts.file import ReleasedFile
from ltbench.importing.layouts.parts import Parts
from ltbench.importing.networks import Network
from ltbench.importing.orders import Order, labels_of, usual_order
from ltbench.importing.placing import placed
from ltbench.importing.reading import Checkpoint, read_checkpoint
from ltbench.importing.selection import Chosen, usual_choice
from ltbench.machine import environment
from ltbench.methods.base import Method
from ltbench.methods.build import describe_model, rebuild
from ltbench.methods.weights import expected_state, load_rebuilt, write_weights
from ltbench.models.heads import CosineHead
from ltbench.records.making import (
    changes,
    checkpoint_facts,
    dataset_facts,
    execution_facts,
    recipe_facts,
    today,
)
from ltbench.records.parts import CodeFacts, ImportFacts
from ltbench.records.record import RECORD, WEIGHTS, Record

DESCRIPTION = "model.json"
FILES = (WEIGHTS, DESCRIPTION, RECORD)


@dataclass(frozen=True)
class Release:
    """A released file and what is known of it.

    Args:
        path: of the file.
        recipe: name of our recipe of the method that made it.
        words: overrides of the recipe, as on the command line, places of data among them.
        family: layout of the file; ``auto`` finds it by the names of its tensors.
        classifier: a second file that holds the classifier.
        classes: order of the classes; ``auto`` is that of the family on this data set.
        scale: factor of a cosine classifier; ``None`` is that of the recipe.
        claimed: accuracy that the authors print, in percent.
        chosen_on_test: whether the epoch was chosen on the test images; ``auto`` goes by family,
            data set and the file's name.
        source: repository and commit, or address.
        licence: of the weights.
        sha256: expected hash of the file.
        seed: a number that tells several files of one recipe apart.
        name: of a known release.
    """

    path: Path
    recipe: str
    words: tuple[str, ...] = ()
    family: str = "auto"
    classifier: Path | None = None
    classes: Order | Literal["auto"] = "auto"
    scale: float | None = None
    claimed: float | None = None
    chosen_on_test: Chosen | Literal["auto"] = "auto"
    source: str = ""
    licence: str = ""
    sha256: str = ""
    seed: int = 0
    name: str | None = None


@dataclass(frozen=True)
class Imported:
    """An imported model.

    Args:
        folder: with weights, description and, if it was evaluated, the record.
        method: the model.
        facts: of the released file.
        network: our backbone.
        metrics: results, if data were given.
        record: of the results.
        notes: what the user should know, one line each.
        stated: results that the file itself states, by name.
    """

    folder: Path
    method: Method
    facts: ImportFacts
    network: Network
    metrics: Metrics | None
    record: Record | None
    notes: tuple[str, ...]
    stated: Mapping[str, float] = field(default_factory=dict)

    @property
    def off(self) -> int | None:
        """Images more (or fewer) than the authors' number says; ``None`` if it is not known."""
        if self.metrics is None or self.facts.claimed is None:
            return None
        total = sum(self.metrics.total)
        return sum(self.metrics.correct) - round(self.facts.claimed / 100 * total)


def import_release(
    release: Release,
    out: Path,
    *,
    device: str = "auto",
    workers: int = 2,
    batch_size: int = 250,
) -> Imported:
    """Import a released checkpoint and write a folder that loads like that of a run.

    Nothing in the file is executed. Where the recipe's data are given, the model is evaluated, and
    the folder has a record; otherwise it has none.

    Args:
        release: the file and what is known of it.
        out: folder to write; one that an import wrote is replaced.
        device: to evaluate on.
        workers: processes that decode images.
        batch_size: images per forward pass.

    Raises:
        UserError: the file is damaged, or holds a model that the recipe's is not; says in what
            they differ. Nothing was written.
    """
    check_replaceable(out, FILES)
    recipe = get_recipe(release.recipe, *release.words, seed=release.seed)
    file = _open(release)
    family, parts = find_family(file, release.family)
    network = fitting_network(parts, recipe, file)
    recipe = fitting_recipe(recipe, network, parts, release.scale)
    data = _data(recipe)
    info = known_info(recipe) if data is None else data.info
    _check_classes(parts, info)
    asked = release.classes
    order: Order = usual_order(family, info.name) if asked == "auto" else asked
    labels = labels_of(order, info.name, info.num_classes)
    heads = [c if labels is None else c.permuted(labels) for c in parts.classifiers]
    described = describe_model(recipe, info)
    method = rebuild(described, str(release.path))
    tensors = placed(method, network.tensors, parts, heads)
    described["inference_only"] = set(tensors) != set(method.state_dict())
    load_rebuilt(method, tensors, described, str(release.path))
    method.eval()
    facts = _facts(release, file, family, order, method, info.name)
    notes = [_left_aside(file.checkpoint)] if file.checkpoint.foreign else []
    metrics, seconds, where = None, 0.0, pick_device(device)
    if data is not None:
        began = time.monotonic()
        metrics = evaluate(
            method, data, rule=recipe.shot_rule, device=device, workers=workers,
            batch_size=batch_size,
        )  # fmt: skip
        seconds = time.monotonic() - began
        wrong = far_from_chance(metrics, order)
        if wrong:
            warnings.warn(wrong, stacklevel=2)
        known = check_training_images(method, recipe, data, where, batch_size=batch_size)
        facts = facts.model_copy(update={"training_images": known})
        method.to("cpu")
    record = None
    with replaced_folder(out, FILES) as folder:
        described["imported"] = facts.model_dump(mode="json")
        state = expected_state(method, described)
        own = {name: tensor.contiguous() for name, tensor in state.items()}
        digest = write_weights(folder / WEIGHTS, own, described)
        if data is not None and metrics is not None:
            record = _record(
                recipe, data, metrics, facts, release, folder / WEIGHTS, digest, where, seconds
            )
            record.save(folder / RECORD)
    stated = _stated(file)
    return Imported(out, method, facts, network, metrics, record, tuple(notes), stated)


def _open(release: Release) -> ReleasedFile:
    """Return the released files, the hash checked."""
    checkpoint = read_checkpoint(expanded(release.path))
    if release.sha256 and release.sha256 != checkpoint.sha256:
        raise UserError(
            f"{checkpoint.path} is not the file that was expected: its SHA-256 is "
            f"{checkpoint.sha256[:12]}..., expected {visible(release.sha256, 12)}...; download it "
            "again"
        )
    second = release.classifier
    other = None if second is None else read_checkpoint(expanded(second))
    return ReleasedFile.of(checkpoint, other)


def _check_classes(parts: Parts, info: DatasetInfo) -> None:
    """Raise ``UserError`` if the file has another number of classes than the data set."""
    found = len(parts.classifiers[0].weight)
    if found != info.num_classes:
        raise UserError(
            f"the file has {found:,} classes, {info.name} has {info.num_classes:,}; name a recipe "
            "of the data set that it was trained on"
        )


def _data(recipe: Recipe) -> Data | None:
    """Return the recipe's data, if a place is given."""
    options: Any = recipe.data.config
    if getattr(options, "root", None) is None and not DATASETS.facts(recipe.data.name).rootless:
        return None
    data: Data = options.load()
    return data


def _facts(
    release: Release, file: ReleasedFile, family: str, order: Order, method: Method, dataset: str
) -> ImportFacts:
    """Return the record's facts of the released file."""
    checkpoint, chosen = file.checkpoint, release.chosen_on_test
    name = checkpoint.path.name
    scales = {m.scale for m in method.head.modules() if isinstance(m, CosineHead)}
    epoch = file.outer.get("epoch")
    return ImportFacts(
        source=visible(release.source or name, 500),
        release=release.name,
        file=visible(name, 200),
        sha256=checkpoint.sha256,
        bytes=checkpoint.bytes,
        classifier_sha256=None if file.second is None else file.second.checkpoint.sha256,
        family=family,
        class_order=order,
        scale=scales.pop() if len(scales) == 1 else None,
        epoch=epoch if type(epoch) is int and 0 <= epoch < 10**6 else None,
        chosen_on_test=usual_choice(family, dataset, name) if chosen == "auto" else chosen,
        claimed=release.claimed,
    )


def _stated(file: ReleasedFile) -> dict[str, float]:
    """Return accuracies that a file states, e.g. ``best_acc1``."""
    found: dict[str, float] = {}
    for key, value in file.outer.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and ("acc" in key or "best" in key or "prec" in key) and len(found) < 4:
            found[visible(str(key), 40)] = float(value)
    return found


def _left_aside(checkpoint: Checkpoint) -> str:
    """Return a note on the classes in a file that were not read."""
    first = ", ".join(checkpoint.foreign[:3])
    more = f" and {len(checkpoint.foreign) - 3} more" if len(checkpoint.foreign) > 3 else ""
    return f"left aside in the file, and not executed: {first}{more}"


def _record(
    recipe: Recipe,
    data: Data,
    metrics: Metrics,
    facts: ImportFacts,
    release: Release,
    weights: Path,
    digest: str,
    device: torch.device,
    seconds: float,
) -> Record:
    """Return the sealed record of an imported model."""
    _, shortened = changes(recipe)
    return Record(
        origin="imported",
        status="imported",
        selection="released",
        recipe=recipe_facts(recipe),
        dataset=dataset_facts(data),
        code=CodeFacts(**environment()["code"]),
        seed=release.seed,
        epoch=None,
        complete=not shortened,
        shortened=tuple(shortened),
        execution=execution_facts(
            recipe,
            device,
            seconds,
            precision="fp32",
            jpeg_decoder=getattr(data.test, "decoded_by", None),
        ),
        metrics=metrics,
        checkpoint=checkpoint_facts(weights, digest),
        licence=release.licence or "unspecified",
        date=today(),
        imported=facts,
    ).sealed()

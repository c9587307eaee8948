"""Import of a released checkpoint: read it, put it into our network, evaluate, record."""

from __future__ import annotations

import datetime
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ltbench.config.files import get_recipe
from ltbench.config.paths import expanded
from ltbench.config.recipe import Recipe
from ltbench.config.validation import build_recipe
from ltbench.data import DATASETS
from ltbench.data.base import Data, DatasetInfo
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError, visible
from ltbench.evaluation.evaluate import evaluate
from ltbench.evaluation.metrics import Metrics
from ltbench.files import check_replaceable, replaced_folder
from ltbench.importing.checks import check_training_images, far_from_chance, known_info
from ltbench.importing.layouts import Opened, Parts, find_family, opened
from ltbench.importing.networks import Network, find_network, misfit
from ltbench.importing.orders import Order, labels_of, usual_order
from ltbench.importing.placing import placed
from ltbench.importing.reading import Checkpoint, read_checkpoint
from ltbench.machine import environment, gpu_name, gpu_numerics, peak_memory
from ltbench.methods.base import Method
from ltbench.methods.build import rebuild
from ltbench.methods.weights import inference_state, load_rebuilt, write_weights
from ltbench.models.backbone import create_backbone
from ltbench.models.heads import CosineHead
from ltbench.records.parts import (
    CheckpointFacts,
    CodeFacts,
    DatasetFacts,
    ExecutionFacts,
    GpuNumerics,
    ImportFacts,
)
from ltbench.records.record import RECORD, WEIGHTS, Record, changes, recipe_facts
from ltbench.version import __version__

DESCRIPTION = "model.json"
FILES = (WEIGHTS, DESCRIPTION, RECORD)
USUAL_SCALE = 30.0  # of cosine classifiers, where recipe and file say nothing
Chosen = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Release:
    """A released file and what is known of it.

    Args:
        path: of the file.
        recipe: name of our recipe of the method that made it.
        words: overrides of the recipe, as on the command line, places of data among them.
        family: layout of the file; ``auto`` tells it by the names of its tensors.
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
    network = _network(parts, recipe, file)
    recipe = _fitting(recipe, network, parts, release.scale)
    data = _data(recipe)
    info = known_info(recipe) if data is None else data.info
    _check_classes(parts, info)
    asked = release.classes
    order: Order = usual_order(family, info.name) if asked == "auto" else asked
    labels = labels_of(order, info.name, info.num_classes)
    heads = [c if labels is None else c.permuted(labels) for c in parts.classifiers]
    described = _description(recipe, info, release.seed)
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
        found = check_training_images(method, recipe, data, where, batch_size=batch_size)
        facts = facts.model_copy(update={"training_images": found})
        method.to("cpu")
    record = None
    with replaced_folder(out, FILES) as folder:
        described["imported"] = facts.model_dump(mode="json")
        own = {name: tensor.contiguous() for name, tensor in _state(method, described).items()}
        digest = write_weights(folder / WEIGHTS, own, described)
        if data is not None and metrics is not None:
            record = _record(
                recipe, data, metrics, facts, release, folder / WEIGHTS, digest, where, seconds
            )
            record.save(folder / RECORD)
    stated = _stated(file)
    return Imported(out, method, facts, network, metrics, record, tuple(notes), stated)


def _open(release: Release) -> Opened:
    """Return the released files, the hash checked."""
    checkpoint = read_checkpoint(expanded(release.path))
    if release.sha256 and release.sha256 != checkpoint.sha256:
        raise UserError(
            f"{checkpoint.path} is not the file that was expected: its SHA-256 is "
            f"{checkpoint.sha256[:12]}..., expected {visible(release.sha256, 12)}...; download it "
            "again"
        )
    second = release.classifier
    return opened(checkpoint, None if second is None else read_checkpoint(expanded(second)))


def _network(parts: Parts, recipe: Recipe, file: Opened) -> Network:
    """Return our network for the file's weights."""
    choice = recipe.backbone
    if parts.adapters:
        return _adapted(parts, recipe)
    found = find_network(parts.body, {"name": choice.name, "args": choice.args})
    for tail in parts.tails if parts.branch_at == "whole" else ():
        problem = misfit(found.tensors, tail)
        if problem:
            raise UserError(f"{file.checkpoint.path}: a further network is another one: {problem}")
    return found


def _adapted(parts: Parts, recipe: Recipe) -> Network:
    """Return the recipe's encoder, which is not in the file, with the file's adapters."""
    choice = recipe.backbone
    if not (choice.pretrained or choice.weights) or choice.adapters is None:
        raise UserError(
            "the file holds adapters and no encoder: name a recipe with `backbone.adapters`, and "
            "its weights by backbone.pretrained=true or backbone.weights=FILE"
        )
    backbone = create_backbone(
        choice.name,
        pretrained=choice.pretrained,
        weights=choice.weights,
        adapters=choice.adapters,
        classes=len(parts.classifiers[0].weight),
        **choice.args,
    )
    state = dict(backbone.net.state_dict())
    wanted = {n for n in state if "adapter" in n.split(".")}
    if wanted != set(parts.adapters):
        first = sorted(wanted ^ set(parts.adapters))[0]
        raise UserError(
            f"the adapters of the file are not those of the recipe: `{visible(first, 60)}` is in "
            "one of them only; set backbone.adapters to adaptformer or lora, as the file has it"
        )
    for name, tensor in parts.adapters.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"`{name}` has shape {list(tensor.shape)} in the file, {list(state[name].shape)} "
                "in the recipe; set backbone.adapters.width"
            )
    return Network(choice.name, dict(choice.args), {**state, **parts.adapters})


def _fitting(recipe: Recipe, network: Network, parts: Parts, scale: float | None) -> Recipe:
    """Return the recipe with the file's network, experts and kind of classifier."""
    tree = recipe.tree()
    backbone = tree["backbone"]
    if (network.name, network.args) != (backbone["name"], backbone.get("args") or {}):
        tree["backbone"] = {
            **{k: v for k, v in backbone.items() if k not in ("pretrained", "weights")},
            "name": network.name,
            "args": network.args,
        }
    count, kind = len(parts.classifiers), parts.classifiers[0].kind
    for stage in tree["stages"]:
        method = stage["method"]
        if "experts" in method and count > 1:
            method["experts"] = count
        if "branch_at" in method and parts.branch_at not in ("", "whole"):
            same = parts.branch_at == "layer3" and method["branch_at"] == "last"
            method["branch_at"] = method["branch_at"] if same else parts.branch_at
        if "scale" not in method:
            continue
        if kind == "linear" and method["scale"] is None:
            continue
        if kind == "linear" and method["name"] in NULLABLE:
            method["scale"] = None
        elif kind == "cosine" and method["scale"] is None:
            method["scale"] = USUAL_SCALE if scale is None else scale
    if scale is not None:
        last = tree["stages"][-1]["method"]
        if last.get("scale") is None:
            raise UserError(
                "`scale` is for cosine classifiers; that of the recipe's method has none: leave "
                "it out"
            )
        for stage in tree["stages"]:
            if stage["method"].get("scale") is not None:
                stage["method"]["scale"] = scale
    return build_recipe(tree)


NULLABLE = ("proco", "ncl", "nclpp")  # methods whose classifier is linear without a scale


def _check_classes(parts: Parts, info: DatasetInfo) -> None:
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


def _description(recipe: Recipe, info: DatasetInfo, seed: int) -> dict[str, Any]:
    """Return the description of the model, as a run writes it."""
    return {
        "ltbench": __version__,
        "recipe": recipe.tree(),
        "digest": recipe.digest,
        "seed": seed,
        "dataset": info.name,
        "class_counts": list(info.class_counts),
        "class_names": list(info.class_names),
        "mean": list(info.mean),
        "std": list(info.std),
    }


def _state(method: Method, described: Mapping[str, Any]) -> dict[str, Tensor]:
    return inference_state(method) if described["inference_only"] else method.state_dict()


def _facts(
    release: Release, file: Opened, family: str, order: Order, method: Method, dataset: str
) -> ImportFacts:
    """Return the record's facts of the released file."""
    checkpoint, chosen = file.checkpoint, release.chosen_on_test
    name = checkpoint.path.name
    scales = {m.scale for m in method.head.modules() if isinstance(m, CosineHead)}
    epoch = file.outer.get("epoch")
    return ImportFacts(
        source=visible(release.source or name, 500),
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


def usual_choice(family: str, dataset: str, name: str) -> Chosen:
    """Return whether the authors of a family chose the epoch of such a file on the test images.

    Args:
        family: of the file.
        dataset: registered name.
        name: of the file.
    """
    best, small = "best" in name.lower(), dataset.startswith("cifar")
    if family in ("m2m", "lift"):
        return "no"
    if family == "decoupling":  # chosen on the validation list, where there is one
        return "yes" if small or dataset == "inat18" else "no"
    if family == "ride":
        return ("yes" if small or dataset == "inat18" else "no") if best else "unknown"
    if best:
        return "yes"
    last = name in ("current.pth.tar", "ckpt.pth.tar", "moco_ckpt.pth.tar", "bcl_ckpt.pth.tar")
    return "no" if last else "unknown"


def _stated(file: Opened) -> dict[str, float]:
    """Return accuracies that a file states, e.g. ``best_acc1``."""
    found: dict[str, float] = {}
    for key, value in file.outer.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and ("acc" in key or "best" in key or "prec" in key) and len(found) < 4:
            found[visible(str(key), 40)] = float(value)
    return found


def _left_aside(checkpoint: Checkpoint) -> str:
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
    from ltbench.data.overlap import same_content

    around, numerics = environment(), gpu_numerics(device)
    _, shortened = changes(recipe)
    return Record(
        origin="imported",
        status="imported",
        selection="released",
        recipe=recipe_facts(recipe),
        dataset=DatasetFacts(
            name=data.info.name,
            train_sha256=data.train.fingerprint(),
            test_sha256=data.test.fingerprint(),
            manifest={**data.manifest, **same_content(data)},
        ),
        code=CodeFacts(**around["code"]),
        seed=release.seed,
        epoch=None,
        complete=not shortened,
        shortened=tuple(shortened),
        execution=ExecutionFacts(
            device=device.type,
            cpu=around["cpu"],
            gpu=gpu_name(device),
            ranks=(1,),
            per_rank_batch=(),
            precision="fp32",
            deterministic=recipe.run.deterministic,
            libraries=around["libraries"],
            wall_seconds=round(seconds, 2),
            peak_memory_bytes=peak_memory(device),
            gpu_numerics=GpuNumerics(**numerics) if numerics else None,
        ),
        metrics=metrics,
        checkpoint=CheckpointFacts(file=weights.name, sha256=digest, bytes=weights.stat().st_size),
        licence=release.licence or "unspecified",
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        imported=facts,
    ).sealed()

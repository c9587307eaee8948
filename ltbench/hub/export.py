"""Export of a finished run as a publish folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.config import plugins
from ltbench.data import DATASETS
from ltbench.data.pipelines import ENCODERS
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.files import new_folder, replaced
from ltbench.hub.encoder import NOTE, without_encoder
from ltbench.hub.folder import CARD, CONFIG, RECIPE, RESULTS, files_in, published_recipe
from ltbench.methods.weights import read_weights
from ltbench.records.record import RECORD, WEIGHTS, Record

if TYPE_CHECKING:
    from torch import Tensor

    from ltbench.config.recipe import Recipe

PLAIN = ("name", "description", "target", "note", "shot_rule", "seed")  # no digest, but no paths
CROP = 224 / 256  # share of the short side that evaluation looks at, larger images only
HALF_NOTE = (
    "weights rounded to float16 after training; the metrics are those of the rounded weights"
)


def export(
    run: Path,
    out: Path,
    *,
    repository: str | None = None,
    half: bool = False,
    licence: str | None = None,
    apart: bool = False,
) -> Path:
    """Write the publish folder of a finished run and return its path.

    The same run and options give the same bytes. The record is that of the run, byte for byte,
    unless ``half`` or ``licence`` changes what it says; then it is sealed again.

    Args:
        run: folder of a run.
        out: folder to write; if it exists, it must be a publish folder, which is replaced.
        repository: repository that the card names.
        half: store floating-point weights as float16. The rounded model is evaluated again on the
            recipe's own test data, which must be there, and the record says so.
        licence: licence of the weights; by default what the record says.
        apart: leave out the frozen encoder that adapters belong to; the folder names it, and
            loading fetches it and compares its hash.

    Raises:
        UserError: the run is not finished or damaged, ``out`` holds something else, or the encoder
            cannot be left out.
    """
    from safetensors import SafetensorError

    if half and apart:
        raise UserError("`half` and `apart`: adapters are small, leave `half` out")

    if not (run / RECORD).is_file():
        raise UserError(
            f"{run} holds no {RECORD}: expected the folder of a finished run; the command that "
            "began it also finishes it"
        )
    record = Record.load(run / RECORD)
    tensors, facts = read_weights(run / WEIGHTS)
    plugins.load_run(run, facts.get("recipe"))
    if record.checkpoint is None or record.checkpoint.sha256 != facts["sha256"]:
        raise UserError(
            f"{run / RECORD} and {run / WEIGHTS} are not of the same run: the hashes of the "
            "weights differ; restore the files or run the recipe again"
        )
    stated = licence or record.licence
    if record.imported is not None and stated == "unspecified":
        raise UserError(
            f"the weights in {run} are those of {record.imported.source}, and no licence is stated "
            "for them, so that they may not be passed on; give `licence=` if their authors granted "
            "one"
        )
    if out.exists() and (not out.is_dir() or files_in(out)[1]):
        raise UserError(f"{out} holds something other than a publish folder; pass another `out=`")
    try:
        with new_folder(out) as partial:
            if half:
                tensors = {name: _halved(name, t) for name, t in tensors.items()}
                _save(tensors, partial / WEIGHTS)
                record = _measured(record, facts, tensors, partial / WEIGHTS)
            elif apart:
                tensors, encoder = without_encoder(tensors, facts["recipe"], str(run))
                _save(tensors, partial / WEIGHTS)
                record = _of_file(record, partial / WEIGHTS, NOTE)
                facts = {**facts, "encoder": encoder}
            else:
                shutil.copyfile(run / WEIGHTS, partial / WEIGHTS)
            if licence is not None:
                record = record.model_copy(update={"licence": licence})
            if half or apart or licence is not None:
                record.sealed().save(partial / RECORD)
                record = Record.load(partial / RECORD)
            else:
                shutil.copyfile(run / RECORD, partial / RECORD)
            recipe = _public(record, facts)
            _write(partial, record, recipe, facts, repository)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"could not write {out}: {reason}; make room or pass another `out=`"
        ) from error
    return out


def config_of(
    record: Record, recipe: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ``config.json`` that timm and ``ltbench.load`` build the model from.

    What rebuilds it lies in ``model_args``, which timm passes on; what says where it comes from
    and what its weights hash to lies in ``ltbench``; nothing is there twice.

    Args:
        record: of the published weights.
        recipe: the recipe's tree without paths.
        facts: the description beside the run's weights.
    """
    from ltbench.hub.timm_model import ARCHITECTURE, TimmMethod
    from ltbench.methods.build import rebuild

    if record.checkpoint is None:
        raise ValueError("a record without weights is not published")
    classes = len(facts["class_counts"])
    model = TimmMethod(rebuild({**facts, "recipe": recipe}, WEIGHTS), classes)
    name = facts["dataset"]
    options = recipe["data"]
    small = DATASETS.facts(name).side
    side = options.get("image_size") or small or 224
    cfg: dict[str, Any] = {
        "input_size": [3, side, side],
        "fixed_input_size": False,
        "interpolation": options.get("interpolation", "bilinear"),
        "crop_pct": 1.0 if small and options.get("augment") not in ENCODERS else CROP,
        "crop_mode": "center",
        "mean": list(facts["mean"]),
        "std": list(facts["std"]),
        "num_classes": classes,
        "pool_size": None,
        "first_conv": None,
        "classifier": None,
    }
    if record.licence != "unspecified":
        cfg["license"] = record.licence
    return {
        "architecture": ARCHITECTURE,
        "num_classes": classes,
        "num_features": model.num_features,
        "label_names": list(facts["class_names"]),
        "model_args": {
            "recipe": recipe,
            "dataset": name,
            "class_counts": list(facts["class_counts"]),
        },
        "pretrained_cfg": cfg,
        "ltbench": {
            "version": facts["ltbench"],
            "digest": record.recipe.digest,
            "seed": record.seed,
            "sha256": record.checkpoint.sha256,
            "train_sha256": record.dataset.train_sha256,
            "test_sha256": record.dataset.test_sha256,
            "run_id": record.run_id,
            **({"inference_only": True} if facts.get("inference_only") is True else {}),
            **({"encoder": facts["encoder"]} if "encoder" in facts else {}),
        },
    }


def _write(
    folder: Path,
    record: Record,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
    repository: str | None,
) -> None:
    """Write what follows from the record: configuration, recipe, card, results."""
    import yaml

    from ltbench.hub.card import make_card, results_of

    config = json.dumps(config_of(record, recipe, facts), indent=1, ensure_ascii=False)
    (folder / RESULTS).mkdir()
    for name, text in {
        CONFIG: f"{config}\n",
        RECIPE: yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True),
        CARD: make_card(record, recipe, repository),
        f"{RESULTS}/{record.dataset.name}.yaml": yaml.safe_dump(results_of(record)),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")


def _public(record: Record, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's tree without paths of the machine it ran on.

    Raises:
        UserError: it names a network or data that a published model may not.
    """
    resolved = json.loads(json.dumps(record.recipe.resolved))
    tree = {**{key: facts["recipe"][key] for key in PLAIN}, **resolved}
    return published_recipe(tree, record.recipe.name)


def _halved(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor with floating-point numbers as float16.

    Raises:
        UserError: one of them is too large for it.
    """
    import torch

    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not torch.isfinite(half).all():
        raise UserError(
            f"`half`: `{name}` holds {float(tensor.abs().max()):g}, which float16 cannot; leave "
            "`half` out"
        )
    return half


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with replaced(path) as partial:  # with the modes of the umask
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def _measured(
    record: Record, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: Path
) -> Record:
    """Return the record of the same run with the hash and the metrics of other weights."""
    from ltbench.config.validation import build_recipe
    from ltbench.distributed.device import pick_device
    from ltbench.evaluation.evaluate import evaluate_split
    from ltbench.methods.build import rebuild
    from ltbench.methods.weights import check_classes, load_rebuilt

    if record.checkpoint is None:
        raise ValueError("a record without weights is not published")
    recipe: Recipe = build_recipe(facts["recipe"])
    try:
        data = recipe.data.config.load()  # type: ignore[attr-defined]
    except UserError as error:
        raise UserError(
            f"`half` needs the run's test data to measure rounded weights; {error}"
        ) from error
    if data.test.fingerprint() != record.dataset.test_sha256:
        raise UserError(
            "`half` needs the run's own test data to measure rounded weights; the run's data.root "
            "now holds other images: restore them, or leave `half` out"
        )
    check_classes(facts, data.info, "the run")
    method = rebuild(dict(facts), str(weights))
    load_rebuilt(method, tensors, facts, str(weights))
    device = pick_device(recipe.run.device)
    metrics = evaluate_split(
        method.to(device),
        data.test,
        data.info.class_counts,
        device=device,
        rule=recipe.shot_rule,
        workers=recipe.run.workers,
    )
    return _of_file(record.model_copy(update={"metrics": metrics}), weights, HALF_NOTE)


def _of_file(record: Record, weights: Path, note: str) -> Record:
    """Return a record with hash and size of another file of weights, and one more note."""
    if record.checkpoint is None:
        raise ValueError("a record without weights is not published")
    checkpoint = record.checkpoint.model_copy(
        update={"sha256": file_sha256(weights), "bytes": weights.stat().st_size}
    )
    notes = "; ".join(filter(None, (record.notes, note)))
    return record.model_copy(update={"checkpoint": checkpoint, "notes": notes})

"""Trained models as files for other programs: ONNX, torch.export, plain safetensors."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.data.preprocessing import Preprocessing
from ltbench.errors import UserError, visible
from ltbench.files import reason, replaced
from ltbench.hub.output import check_output
from ltbench.methods.base import Method
from ltbench.models.adapters import mergeable, merged
from ltbench.version import __version__

Format = Literal["onnx", "torch", "safetensors"]
ENDINGS: Mapping[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "images", "logits"
EXTRA = "ltbench.json"  # name of the facts in a torch.export archive
TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit or 1
BATCH = 5  # images of the comparison; the model is traced with two


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared.

    Args:
        path: the file.
        difference: largest absolute difference of the logits.
        largest: largest absolute logit.
        images: number of images compared.
    """

    path: Path
    difference: float
    largest: float
    images: int = BATCH


def export_model(
    method: Method, facts: Mapping[str, Any], out: Path, format: Format | None = None
) -> Exported:
    """Write the ``predict`` of a trained method to a file, and compare the file's logits with it.

    The input is ``images``, float32 [B, 3, S, S] with any B, resized and normalised as the facts
    in the file say; the output is ``logits``, float32 [B, C]. The file appears after the
    comparison.

    Args:
        method: a loaded model.
        facts: its description; see ``load_described``.
        out: file to write, ending in .onnx, .pt2 or .safetensors.
        format: ``"onnx"``; ``"torch"`` for a program of ``torch.export``; ``"safetensors"`` for
            the state dict of ``Method.export()``, which is that of ``ltbench.create_model`` for a
            method with one head, LoRA merged into its weights; ``None`` follows the file's ending.

    Raises:
        UserError: a package is missing, the model cannot be exported, the logits differ, or the
            file cannot be written.
    """
    by_ending: dict[str, Format] = {ending: name for name, ending in ENDINGS.items()}
    endings = [ENDINGS[format]] if format else list(by_ending)
    out = check_output(out, dict.fromkeys(endings, _is_exported), "an exported model")
    chosen = by_ending[out.suffix]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if chosen == "onnx" and missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'ltbench[export]'")
    transform = method.transform
    if not isinstance(transform, Preprocessing):
        raise UserError(
            f"the evaluation transform of data set {method.info.name} is not known, so that no "
            "input size can be exported"
        )
    own = copy.deepcopy(method).cpu().eval()  # the caller's model stays as it is
    about = describe(method, facts, transform)
    images = _images(transform)
    with torch.no_grad():
        wanted = own.predict(images).float().numpy()
    plain = own.to(memory_format=torch.contiguous_format).export().eval()
    if mergeable(plain):
        plain = merged(plain)
    try:
        with replaced(out) as partial:
            found = _WRITERS[chosen](plain, images, partial, about)
            compare(found, wanted, str(out))
    except OSError as error:
        raise UserError(f"could not write {out}: {reason(error)}; pass another `out=`") from error
    return Exported(out, float(np.abs(found - wanted).max()), float(np.abs(wanted).max()))


def describe(method: Method, facts: Mapping[str, Any], transform: Preprocessing) -> dict[str, Any]:
    """Return what a program needs to use a model, as plain data.

    Args:
        method: the model.
        facts: its description.
        transform: its evaluation transform.
    """
    return {
        "class_names": list(method.class_names),
        "input_size": [3, transform.image_size, transform.image_size],
        "preprocessing": {
            "colours": "RGB",
            "resize_short_side": transform.resize,
            "interpolation": transform.interpolation,
            "antialias": True,
            "centre_crop": transform.image_size,
            "scale": [0, 1],
            "mean": list(transform.mean),
            "std": list(transform.std),
        },
        "class_counts": list(method.info.class_counts),
        "recipe": str(facts["recipe"].get("name", "")),
        "dataset": method.info.name,
        "digest": str(facts.get("digest", "")),
        "seed": str(facts.get("seed", "")),
        "weights_sha256": str(facts.get("sha256", "")),
        "ltbench": __version__,
    }


def _texts(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as texts: JSON, except what is a text already."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in tree.items()
    }


def compare(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """Check that two batches of logits agree within the tolerance.

    Raises:
        UserError: they differ.
    """
    if found.shape != wanted.shape:
        raise UserError(
            f"{name} was not written: it returns logits of shape {list(found.shape)}, the model "
            f"{list(wanted.shape)}"
        )
    difference = float(np.abs(found - wanted).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if not difference <= allowed:
        raise UserError(
            f"{name} was not written: its logits differ from the model's by {difference:.2g}, at "
            f"most {allowed:.2g} is allowed; please report this with the recipe"
        )


def _images(transform: Preprocessing) -> Tensor:
    """Return normalised noise, the same each time; the first image is black."""
    side = transform.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(BATCH, 3, side, side, generator=generator)
    pixels[0] = 0
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    return (pixels - mean) / std


def _onnx(plain: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> np.ndarray:
    import onnxruntime

    batch = torch.export.Dim("batch")
    with _quiet(), _explained("ONNX"):
        program = torch.onnx.export(
            plain, (images[:2],), dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
            input_names=[INPUT], output_names=[OUTPUT],
        )  # fmt: skip
        assert program is not None
        program.model.metadata_props.update(_texts(about))
        program.save(str(path), external_data=False)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
    return np.asarray(logits)


def _torch(plain: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> np.ndarray:
    batch = torch.export.Dim("batch")
    with _quiet(), _explained("torch.export"):
        program = torch.export.export(plain, (images[:2],), dynamic_shapes=({0: batch},))
        with path.open("wb") as file:
            torch.export.save(
                program, file, extra_files={EXTRA: json.dumps(about, ensure_ascii=False)}
            )
        with path.open("rb") as file, torch.no_grad():
            logits: Tensor = torch.export.load(file).module()(images)
    return logits.float().numpy()


def _safetensors(
    plain: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]
) -> np.ndarray:
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.contiguous().clone() for name, tensor in plain.state_dict().items()}
    save_file(tensors, path, {"format": "pt", **_texts(about)})
    fresh = copy.deepcopy(plain)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()  # what the file lacks cannot agree
        fresh.load_state_dict(load_file(path))
        logits: Tensor = fresh(images)
    return logits.float().numpy()


_WRITERS: Mapping[Format, Callable[..., np.ndarray]] = {
    "onnx": _onnx,
    "torch": _torch,
    "safetensors": _safetensors,
}


def _is_exported(path: Path) -> bool:
    """Return whether an existing file may be replaced: not the weights of a run."""
    if path.suffix != ENDINGS["safetensors"]:
        return True
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return "weights_sha256" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress and the warnings of exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the failure of an exporter into one line.

    Raises:
        UserError: the exporter failed.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # exporters raise anything
        first = visible((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise UserError(
            f"{name} cannot export this model ({type(error).__name__}: {first}); try another format"
        ) from error

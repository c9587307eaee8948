"""Checkpoints as the authors' codes write them, rebuilt from networks of ours."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ltbench
from ltbench.importing.checks import known_info
from ltbench.methods.base import Method
from ltbench.methods.build import describe_model, rebuild

State = dict[str, Tensor]


def made(name: str, *words: str) -> Method:
    """A method of a recipe with random weights and statistics, in evaluation mode."""
    torch.manual_seed(7)
    recipe = ltbench.get_recipe(name, *words)
    method = rebuild(describe_model(recipe, known_info(recipe)), name)
    with torch.no_grad():
        for key, tensor in method.state_dict().items():
            if key.endswith("running_var") or (key.endswith("weight") and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", "bias")):
                tensor.normal_(std=0.2)
            elif key.endswith("num_batches_tracked"):
                tensor.fill_(11)
            elif key.endswith(".scale"):
                tensor.uniform_(0.7, 1.3)
    return method.eval()


def logits(method: Method, side: int = 32) -> Tensor:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return method(images)


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def under(state: Mapping[str, Tensor], prefix: str) -> State:
    return {f"{prefix}{k}": v for k, v in state.items()}


def net(method: Method) -> State:
    return below(method.state_dict(), "backbone.net.")


def head(method: Method, prefix: str = "head.") -> State:
    return below(method.state_dict(), prefix)


def tail(method: Method, number: int) -> State:
    return below(method.state_dict(), f"branches.copies.{number}.net.")


def permuted(part: Mapping[str, Tensor], order: Tensor, columns: bool = False) -> State:
    """A classifier whose class at position p is ours of label order[p]."""
    return {k: v[:, order] if columns and v.dim() == 2 else v[order] for k, v in part.items()}


def extra(**more: Any) -> dict[str, Any]:
    """What lies beside the weights in most files."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(4)
    optimizer.step()
    return {"epoch": 200, "arch": "resnet32", "optimizer": optimizer.state_dict(), **more}


def saved(path: Path, content: Any, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@contextmanager
def foreign() -> Iterator[ModuleType]:
    """A module with classes of the authors that exists while the file is written only."""
    module = ModuleType("parse_config")

    class ConfigParser:
        def __init__(self) -> None:
            self._config = {"arch": {"args": {"num_experts": 3, "reduce_dimension": True}}}
            self.path = Path("/a/b")

    class Criterion(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("means", torch.ones(3, 2))

    for cls in (ConfigParser, Criterion):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def module_(state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A state dict of DataParallel, with the metadata that torch's have."""
    found = OrderedDict(under(state, "module."))
    found._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return found


def without_counters(state: Mapping[str, Tensor]) -> State:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def numbers() -> dict[str, Any]:
    """Numbers of numpy, of each kind that files hold."""
    return {
        "its_ece": np.float64(0.0483),
        "best_result": np.float32(0.5),
        "count": np.int64(3),
        "centroids": np.arange(6, dtype=np.float32).reshape(2, 3),
    }


def appended(state: State) -> State:
    """M2m's network: new channels of a shortcut come after the old ones."""
    parts = {"conv1": "conv_a", "bn1": "bn_a", "conv2": "conv_b", "bn2": "bn_b"}
    order = torch.arange(16)
    found: State = {}
    for name, tensor in state.items():
        if name.startswith(("conv1.", "bn1.")):
            stem = name.replace("conv1.", "conv_1_3x3.").replace("bn1.", "bn_1.")
            found[stem] = tensor
    for number in (1, 2, 3):
        group = f"layer{number}"
        entering, size = order, len(state[f"{group}.0.conv2.weight"])
        old, pad = len(order), (size - len(order)) // 2
        order = torch.cat([torch.arange(old, old + pad), order, torch.arange(old + pad, size)])
        for name, tensor in state.items():
            if not name.startswith(f"{group}."):
                continue
            _, block, layer, kind = name.split(".")
            new = tensor.clone()
            if layer == "conv1":
                new[:, entering if block == "0" else order] = tensor
            elif layer in ("conv2", "bn2") and kind != "num_batches_tracked":
                new[order] = tensor
            found[f"stage_{number}.{block}.{parts[layer]}.{kind}"] = new
    weight = state["fc.weight"].clone()
    weight[:, order] = state["fc.weight"]
    return {**found, "linear.weight": weight, "linear.bias": state["fc.bias"]}

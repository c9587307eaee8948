"""Released file: the tensors of its model by name, and the classifiers among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ltbench.errors import UserError, visible
from ltbench.importing.layouts.parts import Classifier, Kind
from ltbench.importing.reading import Checkpoint, entries, loaded, tensors_of
from ltbench.importing.storages import Stored

State = dict[str, Stored]


@dataclass(frozen=True)
class ReleasedFile:
    """A released file with the tensors of its model.

    Args:
        checkpoint: its content.
        state: tensors by name, every part ``module`` of a name removed.
        second: a further file, with the classifier.
    """

    checkpoint: Checkpoint
    state: State
    second: ReleasedFile | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, second: Checkpoint | None = None) -> ReleasedFile:
        """Return a file with the tensors of its model, without those of an optimizer.

        Args:
            checkpoint: its content.
            second: content of a further file, with the classifier.
        """
        content = checkpoint.content
        outer = dict(entries(content))
        for key in ("state_dict", "net", "model", "model_state"):
            inside = outer.get(key)
            if inside is not None and any(True for _ in tensors_of(inside)):
                content = dict(entries(inside)) if key != "model" else _model(inside)
                break
        more = None if second is None else cls.of(second)
        return cls(checkpoint, _named(content), more)

    @property
    def outer(self) -> Mapping[str, Any]:
        """Names and values at the top of the file."""
        return dict(entries(self.checkpoint.content))

    def has(self, *patterns: str) -> bool:
        """Return whether each pattern fits the beginning of a tensor's name."""
        return all(any(re.match(p, name) for name in self.state) for p in patterns)

    def inside(self, *keys: str) -> State:
        """Return the tensors of a nested mapping, none if it is not there."""
        node: Any = self.checkpoint.content
        for key in keys:
            node = dict(entries(node)).get(key)
        return _named(node)

    def load(self, state: Mapping[str, Stored]) -> dict[str, Tensor]:
        """Return the content of tensors."""
        return loaded(state, self.checkpoint.path)


def _model(inside: Any) -> Any:
    """Return the state dict of a pickled model, or of one that is nested once more."""
    found = dict(entries(inside))
    return found.get("model", found) if isinstance(found.get("model"), Mapping) else inside


def _named(content: Any) -> State:
    """Return tensors by name, every part `module` of a name removed."""
    return {
        ".".join(part for part in name.split(".") if part != "module"): stored
        for name, stored in tensors_of(content)
    }


def below(state: Mapping[str, Stored], prefix: str) -> State:
    """Return the tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def without(state: Mapping[str, Stored], *prefixes: str) -> State:
    """Return the tensors whose names begin with none of some prefixes."""
    return {n: t for n, t in state.items() if not n.startswith(prefixes)}


def last_names(state: Mapping[str, Stored]) -> State:
    """Return tensors by the last parts of their names, e.g. ``weight``."""
    return {n.rpartition(".")[2]: t for n, t in state.items()}


def number_of_features(body: Mapping[str, Tensor]) -> int:
    """Return the number of features D of a ResNet: the channels of its last normalisation.

    Raises:
        UserError: it has no such layer.
    """
    last = [n for n in body if n.endswith(("bn2.weight", "bn3.weight", "bn_b.weight"))]
    if not last:
        shown = ", ".join(visible(n, 60) for n in list(body)[:3]) or "nothing"
        raise UserError(f"the file holds no ResNet: its network begins with {shown}")

    def place(name: str) -> tuple[Any, ...]:
        return tuple(int(p) if p.isdecimal() else p for p in re.findall(r"\d+|\D+", name))

    return len(body[max(last, key=place)])


def find_classifier(
    file: ReleasedFile,
    state: Mapping[str, Stored],
    features: int,
    *,
    bare: Kind = "linear",
    square: Kind = "cosine",
    scales: Stored | None = None,
) -> Classifier:
    """Return the classifier of a ``weight`` and, if there is one, a ``bias``.

    Args:
        file: holds them.
        state: the two tensors, perhaps among others.
        features: number of features D.
        bare: kind of a weight [C, D] without bias; one of [D, C] is cosine.
        square: kind of a weight [D, D] without bias.
        scales: factors of the logits.

    Raises:
        UserError: there is no such weight, or its bias is of another size.
    """
    found = file.load({n: t for n, t in state.items() if n in ("weight", "bias")})
    weight, bias = found.get("weight"), found.get("bias")
    if weight is None or weight.dim() != 2 or features not in weight.shape:
        shape = "none" if weight is None else str(list(weight.shape))
        raise UserError(
            f"{file.checkpoint.path}: expected the weight of a classifier on {features} features, "
            f"found {shape}; it is another network"
        )
    by_class = weight.shape[1] == features
    if bias is not None:
        kind: Kind = "linear"
    elif weight.shape[0] == weight.shape[1]:
        kind, by_class = square, square == "linear" or bare == "cosine"
    else:
        kind = bare if by_class else "cosine"
    factors = None if scales is None else file.load({"scales": scales})["scales"].flatten()
    rows = weight if by_class else weight.T.contiguous()
    if bias is not None and (not by_class or len(bias) != len(rows)):
        raise UserError(f"{file.checkpoint.path}: weight and bias of its classifier do not agree")
    return Classifier(kind, rows, bias, factors)

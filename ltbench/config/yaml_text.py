"""YAML of recipes, grids and words: plain data of a bounded size, without tags or surprises.

Imported when there is something to read, which spares `ltbench list` the time.
"""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import yaml

from ltbench.config.schema import CONTROL, DEEPEST
from ltbench.digest import read_regular
from ltbench.errors import UserError

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml: the same, seven times as slow
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

LARGEST = 2**18  # characters of a text
MOST = 20_000  # keys and values, each alias counted as what it stands for

_TAG = "tag:yaml.org,2002:"


class Loader(_SafeLoader):
    """YAML 1.1 with `1e-4` a number, and dates, `1:30`, `010`, `<<` and `=` plain text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are all different."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _error(f"key `{key}` is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    dropped = {_TAG + kind for kind in ("timestamp", "int", "float", "merge", "value")}
    return {
        first: [(tag, pattern) for tag, pattern in found if tag not in dropped]
        for first, found in copy.deepcopy(_SafeLoader.yaml_implicit_resolvers).items()
    }


Loader.yaml_implicit_resolvers = _resolvers()
Loader.add_implicit_resolver(
    f"{_TAG}int",
    re.compile(r"^(?=.{1,300}$)[-+]?(0|[1-9](_?[0-9])*|0x[0-9a-fA-F]+|0b[01]+)$"),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^(?=.{1,300}$)([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """Return a text of YAML as plain data.

    Args:
        text: one document of at most `LARGEST` characters, with at most `MOST` keys and values, at
            most `DEEPEST` levels deep.

    Raises:
        UserError: it is not YAML, is larger, or holds a tag, a repeated key, a number that is not
            finite, or control characters.
    """
    if len(text) > LARGEST:
        raise UserError(f"expected at most {LARGEST:,} characters, found {len(text):,}")
    loader = None
    try:
        _check_events(text)
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(loader, node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None and mark.line else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{where}{problem}") from error
    except RecursionError as error:
        raise UserError(f"expected at most {DEEPEST} levels") from error
    except UnicodeError as error:
        raise UserError("expected text in UTF-8") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml_file(path: Path) -> Any:
    """Return a file of YAML as plain data.

    Raises:
        UserError: as for ``read_yaml``, with the file's name; or it cannot be read.
    """
    try:
        return read_yaml(read_regular(path, 4 * LARGEST).decode("utf-8"))
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "expected text in UTF-8"
        raise UserError(f"{path.name} is not readable YAML: {problem}") from error
    except UserError as error:
        raise UserError(f"{path.name} is not readable YAML: {error}") from error


def _check_events(text: str) -> None:
    """Refuse a text whose nesting would exhaust the stack of libyaml, which composes nodes in C."""
    depth, count = 0, 0
    for event in yaml.parse(text, Loader):
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _error(f"expected at most {DEEPEST} levels, found more", event)
        if count > MOST:
            raise _error(f"expected at most {MOST:,} keys and values, found more", event)


def _check(loader: Loader, root: yaml.Node) -> None:
    """Walk a document before anything is made of it; an alias counts as what it stands for."""
    stack, count = [(root, 1)], 1
    while stack:
        node, depth = stack.pop()
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(loader, node)
            continue
        pairs = isinstance(node, yaml.MappingNode)
        if node.tag != _TAG + ("map" if pairs else "seq"):
            raise _error(f"tag `{_short(node.tag)}` has no place here; leave it out", node)
        if depth > DEEPEST:
            raise _error(f"expected at most {DEEPEST} levels, found more", node)
        count += len(node.value) * (2 if pairs else 1)
        if count > MOST:
            raise _error(f"expected at most {MOST:,} keys and values, found more", node)
        for item in node.value:
            if pairs and not isinstance(item[0], yaml.ScalarNode):
                raise _error("expected a name or a number as key, found a list or a mapping", node)
            stack += [(n, depth + 1) for n in (item if pairs else (item,))]


def _check_scalar(loader: Loader, node: yaml.ScalarNode) -> None:
    plain = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    if node.tag not in (_TAG + "str", plain):
        raise _error(f"tag `{_short(node.tag)}` has no place here; leave it out", node)
    if node.tag == _TAG + "float" and not _finite(node.value):
        raise _error(f"expected a finite number, found {node.value}", node)
    if CONTROL.search(node.value):
        raise _error("expected text without control characters", node)


def _finite(text: str) -> bool:
    return text.lstrip("-+")[:2].lower() not in (".i", ".n") and math.isfinite(
        float(text.replace("_", ""))
    )


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")[:60]


def _error(problem: str, node: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = node.start_mark  # libyaml's own class of the same fields
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

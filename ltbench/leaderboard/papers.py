"""References of methods, read from their source: no method, and so no torch, is imported."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

from ltbench.config.registry import docstring_section
from ltbench.methods import METHODS


def paper_in_source(name: str) -> str:
    """Return the reference of a registered method; a plugin's has none here.

    Args:
        name: of the method.
    """
    part = METHODS.facts(name)
    module, _, attribute = part.where.partition(":")
    found = None if part.outside or not module else importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return ""
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return docstring_section(inspect.cleandoc(ast.get_docstring(node) or ""), "Reference")
    return ""

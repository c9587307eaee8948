"""The keys of recipes/KEYS.md, from the options; `python tools/docs.py` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from marked_section import anchor, cell, replaced, table

from ltbench.config.explain import Explanation
from ltbench.config.keys import all_keys, merged
from ltbench.config.registry import registry
from ltbench.methods import METHODS

PAGE = Path(__file__).parent.parent / "recipes" / "KEYS.md"
BEGIN, END = "<!-- keys: tools/key_reference.py -->", "<!-- end of keys -->"
HEADS = ("key", "values", "meaning")
PARTS = {  # prefix of the keys of a kind of part: registry, heading
    "data": ("DATASETS", "Data sets"),
    "stages.N.method": ("METHODS", "Methods"),
    "stages.N.sampler": ("SAMPLERS", "Samplers"),
    "stages.N.update": ("UPDATES", "Updates"),
    "stages.N.update.solver": ("SOLVERS", "Solvers of PLOT"),
}
PLAIN = {  # first part of a key that belongs to no part: heading
    "": "The recipe",
    "backbone": "`backbone`",
    "stages.N": "`stages.N`: a stage",
    "stages.N.optim": "`stages.N.optim`: the optimizer",
    "stages.N.schedule": "`stages.N.schedule`: the learning rate",
    "run": "`run`: execution",
    "diagnose": "`diagnose`: logs of class gradients",
    "target": "`target`: the published row",
    "select": "`select`: a choice on validation images",
    "launcher": "`launcher`: a cluster",
}


def reference() -> str:
    """Return the page's sections in Markdown, a table for every group of keys."""
    keys = all_keys()
    sections: list[str] = []
    plain = [one for one in keys if not one.parts]
    groups = list(dict.fromkeys(_group(one.key) for one in plain))
    for group in sorted(groups, key=lambda g: ([*PLAIN].index(g) if g in PLAIN else 99, g)):
        rows = [one for one in plain if _group(one.key) == group]
        sections.append(f"## {PLAIN.get(group, f'`{group}`')}\n\n{_table(rows, group)}")
    for prefix, (name, heading) in PARTS.items():
        own = [one for one in keys if one.parts and _of(one.key) == prefix]
        sections.append(f"## {heading}: `{prefix}`\n\n{_parts(own, prefix, name)}")
    headings = [section.partition("\n")[0].removeprefix("## ") for section in sections]
    contents = " · ".join(f"[{heading}](#{anchor(heading)})" for heading in headings)
    return "\n\n".join([contents, *sections])


def _parts(keys: list[Explanation], prefix: str, name: str) -> str:
    """Return a table for each part of a kind, after one of the keys that several data sets have."""
    texts = []
    if name == "DATASETS":
        shared = [one for one in merged(keys) if len(one.parts) > 1]
        keys = [one for one in merged(keys) if len(one.parts) == 1]
        texts.append(_table(shared, prefix))
    without = []
    for part in registry(name).names():
        own = [one for one in keys if one.parts[0].endswith(f"={part}")]
        if not own:
            without.append(f"`{part}`")
            continue
        about = registry(name).summary(part).replace("``", "`")
        named = name == "METHODS" and METHODS.facts(part).title
        title = f"{named} (`{part}`)" if named else f"`{part}`"
        texts.append(f"### {title}\n\n{about}\n\n{_table(own, prefix)}")
    if without:
        more = " of their own" if name == "DATASETS" else ""
        texts.append(f"No options{more}: {', '.join(without)}.")
    return "\n\n".join(texts)


def _table(keys: list[Explanation], prefix: str) -> str:
    """Return the table of some keys, each without the prefix that they share."""
    rows = []
    for one in keys:
        where = ""
        if len(one.parts) > 1:
            where = f"*{', '.join(part.partition('=')[2] for part in one.parts)}:* "
        key = f"`{one.key.removeprefix(f'{prefix}.')}`"
        rows.append((key, cell(_values(one)), where + cell(one.meaning)))
    return table(HEADS, rows)


def _values(one: Explanation) -> str:
    """Return what a key takes and its default, which may depend on a mode."""
    if not one.default:
        return f"{one.values}; required"
    value, modes = re.fullmatch(r"(.*?)((?:, \S+ with mode=\S+)*)", one.default).groups()
    return f"{one.values}; default `{value}`{modes}"


def _group(key: str) -> str:
    """Return the group of a key that belongs to no part: everything before its last dot."""
    return key.rpartition(".")[0] or ("launcher" if key == "launcher" else "")


def _of(key: str) -> str:
    """Return the prefix of the kind of part that a key belongs to."""
    return next(prefix for prefix in reversed(PARTS) if key.startswith(f"{prefix}."))


def updated(text: str) -> str:
    """Return the page with the sections as they should be.

    Raises:
        SystemExit: the marks are missing.
    """
    return replaced(text, BEGIN, END, reference())

"""Tables of text cells as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ltbench.errors import visible

_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|~"})


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], names: Collection[int] = (0,)
) -> str:
    """Return a table as GitHub renders it.

    Args:
        heads: of the columns.
        rows: cells in Markdown, but for names.
        names: columns of plain text, aligned to the left; the others are aligned to the right.
    """
    rule = ["---" if i in names else "---:" for i in range(len(heads))]
    lines = [[markdown_text(head) for head in heads], rule]
    lines += [[markdown_text(c) if i in names else c for i, c in enumerate(row)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_text(text: str) -> str:
    """Return plain text with the characters escaped that Markdown would interpret."""
    return visible(text, None).translate(_MARKDOWN)


def latex_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: Collection[int] = (0,),
    notes: Sequence[str] = (),
) -> str:
    """Return a ``tabular`` that needs the package booktabs and nothing else.

    Args:
        heads: of the columns, plain text.
        rows: cells in LaTeX, but for names.
        names: columns of plain text, aligned to the left; the others are aligned to the right.
        notes: plain text, written above as comments.
    """
    import pandas as pd

    cells = [[visible(c, None) if i in names else c for i, c in enumerate(row)] for row in rows]
    frame = pd.DataFrame(cells, columns=list(heads))
    style = frame.style.hide(axis="index").format_index(escape="latex", axis=1)
    style = style.format(escape="latex", subset=[heads[i] for i in names])
    columns = "".join("l" if i in names else "r" for i in range(len(heads)))
    table: str = style.to_latex(hrules=True, column_format=columns)
    comments = "".join(
        f"% {line}\n"
        for note in ("Needs \\usepackage{booktabs}.", *notes)
        for line in visible(note, None).splitlines()
    )
    return comments + table

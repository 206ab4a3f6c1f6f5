"""An outline as Markdown that GitHub renders: for a step summary, an issue, or a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from onnx_dfmpc.report.outline import Block, Cell, Chart, Code, Column, Line, Outline, Table

FIRST, MOST = 10, 200
"""Rows of a long table that are seen at once (a convention), and rows after which the rest is left to the
JSON document: a step summary holds 1 MiB.
"""

SIGNS = {"good": "✅ ", "bad": "❌ ", "warn": "⚠️ "}


def markdown(outline: Outline, wide: bool = False) -> str:
    """An outline as Markdown; charts are left out.

    Examples
    --------
    >>> from onnx_dfmpc.report.outline import Figure, Verdict
    >>> verdict, size = Verdict("Passed", "The gate holds.", "good"), Figure("File size", "1 kB")
    >>> print(markdown(Outline("net", "quantize", verdict, (size,), (), "tool 1")))
    ## net
    <BLANKLINE>
    **✅ Passed.** The gate holds.
    <BLANKLINE>
    | | | |
    | --- | ---: | --- |
    | File size | **1 kB** |  |
    <BLANKLINE>
    <sub>quantize · tool 1</sub>
    <BLANKLINE>
    """
    return "\n\n".join(_parts(outline)) + "\n"


def _parts(outline: Outline) -> Iterator[str]:
    verdict = outline.verdict
    yield f"## {_escape(outline.title)}"
    yield f"**{SIGNS.get(verdict.tone, '')}{_escape(verdict.word)}.** {_escape(verdict.text)}"
    if outline.figures:
        rows = [
            f"| {_escape(figure.label)} | **{_escape(figure.value)}** | {_escape(figure.note)} |"
            for figure in outline.figures
        ]
        yield "\n".join(["| | | |", "| --- | ---: | --- |", *rows])
    for section in outline.sections:
        blocks = [
            _block(block, whole=section.folded) for block in section.blocks if not isinstance(block, Chart)
        ]
        if not blocks:
            continue
        if section.folded:
            yield f"<details><summary>{html.escape(section.title)}</summary>"
            yield from blocks
            yield "</details>"
        else:
            yield f"### {_escape(section.title)}"
            yield from blocks
    yield f"<sub>{_escape(' · '.join(part for part in (outline.subtitle, outline.footer) if part))}</sub>"


def _block(block: Block, *, whole: bool) -> str:
    if isinstance(block, Line):
        return SIGNS.get(block.tone, "") + _escape(block.text)
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return (f"{_escape(block.title)}:\n\n" if block.title else "") + f"{fence}sh\n{block.text}\n{fence}"
    assert isinstance(block, Table)
    return _table(block, whole=whole)


def _table(table: Table, *, whole: bool) -> str:
    """Rows under their head; of a long table that is not to be seen as a `whole`, all but the first are
    folded.
    """
    title = f"**{_escape(table.title)}**\n\n" if table.title else ""
    rows = table.rows[:MOST]
    more = (
        f"\n\n{len(table.rows) - MOST} more rows are in the JSON document." if len(table.rows) > MOST else ""
    )
    if whole or not table.long or len(rows) <= FIRST + 2:
        return title + _grid(table, rows) + more
    fold = f"<details><summary>{len(rows) - FIRST} more rows</summary>"
    return (
        f"{title}{_grid(table, rows[:FIRST])}\n\n{fold}\n\n{_grid(table, rows[FIRST:])}{more}\n\n</details>"
    )


def _grid(table: Table, rows: Sequence[tuple[Cell, ...]]) -> str:
    head = [
        "| " + " | ".join(_escape(column.title) for column in table.columns) + " |",
        "| " + " | ".join("---:" if column.numeric else "---" for column in table.columns) + " |",
    ]
    cells = [
        [_cell(column, cell.text) for column, cell in zip(table.columns, row, strict=True)] for row in rows
    ]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in cells)])


def _cell(column: Column, text: str) -> str:
    """Text of a cell; code keeps its characters, and only a bar would end the cell."""
    if column.kind == "code" and text and "`" not in text:
        return f"`{' '.join(text.split())}`".replace("|", "\\|")
    return _escape(text)


def _escape(text: str) -> str:
    """Text without meaning to Markdown or HTML, on one line."""
    plain = re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return re.sub(
        r"^([#+=-]|\d+(?=[.)] ))",
        lambda start: f"\\{start[0]}" if not start[0].isdigit() else f"{start[0]}\\",
        plain,
    )

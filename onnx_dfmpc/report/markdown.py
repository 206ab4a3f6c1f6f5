"""An outline as Markdown that GitHub renders: for a step summary, an issue, or a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from onnx_dfmpc.report.outline import Block, Chart, Code, Column, Line, Outline, Table

LONG = 200
"""Rows of a table, above which the rest is left to the other formats: a step summary holds 1 MiB."""

SIGNS = {"good": "✅ ", "bad": "❌ ", "warn": "⚠️ "}


def markdown(outline: Outline) -> str:
    """Render an outline; charts are left out.

    Parameters
    ----------
    outline : Outline

    Returns
    -------
    str

    Examples
    --------
    >>> from onnx_dfmpc.report.outline import Figure, Verdict
    >>> plain = Outline("net", "quantize", Verdict("Passed", "The gate holds.", "good"), (Figure("File size", "1 kB"),), (), "tool 1")
    >>> print(markdown(plain))
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
        rows = [f"| {_escape(figure.label)} | **{_escape(figure.value)}** | {_escape(figure.note)} |" for figure in outline.figures]
        yield "\n".join(["| | | |", "| --- | ---: | --- |", *rows])
    for section in outline.sections:
        blocks = [_block(block) for block in section.blocks if not isinstance(block, Chart)]
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


def _block(block: Block) -> str:
    if isinstance(block, Line):
        return SIGNS.get(block.tone, "") + _escape(block.text)
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return (f"{_escape(block.title)}:\n\n" if block.title else "") + f"{fence}sh\n{block.text}\n{fence}"
    assert isinstance(block, Table)
    return _table(block)


def _table(table: Table) -> str:
    head = [
        "| " + " | ".join(_escape(column.title) for column in table.columns) + " |",
        "| " + " | ".join("---:" if column.numeric else "---" for column in table.columns) + " |",
    ]
    rows = [
        "| " + " | ".join(_cell(column, cell.text) for column, cell in zip(table.columns, row, strict=True)) + " |"
        for row in table.rows[:LONG]
    ]
    title = f"**{_escape(table.title)}**\n\n" if table.title else ""
    more = len(table.rows) - LONG
    return title + "\n".join([*head, *rows]) + (f"\n\n{more} more rows are in the JSON document." if more > 0 else "")


def _cell(column: Column, text: str) -> str:
    """Text of a cell; code keeps its characters, and only a bar would end the cell."""
    if column.kind == "code" and text and "`" not in text:
        return f"`{' '.join(text.split())}`".replace("|", "\\|")
    return _escape(text)


def _escape(text: str) -> str:
    """Text without meaning to Markdown or HTML, on one line."""
    plain = re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return re.sub(r"^([#+=-]|\d+(?=[.)] ))", lambda start: f"\\{start[0]}" if not start[0].isdigit() else f"{start[0]}\\", plain)

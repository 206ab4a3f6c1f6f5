"""Documents in, one text out: what to make is said by name or by the suffix of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.report.diff import diff_outline
from onnx_dfmpc.report.document import Json
from onnx_dfmpc.report.html import html_page, require_extra
from onnx_dfmpc.report.markdown import markdown
from onnx_dfmpc.report.outline import Outline
from onnx_dfmpc.report.plain import terminal
from onnx_dfmpc.report.run import run_outline

__all__ = ["FORMATS", "format_of", "render", "report_view", "require_format"]

FORMATS = ("html", "markdown")
SUFFIXES = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown"}


def format_of(path: str | os.PathLike[str]) -> str:
    """Format that the suffix of a file stands for.

    Raises
    ------
    RecipeError
        For a suffix that stands for none.

    Examples
    --------
    >>> format_of("run.md")
    'markdown'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise RecipeError(
            f"{path}: no report is written as {suffix or 'a file without a suffix'}",
            hint="name it .html or .md",
        )
    return SUFFIXES[suffix]


def require_format(form: str) -> None:
    """Refuse a format that cannot be made here, before the work is done.

    Raises
    ------
    RecipeError
        For HTML, where the extra ``report`` is not installed.
    """
    if form == "html":
        require_extra()


def outline_of(documents: Sequence[Json], names: Sequence[str]) -> Outline:
    """Outline of a run, or of the difference between two."""
    if len(documents) == 2:
        return diff_outline(documents[0], documents[1], (names[0], names[1]))
    return run_outline(documents[0])


def render(documents: Sequence[Json], form: str, names: Sequence[str] = ("A", "B")) -> str:
    """Report of one run, or of the difference between two, as text.

    Parameters
    ----------
    documents : sequence of dict
        One or two documents of ``quantize``, ``validate`` or ``plan`` (docs/json.md), as `read_document`
        accepts them.
    form : {"html", "markdown"}
    names : sequence of str
        What to call two runs.

    Returns
    -------
    str

    Raises
    ------
    RecipeError
        For HTML, where the extra ``report`` is not installed.
    """
    outline = outline_of(documents, names)
    return html_page(outline) if form == "html" else markdown(outline)


def report_view(documents: Sequence[Json], names: Sequence[str] = ("A", "B"), *, wide: bool = False) -> Group:
    """The same for a terminal."""
    return terminal(outline_of(documents, names), wide=wide)

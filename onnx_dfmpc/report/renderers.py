"""Documents in, one text out. A format is a row of `RENDERERS`; other packages may add theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_dfmpc.errors import RecipeError, printable
from onnx_dfmpc.report.diff_report import diff_outline
from onnx_dfmpc.report.document import Json, parse
from onnx_dfmpc.report.html import html_page, require_extra
from onnx_dfmpc.report.markdown import markdown
from onnx_dfmpc.report.outline import Outline
from onnx_dfmpc.report.run_report import run_outline
from onnx_dfmpc.report.terminal import terminal


@dataclass(frozen=True)
class Renderer:
    """How an outline becomes a text: ``render(outline, wide)``, where `wide` asks for all that a wide
    terminal has room for; the suffixes of such files; what raises RecipeError where an extra is missing.
    """

    render: Callable[[Outline, bool], str]
    suffixes: tuple[str, ...] = ()
    require: Callable[[], None] | None = None


RENDERERS: dict[str, Renderer] = {
    "terminal": Renderer(terminal),
    "markdown": Renderer(markdown, (".md", ".markdown")),
    "html": Renderer(html_page, (".html", ".htm"), require_extra),
}


def format_of(path: str | os.PathLike[str]) -> str:
    """Format that the suffix of a file stands for; RecipeError where it stands for none.

    Examples
    --------
    >>> format_of("run.md")
    'markdown'
    """
    suffix = Path(path).suffix.lower()
    for name, renderer in RENDERERS.items():
        if suffix in renderer.suffixes:
            return name
    known = ", ".join(renderer.suffixes[0] for renderer in RENDERERS.values() if renderer.suffixes)
    raise RecipeError(
        f"{path}: no report is written as {suffix or 'a file without a suffix'}", hint=f"suffixes: {known}"
    )


def require_format(name: str) -> None:
    """Refuse a format that cannot be made here, before the work is done: RecipeError names the extra."""
    require = RENDERERS[name].require
    if require is not None:
        require()


def outline(documents: Sequence[Json], names: Sequence[str] = ("A", "B")) -> Outline:
    """Outline of a run, or of the difference between two."""
    parsed = [parse(_printable(document)) for document in documents]
    if len(parsed) == 1:
        return run_outline(parsed[0])
    return diff_outline(parsed[0], parsed[1], [printable(name) for name in names])


def _printable(value: Any) -> Any:
    """A document whose texts are `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list | tuple) else value


def render(
    documents: Sequence[Json], form: str, names: Sequence[str] = ("A", "B"), wide: bool = False
) -> str:
    """Report of one document, or of the difference between two, in a format of `RENDERERS`; `names` are what
    to call the two, such as the names of their files.
    """
    return RENDERERS[form].render(outline(documents, names), wide)

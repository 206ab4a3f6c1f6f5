"""The page of modules: every room of the package with its modules, in the words of their own docstrings."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "onnx_dfmpc"


def rooms() -> list[str]:
    """Names of the rooms, in the order of the arrows: those that import before those that are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return re.findall(r"\w+", " ".join(layers))


def page() -> str:
    """A section for every room, a line for every module."""
    parts = [
        "# Modules",
        "For those who read the code: what each file is about, from its docstring, in the order of "
        "[the map](../../CONTRIBUTING.md#the-rooms): a room imports only rooms below it.",
    ]
    for room in rooms():
        parts += [f"## {room}", "\n".join(_lines(room))]
    return "\n\n".join(parts)


def _lines(room: str) -> Iterator[str]:
    folder = PACKAGE / room
    if not folder.is_dir():
        yield _summary(folder.with_suffix(".py"))
        return
    yield f"{_summary(folder / '__init__.py')}\n"
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"* `{path.name}`: {_summary(path)}"


def _summary(path: Path) -> str:
    """First paragraph of a docstring, as Markdown."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(text.partition("\n\n")[0].split())
    return line.replace("``", "`")

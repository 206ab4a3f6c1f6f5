"""Files that are made from the code: schemas, pages of the reference, shell completion, the manual page.

python -m tools.generated          writes them
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from onnx_dfmpc.cli.flags import PROGRAM, _parser
from tools import reference
from tools.schemas import document_schema, recipe_schema

ROOT = Path(__file__).parents[1]

FILES = re.compile(r"MODELS?|FLOAT|QUANTIZED|FILE|FOLDER|PATH|.*\.(onnx|json)")
"""What stands for a file in the help."""


def schemas() -> Mapping[str, str]:
    """Path to content."""
    made = {"recipe": recipe_schema(), "document": document_schema()}
    return {
        f"onnx_dfmpc/schemas/{name}.schema.json": json.dumps(schema, indent=1) + "\n"
        for name, schema in made.items()
    }


def completions() -> Mapping[str, str]:
    """Path to content; needs shtab."""
    import shtab

    parser, _ = _parser()
    for action in _files(parser):
        action.complete = shtab.FILE
    names = {"bash": f"{PROGRAM}.bash", "zsh": f"_{PROGRAM}"}
    with patch.dict(os.environ, COLUMNS="100"):
        return {
            f"completions/{name}": shtab.complete(parser, shell=shell, preamble="").rstrip() + "\n"
            for shell, name in names.items()
        }


def _files(parser: Any) -> Iterator[Any]:
    """Arguments that name files, of all commands."""
    commands = [action for action in parser._actions if action.choices and action.dest == "command"]
    for command in commands[0].choices.values():
        for action in command._actions:
            words = (action.metavar,) if isinstance(action.metavar, str) else ()
            if any(map(FILES.fullmatch, words)):
                yield action


def manual() -> Mapping[str, str]:
    """Path to content; needs argparse-manpage."""
    from argparse_manpage.manpage import Manpage

    parser: Any = _parser()[0]
    parser.man_short_description = "make ONNX networks smaller and faster, without data"
    with patch.dict(os.environ, COLUMNS="100"):  # argparse fits its help to the terminal
        page = Manpage(parser)
        page.date, page.source = "", PROGRAM  # the same bytes every day
        return {f"man/{PROGRAM}.1": str(page).rstrip() + "\n"}


def main() -> None:
    """Write every file."""
    for path, content in (schemas() | reference.pages() | completions() | manual()).items():  # type: ignore[operator]
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_text(content, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()

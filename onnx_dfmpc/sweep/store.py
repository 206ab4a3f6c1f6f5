"""Rows in a file that only grows, one line of JSON each; the last row of a key counts.

A row is there once its line is whole: a line that a kill has cut is passed over, and its job runs again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.report.schema import from_json, to_json
from onnx_dfmpc.sweep.job import Row


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by key; none where there is no file."""
    rows: dict[str, Row] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return rows
    except OSError as error:
        raise RecipeError(f"{path}: cannot read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        row = from_json(Row, content, f"{path}, line {number}")
        rows[row.key] = row
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a line, and see it to the disk. It begins with a newline: the line before may have been cut."""
    line = json.dumps(to_json(row), ensure_ascii=False, allow_nan=False)
    try:
        with path.open("ab") as file:
            file.write(f"\n{line}".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecipeError(f"{path}: cannot write: {error.strerror}", hint="choose another folder") from error

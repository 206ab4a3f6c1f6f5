"""Class indices of the samples, from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import LABELS, Table
from onnx_dfmpc.inputs.stored import Anything, stored_arrays

LabelSource = str | os.PathLike[str] | NDArray[Any]

TEXT_HINT = (
    "give an .npz, an .npy, or text with one integer per line, for images also: FILE NAME, then its label"
)


def read_labels(labels: LabelSource, table: Table) -> Anything:
    """Labels of a table's samples, not yet checked.

    Parameters
    ----------
    labels : path or array
        An .npz with an array ``labels`` (or a single one), an .npy, or text: one integer per line, or, where
        samples have names, lines of a name and an integer.
    table : Table

    Raises
    ------
    RecipeError
        A file that cannot be read, or that says nothing about a sample.
    """
    if not isinstance(labels, str | os.PathLike):
        return np.asarray(labels)
    path = Path(labels)
    if path.suffix not in (".npz", ".npy"):
        return _text_labels(path, table)
    arrays = stored_arrays(path, "labels")
    if LABELS in arrays:
        return arrays[LABELS].whole()
    if len(arrays) == 1:
        return next(iter(arrays.values())).whole()
    raise RecipeError(
        f"{path}: has {', '.join(arrays)}, none of them named 'labels'",
        hint=f"{table.count} integers, one per sample",
    )


def _text_labels(path: Path, table: Table) -> NDArray[np.int64]:
    try:
        lines = [
            line.replace(",", " ").rsplit(maxsplit=1)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        numbers = np.array([int(line[-1]) for line in lines], np.int64)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such labels file") from None
    except (OSError, ValueError, OverflowError):
        raise RecipeError(f"{path}: not a label file", hint=TEXT_HINT) from None
    if all(len(line) == 1 for line in lines):
        return numbers
    if not table.names or any(len(line) == 1 for line in lines):
        raise RecipeError(f"{path}: not a label file", hint=TEXT_HINT)
    known = {line[0].strip(): number for line, number in zip(lines, numbers, strict=True)}
    by_name = [known.get(name, known.get(Path(name).name)) for name in table.names]
    if None in by_name:
        raise RecipeError(f"{path}: no label for {table.names[by_name.index(None)]!r}")
    return np.array(by_name, np.int64)

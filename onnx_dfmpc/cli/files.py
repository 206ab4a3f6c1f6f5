"""Which files a command reads and writes: nothing that is read is ever written over."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from onnx_dfmpc.cli.flags import recipe_of
from onnx_dfmpc.errors import DfmpcError, RecipeError
from onnx_dfmpc.inputs.sources import SCRIPT
from onnx_dfmpc.model.files import external_files
from onnx_dfmpc.model.writing import ELSEWHERE, require_writable, same_file
from onnx_dfmpc.report.renderers import format_of, require_format

MODELS = ("model", "float_model", "quantized_model")
OTHERS = ("config", "plan", "data", "labels", "calibration_data")
"""Arguments that name files to read."""

FOREIGN = (".tflite", ".pt", ".pth", ".pb", ".h5", ".keras", ".engine", ".plan", ".mlmodel", ".safetensors")
"""Suffixes of models in other formats, which nobody here writes."""

REPORTS = (".json", ".md", ".markdown", ".html", ".htm")
"""Suffixes of what is made anew by every run, and so replaced without being asked."""


def require_files(args: argparse.Namespace) -> tuple[Path, ...]:
    """Refuse files that cannot be read or written before the work is done, not after it. Returns all that is
    read, where a file that is to be written exists already.
    """
    named = [*_named(args)]
    for path in named:
        if path.exists() and not (path.is_file() or path.is_dir()):
            hint = "save what comes out of it to a file first"
            raise RecipeError(f"{path}: a device or a pipe, not a regular file", hint=hint)
    targets = list(_targets(args))
    # What does not exist yet is nobody's file.
    read = tuple(_read(args, named)) if any(os.path.lexists(target) for target, *_ in targets) else ()
    taken: list[Path] = []
    for target, external, overwrite in targets:
        if any(same_file(target, other) for other in named):
            raise RecipeError(f"{target}: would replace another file, which this run reads", hint=ELSEWHERE)
        if any(same_file(target, other) for other in taken):
            raise RecipeError(f"{target}: is also another file of this run", hint=ELSEWHERE)
        if "overwrite" not in args and not overwrite and os.path.lexists(target):
            hint = f"choose another name; {', '.join(REPORTS)} are replaced"
            raise RecipeError(f"{target}: exists already, and its name is not that of a report", hint=hint)
        require_writable(target, external_data=external, overwrite=overwrite, protected=read)
        taken.append(target)
    return read


def replaceable(name: str) -> bool:
    """Whether a report may replace a file of this name without being asked."""
    return Path(name).suffix.lower() in REPORTS


def _targets(args: argparse.Namespace) -> Iterator[tuple[Path, bool, bool]]:
    """Files to write, whether they come with external data, and whether they may exist."""
    overwrite = getattr(args, "overwrite", False)
    if (output := getattr(args, "output", None)) is not None:
        if args.command == "quantize" and Path(output).suffix.lower() in FOREIGN:
            hint = f"-o {Path(output).with_suffix('.onnx')}, and convert that"
            raise RecipeError(f"{output}: the output is an ONNX model, whatever its name", hint=hint)
        if args.command == "report":
            overwrite = replaceable(output)
        yield Path(output), getattr(args, "save_as_external_data", False), overwrite
    if args.json not in (None, "-"):
        yield Path(args.json), False, overwrite or replaceable(args.json)
    if (recipe := getattr(args, "save_recipe", None)) is not None:
        yield Path(recipe), False, overwrite
    for name in args.report:
        require_format(format_of(name))
        yield Path(name), False, True


def _named(args: argparse.Namespace) -> Iterator[Path]:
    """Files and folders that the arguments name."""
    names = [getattr(args, key, None) for key in (*MODELS, *OTHERS)]
    for name in (*names, *getattr(args, "runs", ())):
        if name is not None:
            script = SCRIPT.fullmatch(str(name))
            yield Path(script["file"] if script else name)


def _read(args: argparse.Namespace, named: list[Path]) -> Iterator[Path]:
    """Every file that the command reads, with external data and what folders hold."""
    yield from named
    for key in MODELS:
        if (model := getattr(args, key, None)) is not None:
            yield from external_files(Path(model))
    with suppress(DfmpcError):  # which the command itself says better
        recipe = recipe_of(args)
        for source in (recipe.data, recipe.labels, recipe.calibration_data):
            if isinstance(source, str | os.PathLike) and (path := Path(source)) not in named:
                yield path
    for folder in [path for path in named if path.is_dir()]:
        yield from (file for file in folder.rglob("*") if file.suffix.lower() not in REPORTS)

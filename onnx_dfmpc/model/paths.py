"""Model files by name, by pattern and by folder."""

from __future__ import annotations

from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

from onnx_dfmpc.errors import ModelError

MARK = ".quantized"
"""What stands before the suffix of a quantized model that was given no name."""


def model_files(names: Iterable[str]) -> list[Path]:
    """Files that names stand for, each once: a folder for every ``.onnx`` below it, a pattern for what it
    matches, anything else for itself. Models that `beside` names are left out unless they are named.

    Raises
    ------
    ModelError
        A folder or a pattern without a model.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(path.rglob("*.onnx"))
        elif has_magic(name) and not path.exists():
            files = sorted(Path(match) for match in glob(name, recursive=True) if Path(match).is_file())
        else:
            found[path] = None
            continue
        files = [file for file in files if not file.stem.endswith(MARK)]
        if not files:
            raise ModelError(f"{name}: no .onnx file there", hint="name a model, a folder or a pattern")
        found |= dict.fromkeys(files)
    return list(found)


def beside(model: Path) -> Path:
    """Where the quantized model goes that was given no name.

    >>> str(beside(Path("net.onnx")))
    'net.quantized.onnx'
    """
    return model.with_name(f"{model.stem}{MARK}.onnx")

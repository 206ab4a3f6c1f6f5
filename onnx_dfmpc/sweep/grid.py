"""A file of settings, and the jobs that it makes of some models.

    [all]                     keywords of every recipe
    [model."GLOB"]            keywords for the models whose path matches; the last match wins
    [setting."NAME"]          keywords of one setting, which win over both

Keywords are those of a `Recipe`; paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.model.protobuf import tensors
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.recipe.recipe import PATHS
from onnx_dfmpc.recipe.values import require_known
from onnx_dfmpc.report.document import tool_version
from onnx_dfmpc.sweep.job import Job

SECTIONS = ("all", "model", "setting")
Keywords = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """What a file of settings says."""

    everywhere: Keywords
    by_model: Mapping[str, Keywords]
    settings: Mapping[str, Keywords]

    def recipe(self, model: Path, setting: str) -> Recipe:
        """Recipe of one model in one setting."""
        keywords = dict(self.everywhere)
        for pattern, given in self.by_model.items():
            if fnmatch(str(model), pattern):
                keywords.update(given)
        keywords.update(self.settings[setting])
        try:
            return Recipe.from_dict(keywords)
        except RecipeError as error:
            raise RecipeError(f"setting {setting!r}, {model}: {error}", hint=error.hint) from None


def read_grid(path: Path) -> Grid:
    """A file of settings; RecipeError where it cannot be read, or has a section that is none."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the settings: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from None
    try:
        require_known(content, SECTIONS)
        if not content.get("setting"):
            raise RecipeError("no setting", hint='write [setting."mean 4"] and target_bits = 4')
        by_model, settings = (
            {
                name: _keywords(given, path, f"[{kind}.{name!r}]")
                for name, given in content.get(kind, {}).items()
            }
            for kind in ("model", "setting")
        )
        return Grid(_keywords(content.get("all", {}), path, "[all]"), by_model, settings)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}", hint=error.hint) from None


def _keywords(given: Any, path: Path, where: str) -> Keywords:
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: expected a section", hint=f"write {where} on a line of its own")
    return {
        key: str((path.parent / value).absolute()) if key in PATHS and isinstance(value, str) else value
        for key, value in given.items()
    }


def jobs_of(models: Sequence[Path], grid: Grid, output: Path | None) -> list[Job]:
    """Every model in every setting, models in order; quantized models go into `output`, if anywhere."""
    version, jobs = tool_version(), []
    for model in models:
        content = digest(model)
        for setting in grid.settings:
            recipe = grid.recipe(model, setting).to_dict(changed_only=True)
            key = hashlib.sha256(json.dumps([content, recipe, version], sort_keys=True).encode()).hexdigest()
            name = (
                "-".join(re.sub(r"[^\w.]+", "_", part) for part in (model.stem, setting)) + f"-{key[:8]}.onnx"
            )
            target = None if output is None else str((output / name).absolute())
            jobs.append(Job(key, str(model), setting, recipe, target))
    return jobs


def digest(model: Path) -> str:
    """SHA-256 of a model's file and of the external data that it names; of its path where it cannot be read.

    Reading a model for good is the job's: a bad one has a digest, too.
    """
    total = hashlib.sha256()
    try:
        total.update(_file_digest(model))
    except OSError:
        return hashlib.sha256(str(model).encode()).hexdigest()
    try:
        proto = onnx.load(model, load_external_data=False)
        named = {ExternalDataInfo(tensor).location for tensor in tensors(proto) if uses_external_data(tensor)}
    except (DecodeError, ValueError, KeyError):
        named = set()
    for location in sorted(named):
        data = model.parent / location
        total.update(_file_digest(data) if data.is_file() else b"missing")
    return total.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

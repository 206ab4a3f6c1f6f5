"""One job of a sweep: a model and a recipe to a row, whatever happens."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.pipeline.results import QuantizeResult
from onnx_dfmpc.pipeline.run import quantize
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report.document import nominal_bits, tool_version

Status = Literal["done", "gate", "error", "lost"]


@dataclass(frozen=True)
class Job:
    """What a worker needs. ``recipe`` holds keywords of a `Recipe`, plain data that any process can read."""

    key: str
    model: str
    setting: str
    recipe: Mapping[str, Any]
    output: str | None


@dataclass(frozen=True)
class Row:
    """What a job left, one line of ``results.jsonl``.

    ``status`` is "done"; "gate" where a gate does not hold, so that there is no file; "error", with message
    and hint; or "lost", where no worker lived to the end of the job, which the next run tries again.
    Numbers are None where there are none.
    """

    key: str
    model: str
    setting: str
    recipe: Mapping[str, Any]
    status: Status
    version: str
    seconds: float
    host: str
    error: str = ""
    hint: str = ""
    output: str | None = None
    float_bytes: int | None = None
    bytes: int | None = None
    mean_bits: float | None = None
    sqnr_db: float | None = None
    predicted_sqnr_db: float | None = None
    data: str | None = None
    samples: int | None = None
    top1_float: float | None = None
    top1: float | None = None

    @property
    def ratio(self) -> float | None:
        """Times smaller than the float model."""
        return self.float_bytes / self.bytes if self.float_bytes and self.bytes else None


def run_job(job: Job) -> Row:
    """Quantize, and say how that went; an error of the model or of the recipe is a row as well."""
    start = time.perf_counter()
    row = empty_row(job, "error")
    try:
        result = quantize(job.model, recipe=Recipe.from_dict(job.recipe))
        if result.passed and job.output is not None:
            result = result.save(job.output, overwrite=True)
        row = _measured(row, result)
    except DfmpcError as error:
        row = replace(row, error=str(error), hint=error.hint)
    except Exception as error:  # a bug must not take the other jobs with it
        row = replace(row, error=f"internal error, {type(error).__name__}: {error}")
    return replace(row, seconds=round(time.perf_counter() - start, 3))


def empty_row(job: Job, status: Status, error: str = "", hint: str = "") -> Row:
    """Row of a job without any result."""
    about = (tool_version(), 0.0, platform.node())
    return Row(job.key, job.model, job.setting, job.recipe, status, *about, error, hint)


def _measured(row: Row, result: QuantizeResult) -> Row:
    row = replace(
        row,
        status="done" if result.passed else "gate",
        output=None if result.output is None else os.path.join("models", Path(result.output).name),
        float_bytes=result.source.size,
        bytes=result.size,
        mean_bits=nominal_bits(result.layers),
        predicted_sqnr_db=result.plan.predicted_sqnr_db,
    )
    validation = result.validation
    if validation is None:
        return row
    missed = [f"{gate.name} = {gate.limit:g} missed" for gate in validation.gates if not gate.passed]
    return replace(
        row,
        error="; ".join((*validation.failures, *missed)),
        sqnr_db=validation.sqnr_db,
        data=validation.data,
        samples=validation.samples,
        top1_float=validation.top1_float,
        top1=validation.top1_quantized,
    )

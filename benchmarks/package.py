"""The package's own pipeline as a benchmark needs it: the method alone, and plans with an ingredient taken
out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnx import ModelProto

from onnx_dfmpc import QuantizeResult, Recipe, apply
from onnx_dfmpc.pipeline.job import needs_statistics, prepare
from onnx_dfmpc.pipeline.steps import Measured, allocate, cost_table, measure

Model = str | os.PathLike[str] | ModelProto


def quantize(model: Model, recipe: Recipe, changes: Mapping[str, Any] | None = None) -> QuantizeResult:
    """Quantize without the comparison on synthetic inputs: benchmarks compare on real ones, and time the
    method.

    Parameters
    ----------
    model : path or ModelProto
    recipe : Recipe
    changes : mapping, optional
        Fields of every `LayerPlan` to replace, such as ``{"per_channel": False}``.
    """
    job = prepare(model, recipe, None, {}, statistics=needs_statistics(recipe), predicted=False)
    statistics = Measured({}) if job.sizes is None else measure(job, job.planned, {})
    costs, _ = cost_table(job, statistics, {})
    plan = allocate(job, costs, {})
    changed = replace(plan, layers=tuple(replace(layer, **(changes or {})) for layer in plan.layers))
    return apply(model, changed, recipe, validated=False)

"""The package's own pipeline as a benchmark needs it: the method alone, and plans with an ingredient taken out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from onnx import ModelProto

from onnx_dfmpc import QuantizeResult, Recipe, ValidationReport, pipeline

Model = str | os.PathLike[str] | ModelProto


@contextmanager
def without_validation() -> Iterator[None]:
    """Leave the comparison on synthetic inputs out: benchmarks compare on real ones, and time the method."""
    nothing = ValidationReport(samples=0, data="left out", synthetic=True, outputs=())
    with (
        mock.patch.object(pipeline, "validate", return_value=nothing),
        mock.patch.object(pipeline, "layer_sqnr", return_value={}),
    ):
        yield


def quantize(model: Model, recipe: Recipe, changes: Mapping[str, Any] | None = None) -> QuantizeResult:
    """Quantize without validation.

    Parameters
    ----------
    model : path or ModelProto
    recipe : Recipe
    changes : mapping, optional
        Fields of every `LayerPlan` to replace, such as ``{"per_channel": False}``.
    """
    with without_validation():
        if not changes:
            return pipeline.quantize(model, recipe=recipe)
        plan = pipeline.plan(model, recipe)
        plan = replace(plan, layers=tuple(replace(layer, **changes) for layer in plan.layers))
        return pipeline.apply(model, plan, recipe)

"""The package's own pipeline as a benchmark needs it: the method alone, plans with an ingredient taken out,
and the inputs that statistics are measured on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_dfmpc import QuantizeResult, Recipe
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.pipeline.job import needs_statistics, prepare
from onnx_dfmpc.pipeline.steps import allocate, carry_out, cost_table, finish, measure
from onnx_dfmpc.spec import Feeds, Layer, Mixture
from onnx_dfmpc.statistics.belief import believe
from onnx_dfmpc.statistics.mixing import believed, mixture_of

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
    statistics = measure(job, job.planned, {})
    costs, _ = cost_table(job, statistics, {})
    plan = allocate(job, costs, {})
    changed = replace(plan, layers=tuple(replace(layer, **(changes or {})) for layer in plan.layers))
    made = carry_out(job, changed, statistics, {})
    return finish(job, made, {}, None, (), statistics, {})


@dataclass(frozen=True, eq=False)
class Believed:
    """What the inputs of a network are taken for: kinds to measure on, and the likeliest range."""

    mixture: Mixture
    span: tuple[float, float]


def inputs_of(proto: ModelProto, layers: Sequence[Layer], *, seed: int = 0) -> Believed:
    """Inputs as the pipeline takes them where a recipe says nothing about them."""
    specs = model_inputs(proto)
    belief = believe(proto, layers, specs, seed=seed)
    mixture = believed(specs, belief.hypotheses, belief.weights, anchored=belief.anchored, seed=seed)
    return Believed(mixture, (belief.likeliest.low, belief.likeliest.high))


def real_mixture(feeds: Feeds) -> Mixture:
    """Collected inputs, and nothing else."""
    return mixture_of([feeds], np.ones(1), np.ones(1), [True])

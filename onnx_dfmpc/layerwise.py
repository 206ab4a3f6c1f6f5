"""The loop over the layers: statistics of its input, codes, what the codes do to its output, and the repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.inputs.data import calibration_feeding
from onnx_dfmpc.inputs.model_inputs import model_inputs, real_feeds
from onnx_dfmpc.inputs.synthetic_feeds import synthetic_feeds
from onnx_dfmpc.linalg.matrices import rescaled
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import LoadedModel
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.solve import correct, finish, finish_paper, relative_noise, round_layer
from onnx_dfmpc.spec import InputStatistics, Layer, MatchReport, QuantizedLayer, QuantPlan
from onnx_dfmpc.spec.ops import along_inputs, taps
from onnx_dfmpc.statistics.probe import Probe
from onnx_dfmpc.statistics.providers import ClosedForm, NoStatistics, Provider

Progress = Callable[[str, int, int], None]
Range = tuple[float, float] | None


def solve_layers(
    source: LoadedModel,
    report: MatchReport,
    plan: QuantPlan,
    recipe: Recipe,
    *,
    input_range: Callable[[], Range],
    progress: Progress | None,
    watch: Callable[[Layer, InputStatistics], None] | None = None,
) -> list[QuantizedLayer]:
    """Quantize and repair the planned layers, in topological order.

    Parameters
    ----------
    source : LoadedModel
    report : MatchReport
    plan : QuantPlan
    recipe : Recipe
    input_range : callable
        Range of synthetic inputs; asked only where some are needed.
    progress : callable or None
        Called with ``("quantize", layers done, layers)``.
    watch : callable, optional
        Called with every layer and the statistics of its input, where anything asks for them.
    """
    table = ConstantTable(source.proto)
    plans = {layer.name: layer for layer in plan.layers}
    carriers = _carriers(report, plan, recipe)
    factors: dict[str, NDArray[np.floating]] = {}
    solved = []
    asks = _asks(plan, recipe)
    known_by = provider(source, report, recipe, input_range) if asks else NoStatistics()
    for layer in report.layers:
        if layer.name not in plans:
            known_by.skip(layer)
            continue
        weight, bias = (
            _floats(table[layer.weight]),
            _floats(table[layer.bias]).ravel() if layer.bias else None,
        )
        known = known_by.measure(layer)
        if asks and watch is not None:
            watch(layer, known)
        if layer.name in factors:
            weight = weight * along_inputs(factors[layer.name], layer)
            known = _divided(known, factors[layer.name], layer)
        rounded = round_layer(layer, plans[layer.name], weight, known)
        if recipe.method == "paper":
            done, taken_over = finish_paper(rounded, recipe, bias, to_consumers=layer.name in carriers)
            if taken_over is not None:
                factors |= dict.fromkeys(carriers[layer.name], taken_over)
            known_by.skip(layer)
        else:
            correction = correct(rounded, recipe, known_by.respond(layer, rounded.weight()))
            known_by.commit(layer, correction.gain, correction.shift)
            done = finish(rounded, correction, recipe, bias)
        solved.append(done)
        if progress is not None:
            progress("quantize", len(solved), len(plans))
    return solved


def weight_noise(source: LoadedModel) -> Callable[[Layer, int], float]:
    """Predicted noise of a layer at some bits, relative to its output, for choosing between the layers of a
    pair (see `relative_noise`).
    """
    table = ConstantTable(source.proto)
    return lambda layer, bits: relative_noise(layer, _floats(table[layer.weight]), bits)


def provider(
    source: LoadedModel, report: MatchReport, recipe: Recipe, input_range: Callable[[], Range]
) -> Provider:
    """Statistics of the layers' inputs, from where the recipe says.

    Parameters
    ----------
    source : LoadedModel
    report : MatchReport
    recipe : Recipe
    input_range : callable
        Range of synthetic inputs; asked only where some are needed.
    """
    if recipe.calibration_data is not None:
        real = real_feeds(source.proto, calibration_feeding(recipe))
        return Probe(source.proto, real, provider="calibration", seed=recipe.seed)
    specs, span = model_inputs(source.proto, dict(recipe.shapes)), input_range()
    if recipe.statistics == "analytic":
        return ClosedForm(source.proto, report.layers, input_range=span)
    synthetic = synthetic_feeds(specs, seed=recipe.seed, input_range=span)
    return Probe(source.proto, synthetic, provider="probe", seed=recipe.seed)


def _asks(plan: QuantPlan, recipe: Recipe) -> bool:
    """Whether anything needs statistics."""
    return (
        recipe.compensate
        or recipe.bias_correction
        or any(layer.rounding == "covariance" for layer in plan.layers)
    )


def _carriers(report: MatchReport, plan: QuantPlan, recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Consumers of every low layer whose coefficients they can take over."""
    if recipe.absorb != "consumer" or recipe.method != "paper":
        return {}
    planned = {layer.name: layer for layer in plan.layers}
    return {
        chain.producer: chain.consumers
        for chain in report.chains
        if chain.homogeneous
        and chain.producer in planned
        and planned[chain.producer].role == "low"
        and all(consumer in planned for consumer in chain.consumers)
    }


def _floats(array: NDArray[np.generic]) -> NDArray[np.float32]:
    return array.astype(np.float32, copy=False)


def _divided(known: InputStatistics, factor: NDArray[np.floating], layer: Layer) -> InputStatistics:
    """Statistics of inputs that come without the factors that the weight took over; a factor of 0 silences
    its channel.
    """
    inverse = np.where(factor > 0, 1 / np.where(factor > 0, factor, 1), 0)
    each = np.repeat(
        inverse.reshape(layer.group, -1),
        known.mean.shape[1] * layer.group // factor.size // taps(layer),
        axis=1,
    )  # (g, i)
    return replace(
        known,
        mean=known.mean * np.repeat(each, taps(layer), axis=1),
        covariance=rescaled(known.covariance, each),
    )

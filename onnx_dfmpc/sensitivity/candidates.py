"""What quantizing a layer does to its own output, at several widths, cheaper than by doing it.

The rounding that a layer will get may search for a while. For a prediction a sketch is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.allocate.fixed import layer_plan
from onnx_dfmpc.compensate import respond
from onnx_dfmpc.linalg.products import SLAB
from onnx_dfmpc.methods import METHODS, Repair, Rounded, alike, correct, grid_spec, noise_share, round_layer
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rounding.grids import dequantize
from onnx_dfmpc.rounding.regularize import regularize, with_mean_uncertainty
from onnx_dfmpc.rounding.rounding import ROUNDINGS, Sketch, split
from onnx_dfmpc.spec import Array, InputStatistics, Layer, LayerPlan
from onnx_dfmpc.spec.ops import from_rows, taps, to_rows


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer at some width, repaired."""

    weight: NDArray[np.float32]  # with its gain, shape ``layer.shape``
    shift: Array  # to take off the output, shape (channels,)
    noise: float  # predicted at the layer's own output, relative to its signal; 0 without a signal


def candidates(
    layers: Sequence[Layer],
    weights: Sequence[NDArray[np.floating]],
    statistics: Sequence[InputStatistics],
    widths: Sequence[Sequence[float]],
    recipe: Recipe,
) -> list[dict[float, Candidate]]:
    """Candidates of layers by width; weights have their shapes, statistics are of their inputs."""
    found: dict[int, dict[float, Candidate]] = {}
    switches = Repair(recipe.repairs_gain, recipe.repairs_mean)
    for some in alike(layers, statistics, [tuple(one) for one in widths]):
        plans = [[layer_plan(layers[i], "inner", width, "", recipe) for width in widths[i]] for i in some]
        sketch = ROUNDINGS[recipe.rounding or METHODS[recipe.method].rounding].sketch
        if sketch is None or any(plan.grid not in ("asymmetric", "vector") for plan in plans[0]):
            rounded = [
                [round_layer(layers[i], plan, weights[i], statistics[i]) for plan in own]
                for i, own in zip(some, plans, strict=True)
            ]
        else:
            rounded = _sketched(
                [layers[i] for i in some],
                plans,
                [weights[i] for i in some],
                [statistics[i] for i in some],
                sketch,
            )
        for i, own in zip(some, rounded, strict=True):
            found[i] = {one.plan.bits: repaired(one, switches) for one in own}
    return [found[index] for index in range(len(layers))]


def _sketched(
    layers: Sequence[Layer],
    plans: Sequence[Sequence[LayerPlan]],
    weights: Sequence[NDArray[np.floating]],
    statistics: Sequence[InputStatistics],
    sketch: Sketch,
) -> list[list[Rounded]]:
    """Sketches of layers that are alike, on the grids of their plans."""
    rows = [
        to_rows(weight.astype(np.float64 if layer.size < SLAB else np.float32, copy=False), layer)
        for weight, layer in zip(weights, layers, strict=True)
    ]
    trusted = [
        regularize(seen.covariance, taps(layer), seen.samples, seen.chance)
        for seen, layer in zip(statistics, layers, strict=True)
    ]
    uncertain = [
        with_mean_uncertainty(one, seen.mean, taps(layer))
        for one, seen, layer in zip(trusted, statistics, layers, strict=True)
    ]
    together = uncertain[0]
    if len(layers) > 1:
        together = np.concatenate([one for one in uncertain if isinstance(one, np.ndarray)])
    grids = [grid_spec(layers[0], plan) for plan in plans[0]]
    found: list[list[Rounded]] = [[] for _ in layers]
    sketched = sketch(np.concatenate(rows), grids, together, len(layers))
    for grid, codes in zip(range(len(grids)), sketched, strict=True):
        for index, part in enumerate(split(codes, len(layers))):
            # Predicted by the covariance that rounding trusts: it fits the one that was measured too well.
            response = respond(rows[index], dequantize(part), statistics[index].mean, trusted[index])
            found[index].append(
                Rounded(layers[index], plans[index][grid], rows[index], part, response, statistics[index])
            )
    return found


def repaired(rounded: Rounded, switches: Repair) -> Candidate:
    """A layer whose codes are chosen, with the gain and the shift of the default method."""
    correction = correct(rounded, switches, None)
    quantized = dequantize(rounded.codes) * correction.gain.reshape(*rounded.rows.shape[:2], 1)
    weight = from_rows(quantized.astype(np.float32), rounded.layer)
    noise = noise_share(rounded.response.scaled(correction.gain), rounded.layer)
    return Candidate(weight, correction.shift, noise or 0.0)

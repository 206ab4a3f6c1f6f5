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
from onnx_dfmpc.methods import METHODS, Repair, Rounded, correct, grid_spec, noise_share, round_layer
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rounding.grids import dequantize
from onnx_dfmpc.rounding.regularize import regularize, with_mean_uncertainty
from onnx_dfmpc.rounding.rounding import ROUNDINGS
from onnx_dfmpc.spec import Array, InputStatistics, Layer
from onnx_dfmpc.spec.ops import from_rows, taps, to_rows


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer at some width, repaired."""

    weight: NDArray[np.float32]  # with its gain, shape ``layer.shape``
    shift: Array  # to take off the output, shape (channels,)
    noise: float  # predicted at the layer's own output, relative to its signal; 0 without a signal


def candidates(
    layer: Layer,
    weight: NDArray[np.floating],
    statistics: InputStatistics,
    widths: Sequence[int],
    recipe: Recipe,
) -> dict[int, Candidate]:
    """Candidates of one layer by width; ``weight`` has shape ``layer.shape``, statistics are of its input."""
    plans = [layer_plan(layer, "inner", width, "", recipe) for width in widths]
    sketch = ROUNDINGS[recipe.rounding or METHODS[recipe.method].rounding].sketch
    if sketch is None or any(plan.grid != "asymmetric" for plan in plans):
        rounded = [round_layer(layer, plan, weight, statistics) for plan in plans]
    else:
        rows = to_rows(weight.astype(np.float64), layer)
        trusted = regularize(statistics.covariance, taps(layer), statistics.samples)
        uncertain = with_mean_uncertainty(trusted, statistics.mean, taps(layer))
        sketched = sketch(rows, [grid_spec(layer, plan) for plan in plans], uncertain)
        # Predicted by the covariance that rounding trusts: it fits the one that was measured too well.
        responses = [respond(rows, dequantize(codes), statistics.mean, trusted) for codes in sketched]
        rounded = [
            Rounded(layer, plan, rows, codes, response, statistics)
            for plan, codes, response in zip(plans, sketched, responses, strict=True)
        ]
    switches = Repair(recipe.repairs_gain, recipe.repairs_mean)
    return {one.plan.bits: repaired(one, switches) for one in rounded}


def repaired(rounded: Rounded, switches: Repair) -> Candidate:
    """A layer whose codes are chosen, with the gain and the shift of the default method."""
    correction = correct(rounded, switches, None)
    quantized = dequantize(rounded.codes) * correction.gain.reshape(*rounded.rows.shape[:2], 1)
    weight = from_rows(quantized.astype(np.float32), rounded.layer)
    noise = noise_share(rounded.response.scaled(correction.gain), rounded.layer)
    return Candidate(weight, correction.shift, noise or 0.0)

"""What quantizing a layer does to its own output, by the statistics of its input, for less than the price of
quantizing it (NumPy).

The rounding that a layer will get searches for scales and polishes the codes. For a prediction one pass of
error feedback at a fixed share of the range is enough: about 1 dB more noise than the search leaves, and the
same for every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.allocate import layer_plan
from onnx_dfmpc.compensate import respond
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rounding.gptq import CholeskyFactor, feedback
from onnx_dfmpc.rounding.grids import Codes, dequantize, limits, min_max
from onnx_dfmpc.rounding.regularize import regularize
from onnx_dfmpc.solve import Rounded, correct, for_rounding, noise_share, round_layer
from onnx_dfmpc.spec import Array, InputStatistics, Layer, LayerPlan
from onnx_dfmpc.spec.ops import from_rows, shares_grid, taps, to_rows

RATIO = {2: 0.75, 3: 0.85, 4: 0.95}
"""Share of a row's range that its grid covers: the middle of what the search tries."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer at some width, repaired.

    Attributes
    ----------
    weight : float32 array, shape ``layer.shape``
        With its gain.
    shift : float64 array, shape (channels,)
        To take off the output.
    noise : float
        Predicted at the layer's own output, relative to its signal; 0 without a signal.
    """

    weight: NDArray[np.float32]
    shift: Array
    noise: float


def candidates(
    layer: Layer,
    weight: NDArray[np.floating],
    statistics: InputStatistics,
    widths: Sequence[int],
    recipe: Recipe,
) -> dict[int, Candidate]:
    """Quantize and repair one layer at several widths, roughly.

    Parameters
    ----------
    layer : Layer
    weight : float array, shape ``layer.shape``
    statistics : InputStatistics
        Of its input.
    widths : sequence of int
    recipe : Recipe
        Method, rounding and switches.

    Returns
    -------
    dict of Candidate by width
    """
    plans = [layer_plan(layer, "inner", width, "", recipe) for width in widths]
    if all(plan.rounding == "gptq" and plan.grid == "asymmetric" for plan in plans):
        rounded = _sketched(layer, plans, weight, statistics)
    else:
        rounded = [round_layer(layer, plan, weight, statistics) for plan in plans]
    return {one.plan.bits: repaired(one, recipe) for one in rounded}


def _sketched(
    layer: Layer, plans: Sequence[LayerPlan], weight: NDArray[np.floating], statistics: InputStatistics
) -> list[Rounded]:
    """Error feedback at one ratio, with one factor of the covariance for all widths."""
    rows = to_rows(weight.astype(np.float64), layer)
    covariance = regularize(statistics.covariance, taps(layer), statistics.samples)
    upright, factor = rows.transpose(0, 2, 1), CholeskyFactor.of(for_rounding(layer, statistics))
    found = []
    for plan in plans:
        low, high = limits(plan.bits, plan.grid)
        widest, zero_point = min_max(rows, plan.bits, plan.grid, per_channel=not shares_grid(layer))
        scale = RATIO.get(plan.bits, 1.0) * widest
        levels, _ = feedback(upright, factor, scale, zero_point, low, high)
        codes = Codes(levels.transpose(0, 2, 1), scale, zero_point, low, high)
        response = respond(rows, dequantize(codes), statistics.mean, covariance)
        found.append(Rounded(layer, plan, rows, codes, response, statistics))
    return found


def repaired(rounded: Rounded, recipe: Recipe) -> Candidate:
    """A layer whose codes are chosen, with its gain and its shift."""
    correction = correct(rounded, recipe, None)
    quantized = dequantize(rounded.codes) * correction.gain.reshape(*rounded.rows.shape[:2], 1)
    weight = from_rows(quantized.astype(np.float32), rounded.layer)
    return Candidate(
        weight, correction.shift, noise_share(rounded.response.scaled(correction.gain), rounded.layer) or 0.0
    )

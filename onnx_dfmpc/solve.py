"""One layer: its weight, what is known about its input, and its plan -> the numbers to store. No graph, no files: arrays only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.compensate import Response, affine, coefficients, mean_shift, reestimate, respond, signal_gain
from onnx_dfmpc.layout import from_rows, shares_grid, taps, to_rows
from onnx_dfmpc.quantize import Codes, dequantize, quantize_rows, regularize
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.spec import Array, BatchNorm, InputStatistics, Layer, LayerPlan, QuantizedLayer, QuantizedWeight

Bias = NDArray[np.floating] | None

NOISE_FLOOR = 1e-15
"""Noise below this share of the signal is the arithmetic's, not the grid's: 150 dB."""


@dataclass(frozen=True, eq=False)
class Solved:
    """A layer's numbers, and the factors that the input channels of its consumers have to take over (consumer-side absorption)."""

    layer: QuantizedLayer
    for_consumers: Array | None = None


def solve(
    layer: Layer,
    plan: LayerPlan,
    recipe: Recipe,
    weight: NDArray[np.floating],
    bias: Bias,
    statistics: InputStatistics,
    *,
    to_consumers: bool = False,
) -> Solved:
    """Quantize and repair one layer.

    Parameters
    ----------
    layer : Layer
    plan : LayerPlan
    recipe : Recipe
        The method, its lambdas and its switches.
    weight : float array, shape ``layer.shape``
    bias : float array, shape (channels,), or None
    statistics : InputStatistics
    to_consumers : bool
        Leave the paper's coefficients to the input channels of the consumers instead of absorbing them here.

    Returns
    -------
    Solved
    """
    rows = to_rows(weight.astype(np.float32), layer)
    quantized = quantize_rows(
        rows,
        plan.bits,
        grid=plan.grid,
        rounding=plan.rounding,
        per_channel=plan.per_channel and not shares_grid(layer),
        taps=taps(layer),
        covariance=regularize(statistics.covariance, taps(layer), statistics.samples) if plan.rounding == "covariance" else None,
    )
    if recipe.method == "paper":
        return _paper(layer, plan, recipe, rows, quantized, bias, statistics, to_consumers=to_consumers)
    return Solved(_keep_signal(layer, plan, recipe, rows, quantized, bias, statistics))


def _keep_signal(
    layer: Layer, plan: LayerPlan, recipe: Recipe, rows: Array, quantized: Codes, bias: Bias, statistics: InputStatistics
) -> QuantizedLayer:
    """The default: a gain per channel in the scale, and the shift of the mean taken back."""
    response = respond(rows, dequantize(quantized), statistics.mean, statistics.covariance)
    gain = signal_gain(response) if recipe.compensate and not shares_grid(layer) else np.ones(layer.channels)
    stored = _with_gain(quantized, gain)
    shift = mean_shift(rows, dequantize(stored), statistics.mean) if recipe.bias_correction else None
    norm, new_bias = None, None
    if shift is not None and layer.batch_norm is not None:
        norm = replace(layer.batch_norm, mean=layer.batch_norm.mean + shift)
    elif shift is not None:
        new_bias = (_floats(bias, layer) - shift).astype(np.float32)
    sqnr = _sqnr_db(response.scaled(gain), layer)
    return QuantizedLayer(layer.name, _weight(layer, plan, stored), new_bias, norm, gain, sqnr, statistics.provider)


def _paper(
    layer: Layer,
    plan: LayerPlan,
    recipe: Recipe,
    rows: Array,
    quantized: Codes,
    bias: Bias,
    statistics: InputStatistics,
    *,
    to_consumers: bool,
) -> Solved:
    """The method as published: batch norm re-estimated, then c for the low layers, here or at the consumers."""
    wq = dequantize(quantized)
    response = respond(rows, wq, statistics.mean, statistics.covariance)
    norm = layer.batch_norm or _identity_norm(rows, _floats(bias, layer), statistics, response)
    estimated = reestimate(norm, response)
    norm_q = replace(
        norm,
        mean=estimated.mean if recipe.bias_correction else norm.mean,
        var=estimated.var if recipe.compensate else norm.var,
    )
    c: Array = np.ones(layer.channels)
    if recipe.compensate and plan.role == "low":
        c = coefficients(rows, wq, norm, norm_q, recipe.lambda1, recipe.lambda2)
    gain = c * norm.sigma / norm_q.sigma
    here = np.ones_like(c) if to_consumers else c
    sqnr = _sqnr_db(response.scaled(gain), layer)
    stored, new_norm, new_bias = quantized, None, None
    if not (recipe.compensate or recipe.bias_correction):
        pass
    elif layer.batch_norm is not None:
        new_norm = replace(norm_q, gamma=here * norm.gamma, beta=here * norm.beta)
    else:
        a, b = affine(norm_q)
        stored, new_bias = _with_gain(quantized, here * a), (here * b).astype(np.float32)
    numbers = QuantizedLayer(layer.name, _weight(layer, plan, stored), new_bias, new_norm, gain, sqnr, statistics.provider)
    return Solved(numbers, c if to_consumers else None)


def _identity_norm(rows: Array, bias: Array, statistics: InputStatistics, response: Response) -> BatchNorm:
    """The batch norm that a folded layer, W x + bias, would have: it takes off the mean and the deviation and puts them back."""
    mean = mean_shift(np.zeros_like(rows), rows, statistics.mean)
    sigma = np.sqrt(np.where(response.own > 0, response.own, 1))
    return BatchNorm("", "", gamma=sigma, beta=bias + mean, mean=mean, var=sigma**2, epsilon=0.0)


def _floats(bias: Bias, layer: Layer) -> Array:
    return np.zeros(layer.channels) if bias is None else bias.astype(np.float64)


def _with_gain(codes: Codes, gain: Array) -> Codes:
    """The same codes with scales multiplied by a gain per output channel."""
    return replace(codes, scale=(codes.scale * gain.reshape(codes.scale.shape)).astype(np.float32))


def _weight(layer: Layer, plan: LayerPlan, codes: Codes) -> QuantizedWeight:
    """Codes in the layout of the file, per tensor where all channels share one grid."""
    signed = codes.low < 0
    single = shares_grid(layer) or (not plan.per_channel and bool((codes.scale == codes.scale[0, 0]).all()))
    shape = () if single else (-1,)
    take = (0, 0) if single else ...
    scale, zero_point = (array[take].reshape(shape) for array in (codes.scale.astype(np.float32), codes.zero_point))
    stored = from_rows(codes.codes, layer).astype(np.int8 if signed else np.uint8)
    return QuantizedWeight(
        codes=stored,
        scale=scale,
        zero_point=zero_point.astype(stored.dtype) if zero_point.any() else None,
        bits=plan.bits,
        signed=signed,
        axis=None if single else layer.axis,
    )


def _sqnr_db(response: Response, layer: Layer) -> float | None:
    """Predicted SQNR of the layer's output in dB; channels weigh as batch norm scales them. None without signal."""
    weight = np.ones_like(response.own) if layer.batch_norm is None else (layer.batch_norm.gamma / layer.batch_norm.sigma) ** 2
    signal, noise = float((weight * response.own).sum()), float((weight * response.noise).sum())
    if signal <= 0:
        return None
    return 10 * float(np.log10(signal / max(noise, signal * NOISE_FLOOR)))

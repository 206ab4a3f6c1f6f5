"""One layer: its weight, what is known about its input, and its plan -> the numbers to store. No graph, no
files: arrays only.

Two steps, so that between them the layer can be run: `round_layer` chooses the codes, then `correct` and
`finish` (or `finish_paper`) repair what the rounding did.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.compensate import (
    Response,
    affine,
    balanced_gain,
    coefficients,
    mean_shift,
    reestimate,
    respond,
    signal_gain,
)
from onnx_dfmpc.linalg.matrices import Covariance
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rounding.grids import Codes, dequantize
from onnx_dfmpc.rounding.regularize import regularize, with_mean_uncertainty
from onnx_dfmpc.rounding.rows import quantize_rows
from onnx_dfmpc.spec import (
    Array,
    BatchNorm,
    InputStatistics,
    Layer,
    LayerPlan,
    Outputs,
    QuantizedLayer,
    QuantizedWeight,
)
from onnx_dfmpc.spec.ops import from_rows, shares_grid, taps, to_rows

Bias = NDArray[np.floating] | None

NOISE_FLOOR = 1e-15
"""Noise below this share of the signal is the arithmetic's, not the grid's: 150 dB."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """A layer whose codes are chosen and whose repair is still to come.

    Attributes
    ----------
    rows : float array, shape (g, r, n)
        Float weight.
    codes : Codes
    response : Response
        Of the float and the quantized rows to the input of the float network.
    """

    layer: Layer
    plan: LayerPlan
    rows: Array
    codes: Codes
    response: Response
    statistics: InputStatistics

    def weight(self) -> NDArray[np.float32]:
        """Quantized weight in the layout of the file, before any repair."""
        return from_rows(dequantize(self.codes).astype(np.float32), self.layer)


def relative_noise(layer: Layer, weight: NDArray[np.floating], bits: int) -> float:
    """Noise of a layer at some bits relative to its output, predicted for plain rounding and white inputs.

    Channels weigh as the batch norm behind them scales them, so that this compares layers whose weights have
    different scales.
    """
    rows = to_rows(weight.astype(np.float32), layer)
    rounded = quantize_rows(rows, bits, grid="asymmetric", rounding="nearest", per_channel=True)
    norm = layer.batch_norm
    power = np.ones(layer.channels) if norm is None else (norm.gamma / norm.sigma) ** 2
    error, signal = (
        np.square(array, dtype=np.float64).sum(axis=2).ravel() for array in (dequantize(rounded) - rows, rows)
    )
    total = float(power @ signal)
    return float(power @ error) / total if total > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Correction:
    """What is done to the output of a quantized layer: ``gain * W_q x + bias - shift``, arrays of shape
    (channels,).
    """

    gain: Array
    shift: Array


def round_layer(
    layer: Layer, plan: LayerPlan, weight: NDArray[np.floating], statistics: InputStatistics
) -> Rounded:
    """Choose the codes of one layer.

    Parameters
    ----------
    layer : Layer
    plan : LayerPlan
    weight : float array, shape ``layer.shape``
    statistics : InputStatistics
    """
    rows = to_rows(weight.astype(np.float32), layer)
    codes = quantize_rows(
        rows,
        plan.bits,
        grid=plan.grid,
        rounding=plan.rounding,
        per_channel=plan.per_channel and not shares_grid(layer),
        taps=taps(layer),
        covariance=for_rounding(layer, statistics) if plan.rounding == "gptq" else None,
    )
    response = respond(rows, dequantize(codes), statistics.mean, statistics.covariance)
    return Rounded(layer, plan, rows, codes, response, statistics)


def for_rounding(layer: Layer, statistics: InputStatistics) -> Covariance:
    """What rounding makes small: the covariance as far as it can be trusted, and what is not known of the
    mean.
    """
    trusted = regularize(statistics.covariance, taps(layer), statistics.samples)
    return with_mean_uncertainty(trusted, statistics.mean, taps(layer))


def correct(rounded: Rounded, recipe: Recipe, outputs: Outputs | None) -> Correction:
    """Gain and shift of the default method.

    Parameters
    ----------
    rounded : Rounded
    recipe : Recipe
        Its switches.
    outputs : Outputs or None
        Of the layer in both networks, where they were measured. They include what the layers before it did,
        which the statistics of its float input do not.
    """
    gain: Array = np.ones(rounded.layer.channels)
    if recipe.repairs_gain and not shares_grid(rounded.layer):
        gain = signal_gain(rounded.response)
        if outputs is not None:
            gain = balanced_gain(gain, outputs.variance, outputs.quantized_variance)
    if not recipe.repairs_mean:
        return Correction(gain, np.zeros_like(gain))
    if outputs is not None:
        return Correction(gain, gain * outputs.quantized_mean - outputs.mean)
    stored = dequantize(_with_gain(rounded.codes, gain))
    return Correction(gain, mean_shift(rounded.rows, stored, rounded.statistics.mean))


def finish(rounded: Rounded, correction: Correction, recipe: Recipe, bias: Bias) -> QuantizedLayer:
    """Numbers to store: the gain in the scale, the shift in the batch norm's mean or in the bias."""
    layer = rounded.layer
    norm, new_bias = None, None
    if recipe.repairs_mean and layer.batch_norm is not None:
        norm = replace(layer.batch_norm, mean=layer.batch_norm.mean + correction.shift)
    elif recipe.repairs_mean:
        new_bias = (_floats(bias, layer) - correction.shift).astype(np.float32)
    weight = _weight(layer, rounded.plan, _with_gain(rounded.codes, correction.gain))
    sqnr = _sqnr_db(rounded.response.scaled(correction.gain), layer)
    return QuantizedLayer(
        layer.name, weight, new_bias, norm, correction.gain, sqnr, rounded.statistics.provider
    )


def finish_paper(
    rounded: Rounded, recipe: Recipe, bias: Bias, *, to_consumers: bool = False
) -> tuple[QuantizedLayer, Array | None]:
    """The method as published: batch norm re-estimated, then c for the low layers, here or at the consumers.

    Parameters
    ----------
    rounded : Rounded
    recipe : Recipe
        The lambdas and the switches.
    bias : float array, shape (channels,), or None
    to_consumers : bool
        Leave the coefficients to the input channels of the consumers instead of absorbing them here.

    Returns
    -------
    QuantizedLayer
    array of shape (channels,), or None
        The factors that the consumers' input channels have to take over.
    """
    layer, plan, rows, quantized, response = (
        rounded.layer,
        rounded.plan,
        rounded.rows,
        rounded.codes,
        rounded.response,
    )
    if layer.batch_norm is None and shares_grid(layer):
        recipe = replace(
            recipe, repair="mean" if recipe.repairs_mean else "none"
        )  # one scale for all groups has no room for a factor per channel
    wq = dequantize(quantized)
    norm = layer.batch_norm or _identity_norm(rows, _floats(bias, layer), rounded.statistics, response)
    estimated = reestimate(norm, response)
    norm_q = replace(
        norm,
        mean=estimated.mean if recipe.repairs_mean else norm.mean,
        var=estimated.var if recipe.repairs_gain else norm.var,
    )
    c: Array = np.ones(layer.channels)
    if recipe.repairs_gain and plan.role == "low":
        c = coefficients(rows, wq, norm, norm_q, recipe.lambda1, recipe.lambda2)
    gain = c * norm.sigma / norm_q.sigma
    here = np.ones_like(c) if to_consumers else c
    sqnr = _sqnr_db(response.scaled(gain), layer)
    stored, new_norm, new_bias = quantized, None, None
    if recipe.repair == "none":
        pass
    elif layer.batch_norm is not None:
        new_norm = replace(norm_q, gamma=here * norm.gamma, beta=here * norm.beta)
    else:
        a, b = affine(norm_q)
        stored, new_bias = _with_gain(quantized, here * a), (here * b).astype(np.float32)
    numbers = QuantizedLayer(
        layer.name, _weight(layer, plan, stored), new_bias, new_norm, gain, sqnr, rounded.statistics.provider
    )
    return numbers, c if to_consumers else None


def _identity_norm(rows: Array, bias: Array, statistics: InputStatistics, response: Response) -> BatchNorm:
    """The batch norm that a folded layer, W x + bias, would have: it takes off the mean and the deviation and
    puts them back.
    """
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
    scale, zero_point = (
        array[take].reshape(shape) for array in (codes.scale.astype(np.float32), codes.zero_point)
    )
    stored = from_rows(codes.codes, layer).astype(np.int8 if signed else np.uint8)
    return QuantizedWeight(
        codes=stored,
        scale=scale,
        zero_point=zero_point.astype(stored.dtype) if zero_point.any() else None,
        bits=plan.bits,
        signed=signed,
        axis=None if single else layer.axis,
    )


def noise_share(response: Response, layer: Layer) -> float | None:
    """Predicted noise of the layer's output relative to its signal; channels weigh as batch norm scales them.
    None without signal.
    """
    weight = (
        np.ones_like(response.own)
        if layer.batch_norm is None
        else (layer.batch_norm.gamma / layer.batch_norm.sigma) ** 2
    )
    signal, noise = float((weight * response.own).sum()), float((weight * response.noise).sum())
    return max(noise / signal, NOISE_FLOOR) if signal > 0 else None


def _sqnr_db(response: Response, layer: Layer) -> float | None:
    """Predicted SQNR of the layer's output in dB."""
    share = noise_share(response, layer)
    return None if share is None else -10 * float(np.log10(share))

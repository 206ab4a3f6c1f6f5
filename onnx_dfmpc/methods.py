"""Methods: the grid of a layer, the rounding of its weight, the repair of its output (NumPy; no graph).

Two steps, so that the layer can be run between them: `round_layer` chooses the codes, then ``Method.repair``
makes up for what the rounding did and gives the numbers to store. A new method is one more of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
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
from onnx_dfmpc.linalg.matrices import Covariance, Diagonal
from onnx_dfmpc.linalg.products import slabs
from onnx_dfmpc.rounding.grids import Codes, GridSpec, dequantize, some_rows
from onnx_dfmpc.rounding.regularize import regularize, with_mean_uncertainty
from onnx_dfmpc.rounding.rounding import ROUNDINGS, quantize_alike, quantize_rows
from onnx_dfmpc.spec import (
    Array,
    BatchNorm,
    Grid,
    InputStatistics,
    Layer,
    LayerPlan,
    Outputs,
    QuantizedLayer,
    QuantizedWeight,
)
from onnx_dfmpc.spec.ops import from_rows, shares_grid, taps, to_rows
from onnx_dfmpc.spec.planned import stored_bits

Bias = NDArray[np.floating] | None

TOGETHER = 1 << 18
"""Weights of layers of one shape that are rounded at once. Speed and memory alone."""

NOISE_FLOOR = 1e-15
"""Noise below this share of the signal is that of the arithmetic, not of the grid: 150 dB."""


@dataclass(frozen=True)
class Repair:
    """What to repair: the gain of a layer's output, its mean; the weights of the paper's objective."""

    gain: bool = True
    mean: bool = True
    lambda1: float = 0.5
    lambda2: float = 0.0


@dataclass(frozen=True, eq=False)
class Rounded:
    """A layer whose codes are chosen and whose repair is still to come.

    ``rows`` (g, r, n) are its float weight, ``response`` that of float and quantized rows to the float input.
    """

    layer: Layer
    plan: LayerPlan
    rows: Array
    codes: Codes
    response: Response
    statistics: InputStatistics

    def weight(self) -> NDArray[np.float32]:
        """Quantized weight in the layout of the file, before any repair."""
        rows = np.empty(self.codes.codes.shape, np.float32)
        for part in slabs(rows):
            rows[:, part] = dequantize(some_rows(self.codes, part))
        return from_rows(rows, self.layer)


@dataclass(frozen=True, eq=False)
class Correction:
    """Output of a repaired layer: ``gain * Wq x + bias - shift``, arrays of shape (channels,)."""

    gain: Array
    shift: Array


@dataclass(frozen=True, eq=False)
class Repaired:
    """The numbers to store, and what others have to know of them.

    ``correction`` is for a network that is run as quantized so far, None where the method runs none.
    ``input_factors`` (channels,) are for the input channels of the layer's consumers to take over, if any.
    """

    quantized: QuantizedLayer
    correction: Correction | None = None
    input_factors: Array | None = None


@dataclass(frozen=True)
class Method:
    """A way to quantize layers.

    ``repair(rounded, switches, outputs, bias, to_consumers)``: ``outputs`` are None where they were not
    measured; ``to_consumers`` leaves factors to the consumers of the layer.
    ``corrects(gain, mean)``: by the switches of a `Repair`, the parameters of batch norm that change; where
    there are any, a layer without batch norm gets a new bias.
    """

    grid: Callable[[float], Grid]  # by bits
    per_channel: bool  # one grid per output channel, or one for the tensor
    rounding: str  # of `ROUNDINGS`, where the recipe names none
    repair: Callable[[Rounded, Repair, Outputs | None, Bias, bool], Repaired]
    corrects: Callable[[bool, bool], tuple[str, ...]]
    uses_outputs: bool = False  # the repair uses outputs of the network quantized so far, which has to be run
    absorbs: bool = False  # consumers can take factors over
    pairs: bool = False  # a recipe without bits means pairs of a low and a high layer
    half: bool = True  # new scales and biases are rounded to float16 numbers
    low_first: bool = False  # the first layer of a pair is always the low one


def grid_spec(layer: Layer, plan: LayerPlan) -> GridSpec:
    """Grid of a layer, as far as it is planned."""
    return GridSpec(plan.grid, plan.bits, plan.per_channel and not shares_grid(layer))


def round_layer(
    layer: Layer,
    plan: LayerPlan,
    weight: NDArray[np.floating],
    statistics: InputStatistics,
    *,
    folds: bool = False,
) -> Rounded:
    """Choose the codes of a layer's weight, shape ``layer.shape``; ``folds`` says whether its batch norm is
    going to be folded into scales.
    """
    rows = to_rows(weight.astype(np.float32, copy=False), layer)
    needs_statistics = ROUNDINGS[plan.rounding].needs_statistics
    covariance = rounding_covariance(layer, statistics) if needs_statistics else None
    signs = _signs(layer, plan, folds)
    turned = rows if (signs > 0).all() else rows * signs  # else no copy of a large layer
    codes = quantize_rows(
        turned, grid_spec(layer, plan), plan.rounding, taps=taps(layer), covariance=covariance
    )
    return _responding(layer, plan, rows, _reflected(codes, signs), statistics)


def round_alike(first: Rounded, layer: Layer, statistics: InputStatistics) -> Rounded:
    """A layer with the weight and the codes of another, and inputs of its own."""
    plan = replace(first.plan, name=layer.name)
    return _responding(layer, plan, first.rows, first.codes, statistics)


def round_layers(
    layers: Sequence[Layer],
    plans: Sequence[LayerPlan],
    weights: Sequence[NDArray[np.floating]],
    statistics: Sequence[InputStatistics],
    *,
    folds: bool = False,
) -> list[Rounded]:
    """`round_layer` of several layers; those of one shape and grid at once, which is faster."""
    found: dict[int, Rounded] = {}
    keys = [(grid_spec(layer, plan), plan.rounding) for layer, plan in zip(layers, plans, strict=True)]
    for some in alike(layers, statistics, keys):
        layer, plan = layers[some[0]], plans[some[0]]
        grid = grid_spec(layer, plan)
        rows = [to_rows(weights[i].astype(np.float32, copy=False), layers[i]) for i in some]
        together = ROUNDINGS[plan.rounding].needs_statistics and grid.per_channel and grid.kind != "ternary"
        if len(some) == 1 or not together:
            found |= {
                i: round_layer(layers[i], plans[i], weights[i], statistics[i], folds=folds) for i in some
            }
            continue
        signs = [_signs(layers[i], plans[i], folds) for i in some]
        covariances = [rounding_covariance(layers[i], statistics[i]) for i in some]
        dense = [one for one in covariances if isinstance(one, np.ndarray)]
        turned = [one * sign for one, sign in zip(rows, signs, strict=True)]
        codes = quantize_alike(turned, grid, plan.rounding, taps=taps(layer), covariances=dense)
        found |= {
            i: _responding(layers[i], plans[i], one, _reflected(own, sign), statistics[i])
            for i, one, own, sign in zip(some, rows, codes, signs, strict=True)
        }
    return [found[index] for index in range(len(layers))]


def _signs(layer: Layer, plan: LayerPlan, folds: bool) -> Array:
    """Signs, shape (g, r, 1), with which rows become vectors of a table.

    A batch norm that is folded may turn a channel around. Scalar codes are reflected then, but a row of a
    table belongs to other channels, too. So the channel is rounded as it will be, and its scale is negative
    until the batch norm is folded.
    """
    signs = np.ones(layer.channels, np.float32)
    if folds and plan.grid == "vector" and layer.batch_norm is not None:
        signs = np.where(layer.batch_norm.gamma < 0, np.float32(-1), signs)
    return signs.reshape(layer.group, -1, 1)


def _reflected(codes: Codes, signs: Array) -> Codes:
    return replace(codes, scale=codes.scale * signs[..., 0])


def alike(
    layers: Sequence[Layer], statistics: Sequence[InputStatistics], keys: Sequence[Hashable]
) -> Iterator[list[int]]:
    """Positions of layers of the same shape, settings and form of covariance, as many together as should be
    rounded at once. A covariance that is not held element by element stays alone.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, (layer, seen, key) in enumerate(zip(layers, statistics, keys, strict=True)):
        same: Hashable = index
        if isinstance(seen.covariance, np.ndarray):
            same = (layer.op_type, layer.shape, layer.group, seen.covariance.shape, key)
        groups.setdefault(same, []).append(index)
    for indices in groups.values():
        each = max(1, TOGETHER // layers[indices[0]].size)
        yield from (indices[start : start + each] for start in range(0, len(indices), each))


def _responding(
    layer: Layer, plan: LayerPlan, rows: Array, codes: Codes, statistics: InputStatistics
) -> Rounded:
    response = respond_codes(rows, codes, statistics.mean, statistics.covariance)
    return Rounded(layer, plan, rows, codes, response, statistics)


def respond_codes(rows: Array, codes: Codes, mean: Array, covariance: Covariance) -> Response:
    """`respond` of rows and of what their codes stand for, a few rows of a large layer at a time."""
    parts = []
    for part in slabs(rows):
        response = respond(rows[:, part], dequantize(some_rows(codes, part)), mean, covariance)
        parts.append([values.reshape(len(rows), -1) for values in vars(response).values()])
    return Response(*(np.concatenate(values, axis=1).ravel() for values in zip(*parts, strict=True)))


def rounding_covariance(layer: Layer, statistics: InputStatistics) -> Covariance:
    """What rounding fits to: the covariance as far as it can be trusted, and the uncertainty of the mean."""
    trusted = regularize(statistics.covariance, taps(layer), statistics.samples, statistics.chance)
    return with_mean_uncertainty(trusted, statistics.mean, taps(layer))


def correct(rounded: Rounded, switches: Repair, outputs: Outputs | None) -> Correction:
    """Gain and shift of the default method, "dfmpc".

    ``outputs`` of the layer in both networks include what the layers before it did; the statistics of its
    float input do not.
    """
    gain: Array = np.ones(rounded.layer.channels)
    if switches.gain and not shares_grid(rounded.layer):
        gain = signal_gain(rounded.response)
        if outputs is not None:
            u = _relative_weights(outputs)
            gain = balanced_gain(gain, u @ outputs.variance, u @ outputs.quantized_variance)
    if not switches.mean:
        return Correction(gain, np.zeros_like(gain))
    if outputs is not None:
        u = _relative_weights(outputs)
        return Correction(gain, u @ (gain * outputs.quantized_mean - outputs.mean))
    return Correction(gain, _mean_shift(rounded, _with_gain(rounded.codes, gain)))


def _mean_shift(rounded: Rounded, codes: Codes) -> Array:
    """`mean_shift` of what codes stand for, a few rows of a large layer at a time."""
    shifts = [
        mean_shift(rounded.rows[:, part], dequantize(some_rows(codes, part)), rounded.statistics.mean)
        for part in slabs(rounded.rows)
    ]
    groups = len(rounded.rows)
    return np.concatenate([shift.reshape(groups, -1) for shift in shifts], axis=1).ravel()


def _relative_weights(outputs: Outputs) -> Array:
    """Weights u_k of the kinds of inputs, which add up to 1: how likely each is, over its power, since an
    error counts relative to the signal.
    """
    power = outputs.variance.sum(axis=1)
    likely = np.where(power > 0, outputs.weights / np.where(power > 0, power, 1), 0)
    total = likely.sum()
    u: Array = likely / total if total > 0 else outputs.weights
    return u


def _repair_default(
    rounded: Rounded, switches: Repair, outputs: Outputs | None, bias: Bias, to_consumers: bool
) -> Repaired:
    """The gain in the scale, the shift in the batch norm's mean or in the bias."""
    layer, correction = rounded.layer, correct(rounded, switches, outputs)
    norm, new_bias = None, None
    if switches.mean and layer.batch_norm is not None:
        norm = replace(layer.batch_norm, mean=layer.batch_norm.mean + correction.shift)
    elif switches.mean:
        new_bias = (_bias_or_zeros(bias, layer) - correction.shift).astype(np.float32)
    # The gain costs nothing: there is a scale per channel anyway.
    codes = _with_gain(rounded.codes, correction.gain)
    return Repaired(_quantized_layer(rounded, codes, correction.gain, new_bias, norm), correction)


def _repair_paper(
    rounded: Rounded, switches: Repair, outputs: Outputs | None, bias: Bias, to_consumers: bool
) -> Repaired:
    """As published: batch norm re-estimated, then c for the low layers, here or at the consumers."""
    layer, response = rounded.layer, rounded.response
    # One scale for all groups has no room for a factor per channel; a batch norm after it has.
    repair_gain = switches.gain and not (layer.batch_norm is None and shares_grid(layer))
    norm = layer.batch_norm or _identity_norm(rounded, _bias_or_zeros(bias, layer))
    estimated = reestimate(norm, response)
    norm_q = replace(
        norm,
        mean=estimated.mean if switches.mean else norm.mean,
        var=estimated.var if repair_gain else norm.var,
    )
    c: Array = np.ones(layer.channels)
    if repair_gain and rounded.plan.role == "low":
        quantized = dequantize(rounded.codes)
        c = coefficients(rounded.rows, quantized, norm, norm_q, switches.lambda1, switches.lambda2)
    gain = c * norm.sigma / norm_q.sigma
    here = np.ones_like(c) if to_consumers else c
    codes, new_norm, new_bias = rounded.codes, None, None
    if (repair_gain or switches.mean) and layer.batch_norm is not None:
        new_norm = replace(norm_q, gamma=here * norm.gamma, beta=here * norm.beta)
    elif repair_gain or switches.mean:
        # There is no batch norm to change: its factor goes into the scale, the rest into the bias.
        a, b = affine(norm_q)
        codes, new_bias = _with_gain(codes, here * a), (here * b).astype(np.float32)
    quantized_layer = _quantized_layer(rounded, codes, gain, new_bias, new_norm)
    return Repaired(quantized_layer, input_factors=c if to_consumers else None)


def _identity_norm(rounded: Rounded, bias: Array) -> BatchNorm:
    """A batch norm for a folded layer, W x + bias: it takes off mean and deviation and puts them back."""
    rows, own = rounded.rows, rounded.response.own
    mean = mean_shift(np.zeros_like(rows), rows, rounded.statistics.mean)
    sigma = np.sqrt(np.where(own > 0, own, 1))
    return BatchNorm("", "", gamma=sigma, beta=bias + mean, mean=mean, var=sigma**2, epsilon=0.0)


METHODS: dict[str, Method] = {
    "dfmpc": Method(
        grid=lambda bits: "asymmetric",
        per_channel=True,
        rounding="gptq",
        repair=_repair_default,
        corrects=lambda gain, mean: ("mean",) if mean else (),
        uses_outputs=True,
    ),
    "paper": Method(
        grid=lambda bits: "ternary" if bits <= 2 else "symmetric",
        per_channel=False,
        rounding="nearest",
        repair=_repair_paper,
        corrects=lambda gain, mean: ("gamma", "beta", "mean", "var") if gain else ("mean",) if mean else (),
        absorbs=True,
        pairs=True,
        half=False,
        low_first=True,
    ),
}


def _quantized_layer(
    rounded: Rounded, codes: Codes, gain: Array, bias: NDArray[np.float32] | None, norm: BatchNorm | None
) -> QuantizedLayer:
    layer = rounded.layer
    share = noise_share(rounded.response.scaled(gain), layer)
    sqnr_db = None if share is None else -10 * float(np.log10(share))
    weight = _stored_weight(layer, rounded.plan, codes)
    return QuantizedLayer(layer.name, weight, bias, norm, gain, sqnr_db, rounded.statistics.source)


def _stored_weight(layer: Layer, plan: LayerPlan, codes: Codes) -> QuantizedWeight:
    """Codes in the layout of the file, per tensor where all channels share one grid."""
    signed = codes.limits[0] < 0
    # A gain per channel turns one grid for the tensor into one per channel.
    single = shares_grid(layer) or (not plan.per_channel and bool((codes.scale == codes.scale[0, 0]).all()))
    shape = () if single else (-1,)
    take = (0, 0) if single else ...
    scale = codes.scale.astype(np.float32)[take].reshape(shape)
    zero_point = codes.zero_point[take].reshape(shape)
    stored = from_rows(codes.codes, layer).astype(np.int8 if signed else np.uint8, copy=False)
    return QuantizedWeight(
        codes=stored,
        scale=scale,
        zero_point=zero_point.astype(stored.dtype) if zero_point.any() else None,
        bits=stored_bits(plan.bits, plan.grid),
        signed=signed,
        axis=None if single else layer.axis,
        vector=plan.grid == "vector",
    )


def _bias_or_zeros(bias: Bias, layer: Layer) -> Array:
    return np.zeros(layer.channels) if bias is None else bias.astype(np.float64)


def _with_gain(codes: Codes, gain: Array) -> Codes:
    """The same codes with scales multiplied by a gain per output channel."""
    return replace(codes, scale=(codes.scale * gain.reshape(codes.scale.shape)).astype(np.float32))


def noise_share(response: Response, layer: Layer) -> float | None:
    """Noise of the output over its signal, channels as batch norm scales them; None without a signal."""
    norm = layer.batch_norm
    weight = np.ones_like(response.own) if norm is None else (norm.gamma / norm.sigma) ** 2
    signal, noise = float((weight * response.own).sum()), float((weight * response.noise).sum())
    return max(noise / signal, NOISE_FLOOR) if signal > 0 else None


def relative_noise(layer: Layer, weight: NDArray[np.floating], bits: float) -> float:
    """`noise_share` of plain rounding for white inputs: compares layers when nothing is known of these."""
    rows = to_rows(weight.astype(np.float32, copy=False), layer)
    codes = quantize_rows(rows, GridSpec("asymmetric", bits), "nearest")
    white = np.ones((rows.shape[0], rows.shape[2]))
    return noise_share(respond_codes(rows, codes, np.zeros_like(white), Diagonal(white)), layer) or 0.0

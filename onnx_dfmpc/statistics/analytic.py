"""Analytic statistics: what every layer sees, in closed form from the initializers. Nothing is run.

The network's input is taken for a stationary random field with the correlations of photographs or signals;
its scale, mean and reach are those that the batch norm behind the first convolution expects, where there is
one (`prior`). Every operator acts on mean and covariance: linear ones exactly, activations by their Hermite
series as if their input were normal (`rectified`), residual sums with the covariance of their branches
(`kinship`). Every batch norm sets mean and variance of its channels right, and corrects the estimate of what
its layer sees (`anchoring`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import DYNAMIC_LENGTH, DYNAMIC_PIXELS
from onnx_dfmpc.spec import Array, BatchNorm, InputSpec, InputStatistics, Layer
from onnx_dfmpc.spec.ops import taps, to_rows
from onnx_dfmpc.statistics.anchoring import assimilate
from onnx_dfmpc.statistics.field import Field, patches, patches_transposed
from onnx_dfmpc.statistics.prior import Reading, prior
from onnx_dfmpc.statistics.propagate import Propagation, Signal, Unknown
from onnx_dfmpc.statistics.rules import RULES, conv_window, features
from onnx_dfmpc.statistics.views import NotCovered

PROVIDER = "analytic"
SOUND = 1e-3
"""Share of the diagonal that the smallest eigenvalue of a correlation matrix may lack to zero."""


def analytic(
    proto: ModelProto, layers: Sequence[Layer], *, input_mean: float = 0.0, input_std: float = 1.0
) -> Iterator[tuple[Layer, InputStatistics]]:
    """Statistics of every layer that known operators lead to; the others are left out, see `analytic_layers`.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    layers : sequence of Layer
        In topological order.
    input_mean, input_std : float
        Of inputs that no batch norm knows.

    Yields
    ------
    layer : Layer
    statistics : InputStatistics
    """
    for layer, found in analytic_layers(proto, layers, input_mean=input_mean, input_std=input_std):
        if isinstance(found, InputStatistics):
            yield layer, found


def analytic_layers(
    proto: ModelProto, layers: Sequence[Layer], *, input_mean: float = 0.0, input_std: float = 1.0
) -> Iterator[tuple[Layer, InputStatistics | Unknown]]:
    """Statistics of every layer, or the reason why there are none; parameters as for `analytic`.

    Raises
    ------
    UnsupportedError
        If an input is not a tensor of numbers.
    """
    walk = Propagation(proto, RULES)
    for spec in model_inputs(proto):
        walk.start(spec.name, _input(walk, layers, spec, (input_mean, input_std)))
    wanted = {layer.output: layer for layer in layers}
    for node in proto.graph.node:
        layer = wanted.get(node.output[0]) if node.output else None
        if layer is not None:
            yield layer, _statistics(walk, layer, node)
        walk.run(node)


def _input(
    walk: Propagation, layers: Sequence[Layer], spec: InputSpec, guess: tuple[float, float]
) -> Field | Unknown:
    if len(spec.shape) < 2:
        return Unknown(f"input {spec.name!r} has no axis of channels")
    length = DYNAMIC_PIXELS if len(spec.shape) == 4 else DYNAMIC_LENGTH
    channels, *size = (n if isinstance(n, int) else length for n in spec.shape[1:])
    nodes = {node.output[0]: node for node in walk.proto.graph.node if node.output}
    readings = []
    for layer in layers:
        if layer.input == spec.name and layer.op_type == "Conv" and layer.batch_norm is not None:
            weight = walk.table[layer.weight].astype(np.float64)
            at = conv_window(nodes[layer.output], weight, tuple(size))
            mean, variance = _expected(walk, layer, layer.batch_norm)
            readings.append(Reading(weight, at, layer.group, mean, variance))
    return prior(channels, tuple(size), readings, guess, walk.birth())


def _expected(walk: Propagation, layer: Layer, norm: BatchNorm) -> tuple[Array, Array]:
    """Mean, without bias, and variance of a layer's output, as its batch norm knows them."""
    bias = walk.table[layer.bias].astype(np.float64) if layer.bias is not None else 0.0
    return norm.mean - bias, norm.var


def _statistics(walk: Propagation, layer: Layer, node: NodeProto) -> InputStatistics | Unknown:
    try:
        mean, covariance = _seen(walk, layer, node)
    except NotCovered as error:
        return Unknown(str(error))
    if layer.batch_norm is not None and layer.op_type != "ConvTranspose":
        shape = (layer.group, layer.channels // layer.group)
        known_mean, known_variance = (
            array.reshape(shape) for array in _expected(walk, layer, layer.batch_norm)
        )
        before = mean, _variance(covariance)
        mean, covariance = assimilate(
            to_rows(walk.table[layer.weight], layer), mean, covariance, known_mean, known_variance
        )
        _feed_back(walk, layer, before, (mean, _variance(covariance)))
    return InputStatistics(mean, _sound(covariance), 0, PROVIDER)


def _seen(walk: Propagation, layer: Layer, node: NodeProto) -> tuple[Array, NDArray[Any]]:
    """Mean (g, n) and covariance (g, n, n) of a layer's input."""
    if layer.op_type in ("Gemm", "MatMul"):
        source, _ = features(walk, layer.input)
        return source.mean[None], source.covariance[None]
    source = walk.field(layer.input)
    at = conv_window(node, walk.table[layer.weight], source.size)
    return (patches_transposed if layer.op_type == "ConvTranspose" else patches)(source, at, layer.group)


def _variance(covariance: NDArray[Any]) -> Array:
    """Variance of every input, shape (g, n)."""
    variance: Array = np.einsum("gnn->gn", covariance).astype(np.float64)
    return variance


def _feed_back(
    walk: Propagation, layer: Layer, before: tuple[Array, Array], after: tuple[Array, Array]
) -> None:
    """Let the other readers of a layer's input know what its batch norm said about its means and variances."""
    value = walk.value(layer.input)
    if layer.op_type != "Conv" or not isinstance(value, Signal):
        return
    k = taps(layer)
    shift = (after[0] - before[0]).reshape(-1, k).mean(axis=1)
    old, new = (variance.reshape(-1, k).mean(axis=1) for _, variance in (before, after))
    gain = np.sqrt(np.where(old > 0, new / np.where(old > 0, old, 1), 1)).astype(np.float32)
    source = value.field
    walk.values[layer.input] = replace(
        value, field=replace(source, mean=source.mean + shift, lags=source.lags * np.outer(gain, gain))
    )


def _sound(covariance: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same variances, and correlations without negative eigenvalues, which extrapolation beyond a field's
    torus can leave.
    """
    n = covariance.shape[-1]
    deviation = np.sqrt(np.maximum(np.einsum("gnn->gn", covariance), np.finfo(np.float32).tiny))
    correlation = covariance / deviation[:, :, None]
    correlation /= deviation[:, None]
    correlation[:, np.arange(n), np.arange(n)] += SOUND
    try:
        np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(correlation)
        positive = (vectors * np.maximum(values, SOUND)[:, None]) @ vectors.swapaxes(1, 2)
        factor = deviation / np.sqrt(np.maximum(np.einsum("gnn->gn", positive), SOUND))
        return np.asarray(positive * factor[:, :, None] * factor[:, None], np.float32)
    return covariance

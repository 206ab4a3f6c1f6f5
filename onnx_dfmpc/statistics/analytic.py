"""Analytic statistics: closed form from the initializers, nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.inputs import DYNAMIC_LENGTH, DYNAMIC_PIXELS
from onnx_dfmpc.layout import taps, to_rows
from onnx_dfmpc.spec import Array, InputStatistics, Layer
from onnx_dfmpc.statistics import operators, views
from onnx_dfmpc.statistics.anchoring import assimilate
from onnx_dfmpc.statistics.feeds import model_inputs
from onnx_dfmpc.statistics.field import Field, Lags, patches, torus_of
from onnx_dfmpc.statistics.propagate import NotCovered, Propagation, Signal, Unknown, conv_window, features

PROVIDER = "analytic"
import os

FEEDBACK = os.environ.get("FB", "1") != "0"
ASSIM = os.environ.get("AS", "1") == "1"


def analytic(proto: ModelProto, layers: Sequence[Layer], *, input_std: float = 1.0) -> Iterator[tuple[Layer, InputStatistics]]:
    for layer, found in analytic_layers(proto, layers, input_std=input_std):
        if isinstance(found, InputStatistics):
            yield layer, found


def analytic_layers(
    proto: ModelProto, layers: Sequence[Layer], *, input_std: float = 1.0
) -> Iterator[tuple[Layer, InputStatistics | Unknown]]:
    walk = Propagation(proto, {spec.name: prior(spec.shape, input_std, -n) for n, spec in enumerate(model_inputs(proto))})
    wanted = {layer.output: layer for layer in layers}
    for node in proto.graph.node:
        layer = wanted.get(node.output[0]) if node.output else None
        if layer is not None:
            yield layer, _statistics(walk, layer, node)
        walk.run(node)


def prior(shape, deviation: float, birth: int) -> Field:
    length = DYNAMIC_PIXELS if len(shape) == 4 else DYNAMIC_LENGTH
    sizes = tuple(n if isinstance(n, int) else length for n in shape)
    c, size = sizes[1], sizes[2:]
    torus = torus_of(c, size)
    colour = 0.9 if c == 3 else 0.0
    channels = deviation**2 * (colour + (1 - colour) * np.eye(c))
    distance = np.zeros(torus)
    for axis, n in enumerate(torus):
        lag = np.fft.fftfreq(n, 1 / n) / (0.5 * max(size))
        distance = distance + (lag**2).reshape([-1 if a == axis else 1 for a in range(len(torus))])
    r = np.exp(-np.sqrt(distance))
    return Field(np.zeros(c), (r[..., None, None] * channels).astype(np.float32), size, (1.0,) * len(size), birth)


def _statistics(walk, layer, node):
    try:
        weight = walk.constant(node.input[1]).astype(np.float64)
        if layer.op_type in ("Gemm", "MatMul"):
            source = features(walk, layer.input)[0]
            mean, cov = source.mean[None], source.covariance[None]
        elif layer.op_type == "ConvTranspose":
            raise NotCovered("TODO")
        else:
            source = walk.field(layer.input)
            at = conv_window(node, weight, source.size)
            mean, cov = patches(source, at, layer.group)
    except NotCovered as e:
        return Unknown(str(e))
    if layer.batch_norm is not None and ASSIM:
        bn = layer.batch_norm
        rows = to_rows(weight, layer)
        g, r, n = rows.shape
        bias = walk.constant(layer.bias).astype(float) if layer.bias else np.zeros(layer.channels)
        mu, var = (bn.mean - bias).reshape(g, r), bn.var.reshape(g, r)
        new = [assimilate(rows[k], mean[k], cov[k], mu[k], var[k]) for k in range(g)]
        m2, c2 = np.stack([a for a, _ in new]), np.stack([b for _, b in new])
        if FEEDBACK and layer.op_type == "Conv":
            k = taps(layer)
            walk.values[layer.input] = Signal(feed_back(source, (m2 - mean).reshape(-1, k).mean(1), cov, c2, at, k))
        mean, cov = m2, c2
    return InputStatistics(mean, cov.astype(np.float32), 0, PROVIDER)


def feed_back(source: Field, shift, old, new, at, k) -> Field:
    from onnx_dfmpc.statistics.field import offsets_of, rescaled

    g, n, _ = old.shape
    i = n // k
    if g > 1 or os.environ.get("FB")=="2":
        v0 = np.diagonal(old, axis1=1, axis2=2).reshape(-1, k).mean(1).astype(float)
        v1 = np.diagonal(new, axis1=1, axis2=2).reshape(-1, k).mean(1).astype(float)
        return replace(
            source,
            mean=source.mean + shift,
            lags=rescaled(source.lags, source.variance * np.clip(v1, 1e-9, None) / np.clip(v0, 1e-9, None)),
        )
    delta = (new - old)[0].reshape(i, k, i, k)
    offs = offsets_of(at)
    acc = {}
    for a in range(k):
        for b in range(k):
            lag = tuple(offs[b] - offs[a])
            if all(abs(l) <= t // 2 for l, t in zip(lag, source.torus)):
                acc.setdefault(tuple(l % t for l, t in zip(lag, source.torus)), []).append(delta[:, a, :, b])
    lags = source.lags.copy()
    for key, ms in acc.items():
        lags[key] += np.mean(ms, axis=0)
    return replace(source, mean=source.mean + shift, lags=lags)

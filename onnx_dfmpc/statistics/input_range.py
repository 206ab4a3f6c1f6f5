"""What range of pixels does a network expect? Its first layer tells (NumPy).

Exporters do not write down how images were preprocessed, but there are only a few conventions, and they
differ by factors:

    -2 .. 2       mean and deviation of the data set taken out
    -1 .. 1       0  .. 1       0 .. 255       -128 .. 127

A batch norm after the first layer has measured that layer's output: the right range reproduces its mu and
sigma. Where it is folded, the bias is what the batch norm left, and training keeps it of the order of the
response's deviation. Where the bias is negligible at every range there never was a batch norm; such a network
was fed raw pixels less their mean, or behaves as if, being homogeneous in its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.compensate import respond
from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.inputs.specs import is_image
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import Array, InputSpec, InputStatistics, Layer
from onnx_dfmpc.spec.ops import to_rows
from onnx_dfmpc.statistics.moments import measure

RANGES = ((-2.0, 2.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-128.0, 127.0))
NEGLIGIBLE = 0.5
SAMPLES = 8


def infer_range(
    proto: ModelProto, layers: Sequence[Layer], specs: Sequence[InputSpec], *, seed: int = 0
) -> tuple[float, float] | None:
    """Range of the pixels that an image network expects.

    Parameters
    ----------
    proto : ModelProto
    layers : sequence of Layer
        All matched layers, in topological order.
    specs : sequence of InputSpec
        The model's inputs.
    seed : int

    Returns
    -------
    (float, float) or None
        None where the model has several inputs, or one that is not a float image, or no layer that sees it
        first, or cannot be run.
    """
    if len(specs) != 1 or specs[0].dtype.kind != "f" or not is_image(specs[0].shape[1:]):
        return None
    first = next((layer for layer in layers if layer.edge == "first"), None)
    if first is None:
        return None
    table = ConstantTable(proto)
    rows = to_rows(np.asarray(table[first.weight], np.float32), first)
    bias = table[first.bias].astype(np.float64) if first.bias else np.zeros(first.channels)
    node = next(node for node in proto.graph.node if first.output in node.output)
    misfits = []
    try:
        for candidate in RANGES:
            feeds = synthetic_feeds(specs, seed=seed, input_range=candidate, samples=SAMPLES)
            values = PartialRun(proto, table, feeds).value(first.input)
            seen = measure(first, node, values, seed=seed, source="probe")
            misfits.append(_misfit(first, rows, bias, seen))
    except ModelError:  # no runtime runs what comes before the layer, but the closed form does without
        return None
    if first.batch_norm is None and max(misfits, key=lambda m: m[1])[1] < NEGLIGIBLE:
        return RANGES[-1]
    return RANGES[int(np.argmin([misfit for misfit, _ in misfits]))]


def _misfit(layer: Layer, rows: Array, bias: Array, seen: InputStatistics) -> tuple[float, float]:
    """How badly a range explains the first layer, and the median ratio of bias to deviation."""
    response = respond(np.zeros_like(rows), rows, seen.mean, seen.covariance)
    mean, deviation = (
        response.shift + bias,
        np.sqrt(np.maximum(response.quantized, np.finfo(np.float32).tiny)),
    )
    ratio = float(np.median(np.abs(bias) / deviation))
    if layer.batch_norm is None:
        return abs(np.log(max(ratio, 1e-9))), ratio
    norm = layer.batch_norm
    spread = abs(float(np.log(np.median(norm.sigma / deviation))))
    return spread + float(np.median(np.abs(mean - norm.mean) / norm.sigma)), ratio

"""Operators that only move data: Reshape, Transpose, Slice, Split, Gather, Pad ... (NumPy and onnx.reference).

Such an operator is run on a tensor of labels, which element of the source each element is, and the result is read back: which channel of
the source each channel is, and at which distance its places lie. That covers channel shuffles, strided slices, padded channels, flattening
and changes of layout alike. The same evaluation folds the arithmetic on shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.statistics.field import Field, resample, torus_of
from onnx_dfmpc.statistics.kinship import Selected

MOVING = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
Labels = NDArray[np.int64]
"""1 + index of an element in the source, flattened; 0 for padding."""


def evaluate(node: NodeProto, values: Mapping[str, NDArray[Any]], proto: ModelProto) -> list[NDArray[Any]]:
    """Outputs of one node on concrete values, by the reference implementation."""
    untyped = helper.make_empty_tensor_value_info
    names = [name for name in dict.fromkeys(node.input) if name]
    graph = helper.make_graph([node], "one", [untyped(name) for name in names], [untyped(name) for name in node.output if name])
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    results = ReferenceEvaluator(model).run(None, {name: values[name] for name in names})
    return [np.asarray(result) for result in results]


def labels(shape: Sequence[int]) -> Labels:
    """Labels of a tensor that has not been moved."""
    return np.arange(1, int(np.prod(shape)) + 1, dtype=np.int64).reshape(shape)


def read(source: Field, moved: Labels, birth: int) -> Field | None:
    """Field of a tensor of labels, channels on axis 1; None where a channel mixes several of the source.

    Parameters
    ----------
    source : Field
    moved : int array, shape (1, c, *size)
    birth : int

    Returns
    -------
    Field or None
    """
    count = int(np.prod(source.size))
    flat = moved[0].reshape(moved.shape[1], -1)
    if flat.shape[1] == 1 and count > 1:
        return _flattened(source, flat, birth)
    real = flat > 0
    channel = np.where(real, (flat - 1) // count, -1)
    first = channel.max(axis=1)
    if np.any((channel != first[:, None]) & real):
        return None
    share = real[first >= 0].mean() if (first >= 0).any() else 1.0
    size = moved.shape[2:]
    mean = np.where(first >= 0, source.mean[first], 0.0)
    lags = source.lags[..., first[:, None], first]
    lags = lags * np.outer(first >= 0, first >= 0).astype(np.float32)
    stride = _stride(source, moved, size)
    step = tuple(s * d for s, d in zip(source.step, stride, strict=True)) if size else ()
    lags = resample(lags, torus_of(len(first), size), stride) if size else lags[(0,) * len(source.size)]
    if share < 1:  # a border of zeros
        lags = lags * np.float32(share) + np.float32(share * (1 - share)) * np.outer(mean, mean).astype(np.float32)
        mean = mean * share
    return Field(mean, lags, size, step, birth, Selected(source, first) if size else None)


def _stride(source: Field, moved: Labels, size: tuple[int, ...]) -> tuple[int, ...]:
    """Distance in the source of neighbours along every axis."""
    if len(size) != len(source.size):
        return (1,) * len(size)
    places = moved[0].max(axis=0)
    coordinates = np.unravel_index(np.maximum(places - 1, 0) % int(np.prod(source.size)), source.size)
    strides = []
    for axis, coordinate in enumerate(coordinates):
        known = np.diff(coordinate, axis=axis)[np.diff((places > 0).astype(int), axis=axis) == 0]
        strides.append(max(1, int(np.median(known))) if known.size else 1)
    return tuple(strides)


def _flattened(source: Field, flat: Labels, birth: int) -> Field:
    """Every element its own channel."""
    count = int(np.prod(source.size))
    where = np.maximum(flat[:, 0] - 1, 0)
    real = flat[:, 0] > 0
    channel = where // count
    places = np.stack(np.unravel_index(where % count, source.size), axis=1)
    whole = resample(source.lags, source.size)
    differences = tuple(((places[None, :, axis] - places[:, None, axis]) % n) for axis, n in enumerate(source.size))
    lags = whole[(*differences, channel[:, None], channel[None, :])] * np.outer(real, real)
    return Field(np.where(real, source.mean[channel], 0.0), lags.astype(np.float32), (), (), birth)

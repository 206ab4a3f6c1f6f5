"""Operators that only move data: Reshape, Transpose, Slice, Split, Gather, Pad ... (NumPy and
onnx.reference).

Such an operator is run on a tensor of labels, which element of the source each element is, and the result is
read back: which channel of the source each channel is, and at which distance its places lie. That covers
channel shuffles, strided slices, padded channels, flattening and changes of layout alike. The same evaluation
folds the arithmetic on shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.statistics.field import Field, Lags, Sizes, resample, torus_of
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


class NotCovered(Exception):
    """An operator, or a use of it, that has no rule; the text says which."""


Labels = NDArray[np.int64]
"""1 + index of an element in the source, flattened; 0 for padding."""


def evaluate(node: NodeProto, values: Mapping[str, NDArray[Any]], proto: ModelProto) -> list[NDArray[Any]]:
    """Outputs of one node on concrete values, by the reference implementation.

    Raises
    ------
    NotCovered
        If that cannot run it.
    """
    untyped = helper.make_empty_tensor_value_info
    names = [name for name in dict.fromkeys(node.input) if name]
    graph = helper.make_graph(
        [node], "one", [untyped(name) for name in names], [untyped(name) for name in node.output if name]
    )
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    try:
        results = ReferenceEvaluator(model).run(None, {name: values[name] for name in names})
    except Exception as error:  # NumPy's, or the reference implementation's own
        raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r}: {error}") from error
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
    share = float(real[first >= 0].mean()) if (first >= 0).any() else 1.0
    size = moved.shape[2:]
    mean = np.where(first >= 0, source.mean[first], 0.0)
    lags = source.lags[..., first[:, None], first]
    lags = lags * np.outer(first >= 0, first >= 0).astype(np.float32)
    if len(size) == len(source.size):
        start, stride = _grid(moved, source.size)
        step = tuple(s * d for s, d in zip(source.step, stride, strict=True))
        selected = Field(
            mean,
            resample(lags, torus_of(len(first), size), stride),
            size,
            step,
            birth,
            Selected(source, first, start),
        )
    else:
        folded = _folded(lags, source.size, size)
        if folded is None:
            return None
        selected = Field(mean, resample(folded, torus_of(len(first), size)), size, (1.0,) * len(size), birth)
    return selected if share == 1 else _with_zeros(selected, share)


def _with_zeros(field: Field, share: float) -> Field:
    """A field of which only a share of the places is left, the others are zeros."""
    spread = np.float32(share * (1 - share)) * np.outer(field.mean, field.mean).astype(np.float32)
    return replace(field, mean=field.mean * share, lags=field.lags * np.float32(share) + spread)


def _grid(moved: Labels, size: Sizes) -> tuple[Sizes, Sizes]:
    """At which place of the source, which has this size, the first place lies, and the distance of
    neighbours, along every axis.
    """
    places = moved[0].max(axis=0)
    coordinates = np.unravel_index(np.maximum(places - 1, 0) % int(np.prod(size)), size)
    starts, strides = [], []
    for axis, coordinate in enumerate(coordinates):
        others = tuple(a for a in range(len(size)) if a != axis)
        real = (places > 0).any(axis=others)
        along = coordinate.max(axis=others)[real]
        distances = np.diff(along)
        strides.append(max(1, int(np.median(distances))) if distances.size else 1)
        starts.append(int(along[0]) - int(np.argmax(real)) * strides[-1] if along.size else 0)
    return tuple(starts), tuple(strides)


def _folded(lags: Lags, old: Sizes, new: Sizes) -> Lags | None:
    """Covariances after a change of the number of spatial axes, None where there is no telling."""
    long = [axis for axis, n in enumerate(old) if n > 1]
    wanted = sum(n > 1 for n in new)
    if wanted not in (len(long), 1, 0):
        return None
    kept = long[len(long) - wanted :]  # places in one row: their neighbours are those along the last axis
    squeezed: Lags = lags[tuple(slice(None) if axis in kept else 0 for axis in range(len(old)))]
    shape = iter(squeezed.shape)
    return squeezed.reshape(*(next(shape) if n > 1 else 1 for n in new), *squeezed.shape[-2:])


def _flattened(source: Field, flat: Labels, birth: int) -> Field:
    """Every element its own channel."""
    count = int(np.prod(source.size))
    where = np.maximum(flat[:, 0] - 1, 0)
    real = flat[:, 0] > 0
    channel = where // count
    places = np.stack(np.unravel_index(where % count, source.size), axis=1)
    whole = resample(source.lags, source.size)
    differences = tuple(
        ((places[None, :, axis] - places[:, None, axis]) % n) for axis, n in enumerate(source.size)
    )
    lags = whole[(*differences, channel[:, None], channel[None, :])] * np.outer(real, real)
    return Field(np.where(real, source.mean[channel], 0.0), lags.astype(np.float32), (), (), birth)

"""What a model takes: name, dtype and shape of its inputs, and how many samples at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnx_dfmpc.errors import RecipeError, UnsupportedError
from onnx_dfmpc.recipe import nearest
from onnx_dfmpc.spec import InputSpec, shape_text

# Bounds of a run's memory, not measured: 2^20 floats are 4 MiB of input, and past 64 samples a run amortizes
# its overhead anyway.
MAX_BATCH = 64
MAX_BATCH_ELEMENTS = 1 << 20


def model_inputs(proto: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> list[InputSpec]:
    """Inputs that a caller has to feed, initializers left out; `shapes` as in `with_shapes`.

    Raises
    ------
    UnsupportedError
        If an input is not a tensor of numbers that NumPy has.
    """
    initializers = {tensor.name for tensor in proto.graph.initializer}
    rows = _rows_of_tables(proto)
    specs = []
    for value in proto.graph.input:
        if value.name in initializers:
            continue
        tensor = value.type.tensor_type
        element = tensor.elem_type
        # STRING has a NumPy dtype of objects; sequences and optionals come out as UNDEFINED, which has none.
        dtype = None if element == TensorProto.UNDEFINED else helper.tensor_dtype_to_np_dtype(element)
        if dtype is None or dtype.kind not in "biuf":
            raise UnsupportedError(
                f"input {value.name!r} is not a tensor of plain numbers",
                hint="only inputs of float, integer and bool types can be fed",
            )
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"
            for dim in tensor.shape.dim
        )
        specs.append(InputSpec(value.name, np.dtype(dtype), shape, rows.get(value.name)))
    return with_shapes(specs, shapes or {})


def _rows_of_tables(proto: ModelProto) -> dict[str, int]:
    """Rows of the shortest constant table that each input is an index of, read by Gather as it is or cast."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    came_from = {value.name: value.name for value in proto.graph.input if value.name not in tables}
    rows: dict[str, int] = {}
    for node in proto.graph.node:  # in order: what a node reads has been seen
        if node.op_type in ("Cast", "Identity") and node.input[0] in came_from:
            came_from[node.output[0]] = came_from[node.input[0]]
        if node.op_type != "Gather" or node.input[1] not in came_from or not tables.get(node.input[0]):
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        name, length = came_from[node.input[1]], tables[node.input[0]][axis]
        rows[name] = min(length, rows.get(name, length))
    return rows


def with_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> list[InputSpec]:
    """Inputs whose open dimensions are set by the user: whole shapes by input name, the batch included."""
    names = [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise RecipeError(
                f"shape: no input is named {name!r}", hint=nearest(name, names) or listing(specs)
            )
    return [_with_shape(spec, tuple(shapes[spec.name])) if spec.name in shapes else spec for spec in specs]


def _with_shape(spec: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    if not fits(shape, spec, batched=False):
        raise RecipeError(
            f"shape {shape_text(shape)} does not fit the input {spec}",
            hint="only dimensions that have no size can be set",
        )
    return replace(spec, shape=shape)


def fits(shape: Sequence[int], spec: InputSpec, *, batched: bool) -> bool:
    """Whether an array of this shape can be fed; where it is batched, whatever its number of samples."""
    first = 1 if batched else 0
    return len(shape) == len(spec.shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(spec.shape[first:], shape[first:], strict=True)
    )


def listing(specs: Sequence[InputSpec]) -> str:
    """All inputs in one line, for a hint."""
    return "the model's inputs are " + "; ".join(map(str, specs))


def has_floats(specs: Sequence[InputSpec]) -> bool:
    """Whether any input has floats, whose range a file does not tell."""
    return any(spec.dtype.kind == "f" for spec in specs)


def fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """Batch size that the model is fixed to, None where it takes any; the first input decides."""
    first = next((spec.shape[0] for spec in specs if spec.shape), 1)
    return first if isinstance(first, int) else None


def is_batched(spec: InputSpec, fixed: int | None) -> bool:
    """Whether the first dimension of an input counts samples."""
    if not spec.shape:
        return False
    return not isinstance(spec.shape[0], int) if fixed is None else spec.shape[0] == fixed


def batch_size(fixed: int | None, elements: int, wanted: int | None = None) -> int:
    """Samples per run: what the model is fixed to, or what the user wants, or a batch of moderate size for
    samples of that many elements.
    """
    if fixed is not None and wanted not in (None, fixed):
        raise RecipeError(
            f"batch size {wanted}: the model takes {fixed} at a time", hint=f"leave it out, or use {fixed}"
        )
    return fixed or wanted or max(1, min(MAX_BATCH, MAX_BATCH_ELEMENTS // max(elements, 1)))


def channel_axis(shape: Sequence[int | str]) -> int | None:
    """Axis with the colours of images (N, C, H, W) or (N, H, W, C), None for anything else."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in (1, 3)), None)


LEAST_SIDE, MOST_ASPECT = 8, 2.5
"""What a picture of one channel has: no side shorter, and none so many times longer than the other. A
spectrogram, a window of a few sensors, a vector of features have one channel, too.
"""


def is_image(shape: Sequence[int | str]) -> bool:
    """Whether a sample of this shape, without the batch, may be an image.

    Stricter than `channel_axis`: with a single channel in the last place (spectrograms are stored so), with
    sides no longer than the three colours, or with one channel and a long, thin area, the axes may mean
    something else.
    """
    axis = channel_axis(("N", *shape))
    if axis is None or (axis == 3 and shape[2] == 1):
        return False
    sides = [side for side in (shape[1:] if axis == 1 else shape[:2]) if isinstance(side, int)]
    if any(side <= 3 for side in sides):
        return False
    if shape[0 if axis == 1 else 2] == 3 or not sides:
        return True
    return min(sides) >= LEAST_SIDE and max(sides) <= MOST_ASPECT * min(sides)

"""The storage formats, and the nodes that turn codes back into a float weight.

    unpack none     DequantizeLinear(codes, scale, zero_point)
    unpack int8     Cast -> (Sub zero_point) -> Cast -> DequantizeLinear(INT8 codes, scale)
    unpack float    Cast -> (Sub zero_point) -> Mul(scale)

ONNX Runtime computes everything before DequantizeLinear once, when it loads the model, and Mul too. The float
weights are the same in every format, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.spec import QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.planned import Unpack
from onnx_dfmpc.spec.vectors import VECTORS
from onnx_dfmpc.spec.widths import LEVELS
from onnx_dfmpc.storage.tables import Packing, look_up, look_up_vectors, packings
from onnx_dfmpc.storage.types import (
    SCALE_OPSETS,
    LayoutBuilder,
    StorageType,
    WeightLayout,
    WeightSpec,
    scale_type,
    storage_type,
    stored_scale,
    to_type,
)


def lay_out(spec: WeightSpec, form: StorageFormat) -> WeightLayout:
    """The smallest layout of a weight in a format.

    RecipeError if the format is not registered, UnsupportedError if DequantizeLinear cannot produce the type
    of the weight, DfmpcError if there are no codes of ``spec.bits`` bits.
    """
    if form.storage not in STORAGES:
        raise RecipeError(f"storage = {form.storage!r}: expected one of {', '.join(STORAGES)}")
    scale_type(spec.data_type, spec.layer)
    storage_type(spec.bits, spec.signed)
    if spec.vector:
        return vector(spec, form.unpack)
    return min(STORAGES[form.storage](spec, form.unpack), key=lambda layout: layout.size)


# ------------------------------------------------------------------------------------------------------------
# the formats: a weight and what its codes are unpacked to, to one or more layouts


def native(spec: WeightSpec, unpack: Unpack) -> Iterator[WeightLayout]:
    """As table, or in the narrowest ONNX type that holds them, where that is smaller."""
    yield from table(spec, unpack)
    if spec.bits <= 2 and spec.two_bits_fail and unpack == "none":
        # Only a DequantizeLinear straight on 2 bits fails: after a Cast the codes are read as they should be.
        yield _whole(spec, unpack, bits=4, why=spec.two_bits_fail)
    else:
        yield _whole(spec, unpack, spec.bits)


def table(spec: WeightSpec, unpack: Unpack) -> Iterator[WeightLayout]:
    """Codes as digits in bytes, or in 8 bits: for every runtime."""
    yield _whole(spec, unpack, bits=8)
    for packing in packings(LEVELS[spec.bits]):
        builder = LayoutBuilder(spec)
        unpack_codes(builder, _codes_by_table(builder, packing), unpack)
        yield builder.finish(packing.label)


def vector(spec: WeightSpec, unpack: Unpack) -> WeightLayout:
    """Indices of rows of a table."""
    table = VECTORS[spec.bits]
    builder = LayoutBuilder(spec)
    codes = StoredCodes(look_up_vectors(builder, table), storage_type(8, signed=True), zero_point=False)
    unpack_codes(builder, codes, unpack)
    return builder.finish(f"{table.count} rows of {table.length}")


Storage = Callable[[WeightSpec, Unpack], Iterator[WeightLayout]]

STORAGES: dict[str, Storage] = {"vector": table, "table": table, "native": native}
"""Storage formats by name, for scalar codes: the smallest layout that one yields is taken."""


def _whole(spec: WeightSpec, unpack: Unpack, bits: float, why: str = "") -> WeightLayout:
    """Codes in one tensor, in the narrowest type of at least ``bits`` bits; ``why`` is for the reader."""
    builder = LayoutBuilder(spec)
    codes = codes_in_one_tensor(builder, bits)
    unpack_codes(builder, codes, unpack)
    return builder.finish(codes.kind.name, f"stored as {codes.kind.name}: {why}" if why else "")


# ------------------------------------------------------------------------------------------------------------
# codes, and what unpacks them


@dataclass(frozen=True)
class StoredCodes:
    """Codes in the graph: their tensor and its type, and whether a zero point is still to be subtracted."""

    name: str
    kind: StorageType
    zero_point: bool


def codes_in_one_tensor(builder: LayoutBuilder, bits: float) -> StoredCodes:
    """Add codes in the narrowest type of at least ``bits`` bits."""
    spec = builder.spec
    # Where the type has room for the difference of two codes, the zero point
    # is subtracted before the codes are stored: it takes no bytes then, and integer kernels want none.
    centred = storage_type(bits, signed=True).high >= LEVELS[spec.bits] - 1
    kind = storage_type(bits, spec.signed or centred)

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        codes = weight.codes.astype(np.int16)
        if centred:
            codes -= _along_axis(weight, _zero_points(weight))
        return to_type(codes, kind, spec.layer)

    name = builder.integers("", kind, spec.shape, numbers)
    return StoredCodes(name, kind, zero_point=spec.zero_point and not centred)


def _codes_by_table(builder: LayoutBuilder, packing: Packing) -> StoredCodes:
    """Add packed codes; the table takes off what makes signed ones 0 or more."""
    spec = builder.spec
    half = np.uint8(packing.levels // 2 if spec.signed else 0)
    # -h is 256 - h as a byte, and 0 after h is added.
    name = look_up(builder, packing, lambda weight: weight.codes.astype(np.uint8) + half, signed=spec.signed)
    return StoredCodes(name, storage_type(8, signed=True), spec.zero_point)


def unpack_codes(builder: LayoutBuilder, codes: StoredCodes, unpack: Unpack) -> None:
    """Add the nodes from codes to the float weight."""
    spec = builder.spec
    if unpack == "float":
        _multiply(builder, codes)
        return
    if unpack == "int8" and spec.bits < 8:
        codes = _to_int8(builder, codes)
    inputs = [codes.name, _scale(builder, spec.grid)]
    if codes.zero_point:
        inputs.append(_zero_point(builder, codes.kind, spec.grid))
    scale = scale_type(spec.data_type, spec.layer)
    opset = SCALE_OPSETS[scale]
    scales = f"{helper.tensor_dtype_to_np_dtype(scale)} scales"
    builder.needs(opset, "DequantizeLinear" if opset == 13 else scales)
    axis = {} if spec.axis in (None, 1) else {"axis": spec.axis}  # 1 is the default, and takes no bytes
    output = spec.names.output if scale == spec.data_type else ""
    weight = builder.node("DequantizeLinear", *inputs, output=output, **axis)
    if not output:
        builder.cast(weight, spec.data_type, spec.names.output)


def _to_int8(builder: LayoutBuilder, codes: StoredCodes) -> StoredCodes:
    """Codes as INT8 without a zero point, as fused integer kernels want them: up to 7 bits leave the room."""
    kind = storage_type(8, signed=True)
    if codes.zero_point:  # in INT32, since ONNX Runtime does not subtract INT8
        name = builder.cast(_centred(builder, codes, TensorProto.INT32), kind.data_type)
    else:
        name = codes.name if codes.kind == kind else builder.cast(codes.name, kind.data_type)
    return StoredCodes(name, kind, zero_point=False)


def _multiply(builder: LayoutBuilder, codes: StoredCodes) -> None:
    """Float arithmetic: ONNX Runtime folds it under its default options, and DequantizeLinear it does not."""
    spec = builder.spec
    builder.needs(7, "broadcasting")
    centred = _centred(builder, codes, TensorProto.FLOAT)
    scale = _scale(builder, spec.broadcast)
    if spec.data_type == TensorProto.FLOAT:
        builder.node("Mul", centred, scale, output=spec.names.output)
    else:
        # ONNX Runtime folds float32 arithmetic alone. The product of a code and a scale of at most 11 bits is
        # exact in float32, so that the cast rounds it once, as DequantizeLinear does.
        if scale_type(spec.data_type, spec.layer) != TensorProto.FLOAT:
            scale = builder.cast(scale, TensorProto.FLOAT)
        product = builder.node("Mul", centred, scale)
        builder.cast(product, spec.data_type, spec.names.output)


def _centred(builder: LayoutBuilder, codes: StoredCodes, data_type: int) -> str:
    """Codes minus their zero point, in a type to calculate with."""
    spec = builder.spec
    name = builder.cast(codes.name, data_type)
    if not codes.zero_point:
        return name
    zero_point = _zero_point(builder, codes.kind, spec.broadcast)
    return builder.node("Sub", name, builder.cast(zero_point, data_type))


def _scale(builder: LayoutBuilder, dims: tuple[int, ...]) -> str:
    spec = builder.spec
    data_type = scale_type(spec.data_type, spec.layer)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    return builder.tensor("s", data_type, dims, lambda weight: stored_scale(weight, dtype, spec.layer))


def _zero_point(builder: LayoutBuilder, kind: StorageType, dims: tuple[int, ...]) -> str:
    layer = builder.spec.layer

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return to_type(_zero_points(weight), kind, layer)

    return builder.integers("z", kind, dims, numbers)


def _zero_points(weight: QuantizedWeight) -> NDArray[np.int16]:
    """Zero points in the shape of the scales."""
    given, shape = np.asarray(0 if weight.zero_point is None else weight.zero_point), np.shape(weight.scale)
    return np.broadcast_to(given.reshape(shape if given.size > 1 else ()), shape).astype(np.int16)


def _along_axis(weight: QuantizedWeight, values: NDArray[np.generic]) -> NDArray[Any]:
    """Numbers of the grid in a shape that broadcasts against the codes."""
    if weight.axis is None:
        return values
    return values.reshape([-1 if d == weight.axis else 1 for d in range(weight.codes.ndim)])

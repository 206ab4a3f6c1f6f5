"""How integer codes look in the file: element types, and the nodes that turn codes back into a float weight.

    unpack none     DequantizeLinear(codes, scale, zero_point)
    unpack int8     Cast -> (Sub zero_point) -> Cast -> DequantizeLinear(INT8 codes, scale)
    unpack float    Cast -> (Sub zero_point) -> Mul(scale)
    qdq             float weight -> QuantizeLinear -> DequantizeLinear

ONNX Runtime computes everything in front of DequantizeLinear once, when it loads the model. Where an element
type has room for it, the zero point is subtracted from the codes before they are stored, and needs no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.spec import QuantizedWeight, StorageFormat
from onnx_dfmpc.storage import planes
from onnx_dfmpc.storage.parts import LayoutBuilder, WeightLayout
from onnx_dfmpc.storage.types import (
    SCALE_OPSETS,
    StorageType,
    float_type,
    storage_type,
    stored_scale,
    to_type,
)


@dataclass(frozen=True)
class WeightSpec:
    """Everything about a quantized weight but its numbers.

    Attributes
    ----------
    where : str
        The layer, for messages.
    shape : tuple of int
    axis : int or None
        Of the channels that have a grid each; None for one grid.
    bits : int
    signed : bool
        Whether codes are.
    zero_point : bool
        Whether there is one that is not zero.
    data_type : int
        ``TensorProto`` element type of the float weight: FLOAT, FLOAT16 or BFLOAT16.
    wide : bool
        Store 2 bits in 4 where DequantizeLinear reads them straight from the file.
    """

    where: str
    shape: tuple[int, ...]
    axis: int | None
    bits: int
    signed: bool
    zero_point: bool
    data_type: int
    wide: bool = False

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of scale and zero point."""
        return () if self.axis is None else (self.shape[self.axis],)

    @property
    def broadcast(self) -> tuple[int, ...]:
        """Shape of scale and zero point that broadcasts against the weight."""
        return () if self.axis is None else (self.shape[self.axis], *[1] * (len(self.shape) - self.axis - 1))


@dataclass(frozen=True)
class Coded:
    """Codes in the graph: their tensor, its type, what was added to every code, and whether a zero point is
    still to be subtracted.
    """

    name: str
    kind: StorageType
    offset: int
    zero_point: bool


def lay_out(spec: WeightSpec, form: StorageFormat, label: str, output: str, prefix: str) -> WeightLayout:
    """The smallest way to store a weight in a form.

    Parameters
    ----------
    spec : WeightSpec
    form : StorageFormat
        One that makes sense (see `onnx_dfmpc.forms.check_format`).
    label : str
        What the names of its tensors begin with.
    output : str
        Name of the float weight.
    prefix : str
        What the names of tensors begin with that layers share.

    Raises
    ------
    UnsupportedError
        If the float weight is of a type that DequantizeLinear cannot produce.
    DfmpcError
        If ``spec.bits`` is not between 2 and 8.
    """
    float_type(spec.data_type, spec.where)
    return min(_candidates(spec, form, label, output, prefix), key=lambda layout: layout.size)


def _candidates(
    spec: WeightSpec, form: StorageFormat, label: str, output: str, prefix: str
) -> Iterator[WeightLayout]:
    bits = 8 if form.storage == "portable" else spec.bits
    if bits == 2 and (form.weight_format == "qdq" or (spec.wide and form.unpack == "none")):
        # ONNX Runtime (1.32) does not load a model in which QuantizeLinear makes 512 or more codes of 2 bits
        bits = 4
    kind = storage_type(bits, spec.signed)
    builder = LayoutBuilder(label, spec.where)
    if form.weight_format == "qdq":
        _quantize_and_dequantize(builder, spec, kind, output)
        yield builder.finish(output, f"{TensorProto.DataType.Name(spec.data_type)} -> {kind.name}")
        return
    coded = _in_one_tensor(builder, spec, kind)
    _unpack(builder, spec, form, coded, output)
    yield builder.finish(output, coded.kind.name)
    if form.storage == "compact":
        for split in planes.splits(spec.bits, prod(spec.shape)):
            builder = LayoutBuilder(label, spec.where)
            _unpack(builder, spec, form, _in_planes(builder, spec, split, prefix), output)
            yield builder.finish(output, planes.label(split))


def _in_one_tensor(builder: LayoutBuilder, spec: WeightSpec, kind: StorageType) -> Coded:
    """Codes of one element type; where it has a bit more than they need, less their zero point."""
    centred = kind.width > spec.bits
    kind = storage_type(kind.width, spec.signed or centred)

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        codes = weight.codes.astype(np.int16)
        return to_type(codes - _along(weight, _zero_point(weight)) if centred else codes, kind, spec.where)

    return Coded(builder.integers("", kind, spec.shape, numbers), kind, 0, spec.zero_point and not centred)


def _in_planes(builder: LayoutBuilder, spec: WeightSpec, split: tuple[int, ...], prefix: str) -> Coded:
    """Codes of UINT8, put together from narrower planes."""
    offset = 1 << (spec.bits - 1) if spec.signed else 0
    name = planes.join(
        builder, split, spec.shape, lambda weight: weight.codes.astype(np.int16) + offset, prefix
    )
    return Coded(name, storage_type(8, signed=False), offset, spec.zero_point or spec.signed)


def _unpack(builder: LayoutBuilder, spec: WeightSpec, form: StorageFormat, coded: Coded, output: str) -> None:
    """Nodes from the codes to the float weight."""
    if form.unpack == "float":
        _multiply(builder, spec, coded, output)
        return
    if form.unpack == "int8" and spec.bits < 8:
        coded = _to_int8(builder, spec, coded)
    inputs = [coded.name, _scale(builder, spec, spec.grid)]
    if coded.zero_point:
        inputs.append(_zeros(builder, spec, coded.kind, coded.offset, spec.grid))
    _linear(builder, "DequantizeLinear", inputs, spec, output)


def _to_int8(builder: LayoutBuilder, spec: WeightSpec, coded: Coded) -> Coded:
    """INT8 codes that need no zero point: the difference of two numbers of 7 bits fits."""
    kind = storage_type(8, signed=True)
    if coded.zero_point:  # subtracted as INT32, since ONNX Runtime does not subtract INT8
        name = builder.cast(_centred(builder, spec, coded, TensorProto.INT32), kind.data_type)
    else:
        name = coded.name if coded.kind == kind else builder.cast(coded.name, kind.data_type)
    return Coded(name, kind, 0, zero_point=False)


def _multiply(builder: LayoutBuilder, spec: WeightSpec, coded: Coded, output: str) -> None:
    """Float arithmetic; float32 whatever the type of the model, since ONNX Runtime folds no other, and
    rounded once all the same.
    """
    builder.needs(7, "broadcasting")
    codes = _centred(builder, spec, coded, TensorProto.FLOAT)
    scale = _scale(builder, spec, spec.broadcast)
    if spec.data_type == TensorProto.FLOAT:
        builder.node("Mul", codes, scale, output=output)
    else:
        product = builder.node("Mul", codes, builder.cast(scale, TensorProto.FLOAT))
        builder.cast(product, spec.data_type, output)


def _centred(builder: LayoutBuilder, spec: WeightSpec, coded: Coded, data_type: int) -> str:
    """Codes less their zero point, in a type to calculate with."""
    codes = builder.cast(coded.name, data_type)
    if not coded.zero_point:
        return codes
    kind = storage_type(spec.bits, spec.signed and not coded.offset)
    zeros = _zeros(builder, spec, kind, coded.offset, spec.broadcast)
    return builder.node("Sub", codes, builder.cast(zeros, data_type))


def _quantize_and_dequantize(
    builder: LayoutBuilder, spec: WeightSpec, kind: StorageType, output: str
) -> None:
    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return _float_weight(weight, spec, kind)

    floats = builder.slot("", spec.data_type, spec.shape, numbers)
    grid = [_scale(builder, spec, spec.grid), _zeros(builder, spec, kind, 0, spec.grid)]
    codes = _linear(builder, "QuantizeLinear", [floats, *grid], spec)
    _linear(builder, "DequantizeLinear", [codes, *grid], spec, output)


def _linear(
    builder: LayoutBuilder, op_type: str, inputs: list[str], spec: WeightSpec, output: str = ""
) -> str:
    """QuantizeLinear or DequantizeLinear."""
    opset = SCALE_OPSETS[spec.data_type]
    builder.needs(opset, op_type if opset == 13 else f"{float_type(spec.data_type, spec.where)} scales")
    per_channel = spec.axis not in (None, 1)  # 1 is the default
    return builder.node(op_type, *inputs, output=output, **({"axis": spec.axis} if per_channel else {}))


def _scale(builder: LayoutBuilder, spec: WeightSpec, dims: tuple[int, ...]) -> str:
    dtype = float_type(spec.data_type, spec.where)
    return builder.slot("s", spec.data_type, dims, lambda weight: stored_scale(weight, dtype, spec.where))


def _zeros(
    builder: LayoutBuilder, spec: WeightSpec, kind: StorageType, offset: int, dims: tuple[int, ...]
) -> str:
    return builder.integers(
        "z", kind, dims, lambda weight: to_type(_zero_point(weight) + offset, kind, spec.where)
    )


def _zero_point(weight: QuantizedWeight) -> NDArray[np.int16]:
    """Zero points in the shape of the scales."""
    given = 0 if weight.zero_point is None else weight.zero_point
    return np.broadcast_to(
        np.reshape(given, np.shape(weight.scale) if np.size(given) > 1 else ()), np.shape(weight.scale)
    ).astype(np.int16)


def _along(weight: QuantizedWeight, values: NDArray[np.generic]) -> NDArray[Any]:
    """Numbers of the grid, broadcast against the codes."""
    return (
        values
        if weight.axis is None
        else values.reshape([-1 if d == weight.axis else 1 for d in range(weight.codes.ndim)])
    )


def _float_weight(weight: QuantizedWeight, spec: WeightSpec, kind: StorageType) -> NDArray[np.generic]:
    """Float weight that QuantizeLinear turns into the same codes.

    Raises
    ------
    UnsupportedError
        If it does not, in the arithmetic of the model's type or in float32.
    """
    dtype = float_type(spec.data_type, spec.where)
    scale, zeros = (
        _along(weight, stored_scale(weight, dtype, spec.where)),
        _along(weight, _zero_point(weight)),
    )
    with np.errstate(all="ignore"):
        centred = (weight.codes.astype(np.int16) - zeros).astype(np.float32)
        floats: NDArray[np.generic] = (centred * scale.astype(np.float32)).astype(dtype)
        for arithmetic in {dtype, np.dtype(np.float32)}:
            levels = np.rint(floats.astype(arithmetic) / scale.astype(arithmetic)).astype(np.float32) + zeros
            if wrong := int((np.clip(levels, kind.low, kind.high) != weight.codes).sum()):
                raise UnsupportedError(
                    f"{spec.where}: QuantizeLinear would change {wrong} of {floats.size} codes in {arithmetic}",
                    hint="choose weight_format = 'dq', or exclude the layer",
                )
    return floats

"""How integer codes look in the file: element types, and the nodes that turn codes back into a float weight.

    unpack none     DequantizeLinear(codes, scale, zero_point)
    unpack int8     Cast -> (Sub zero_point) -> Cast -> DequantizeLinear(INT8 codes, scale)
    unpack float    Cast -> (Sub zero_point) -> Mul(scale)
    qdq             float weight -> QuantizeLinear -> DequantizeLinear

ONNX Runtime computes everything in front of DequantizeLinear once, when it loads the model. Where an element type has room for it, the zero
point is subtracted from the codes before they are stored, and needs no bytes.
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
from onnx_dfmpc.graph.storage import planes
from onnx_dfmpc.graph.storage.parts import Blueprint, Draft
from onnx_dfmpc.graph.storage.types import SCALE_OPSETS, StorageType, float_type, storage_type, stored_scale, to_type
from onnx_dfmpc.spec import Form, QuantizedWeight


@dataclass(frozen=True)
class Outline:
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
    """Codes in the graph: their tensor, its type, what was added to every code, and whether a zero point is still to be subtracted."""

    name: str
    kind: StorageType
    offset: int
    zero_point: bool


def lay_out(outline: Outline, form: Form, label: str, output: str, prefix: str) -> Blueprint:
    """The smallest way to store a weight in a form.

    Parameters
    ----------
    outline : Outline
    form : Form
        One that makes sense (see `onnx_dfmpc.forms.check_form`).
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
        If ``outline.bits`` is not between 2 and 8.
    """
    float_type(outline.data_type, outline.where)
    return min(_candidates(outline, form, label, output, prefix), key=lambda blueprint: blueprint.size)


def _candidates(outline: Outline, form: Form, label: str, output: str, prefix: str) -> Iterator[Blueprint]:
    bits = 8 if form.storage == "portable" else outline.bits
    if bits == 2 and (form.weight_format == "qdq" or (outline.wide and form.unpack == "none")):
        bits = 4  # ONNX Runtime (1.32) does not load a model in which QuantizeLinear makes 512 or more codes of 2 bits
    kind = storage_type(bits, outline.signed)
    draft = Draft(label, outline.where)
    if form.weight_format == "qdq":
        _quantize_and_dequantize(draft, outline, kind, output)
        yield draft.finish(output, f"{TensorProto.DataType.Name(outline.data_type)} -> {kind.name}")
        return
    coded = _in_one_tensor(draft, outline, kind)
    _unpack(draft, outline, form, coded, output)
    yield draft.finish(output, coded.kind.name)
    if form.storage == "compact":
        for split in planes.splits(outline.bits, prod(outline.shape)):
            draft = Draft(label, outline.where)
            _unpack(draft, outline, form, _in_planes(draft, outline, split, prefix), output)
            yield draft.finish(output, planes.label(split))


def _in_one_tensor(draft: Draft, outline: Outline, kind: StorageType) -> Coded:
    """Codes of one element type; where it has a bit more than they need, less their zero point."""
    centred = kind.width > outline.bits
    kind = storage_type(kind.width, outline.signed or centred)

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        codes = weight.codes.astype(np.int16)
        return to_type(codes - _along(weight, _zero_point(weight)) if centred else codes, kind, outline.where)

    return Coded(draft.integers("", kind, outline.shape, numbers), kind, 0, outline.zero_point and not centred)


def _in_planes(draft: Draft, outline: Outline, split: tuple[int, ...], prefix: str) -> Coded:
    """Codes of UINT8, put together from narrower planes."""
    offset = 1 << (outline.bits - 1) if outline.signed else 0
    name = planes.join(draft, split, outline.shape, lambda weight: weight.codes.astype(np.int16) + offset, prefix)
    return Coded(name, storage_type(8, signed=False), offset, outline.zero_point or outline.signed)


def _unpack(draft: Draft, outline: Outline, form: Form, coded: Coded, output: str) -> None:
    """Nodes from the codes to the float weight."""
    if form.unpack == "float":
        _multiply(draft, outline, coded, output)
        return
    if form.unpack == "int8" and outline.bits < 8:
        coded = _to_int8(draft, outline, coded)
    inputs = [coded.name, _scale(draft, outline, outline.grid)]
    if coded.zero_point:
        inputs.append(_zeros(draft, outline, coded.kind, coded.offset, outline.grid))
    _linear(draft, "DequantizeLinear", inputs, outline, output)


def _to_int8(draft: Draft, outline: Outline, coded: Coded) -> Coded:
    """INT8 codes that need no zero point: the difference of two numbers of 7 bits fits."""
    kind = storage_type(8, signed=True)
    if coded.zero_point:  # subtracted as INT32, since ONNX Runtime does not subtract INT8
        name = draft.cast(_centred(draft, outline, coded, TensorProto.INT32), kind.data_type)
    else:
        name = coded.name if coded.kind == kind else draft.cast(coded.name, kind.data_type)
    return Coded(name, kind, 0, zero_point=False)


def _multiply(draft: Draft, outline: Outline, coded: Coded, output: str) -> None:
    """Float arithmetic; float32 whatever the type of the model, since ONNX Runtime folds no other, and rounded once all the same."""
    draft.needs(7, "broadcasting")
    codes = _centred(draft, outline, coded, TensorProto.FLOAT)
    scale = _scale(draft, outline, outline.broadcast)
    if outline.data_type == TensorProto.FLOAT:
        draft.node("Mul", codes, scale, output=output)
    else:
        product = draft.node("Mul", codes, draft.cast(scale, TensorProto.FLOAT))
        draft.cast(product, outline.data_type, output)


def _centred(draft: Draft, outline: Outline, coded: Coded, data_type: int) -> str:
    """Codes less their zero point, in a type to calculate with."""
    codes = draft.cast(coded.name, data_type)
    if not coded.zero_point:
        return codes
    kind = storage_type(outline.bits, outline.signed and not coded.offset)
    zeros = _zeros(draft, outline, kind, coded.offset, outline.broadcast)
    return draft.node("Sub", codes, draft.cast(zeros, data_type))


def _quantize_and_dequantize(draft: Draft, outline: Outline, kind: StorageType, output: str) -> None:
    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return _float_weight(weight, outline, kind)

    floats = draft.slot("", outline.data_type, outline.shape, numbers)
    grid = [_scale(draft, outline, outline.grid), _zeros(draft, outline, kind, 0, outline.grid)]
    codes = _linear(draft, "QuantizeLinear", [floats, *grid], outline)
    _linear(draft, "DequantizeLinear", [codes, *grid], outline, output)


def _linear(draft: Draft, op_type: str, inputs: list[str], outline: Outline, output: str = "") -> str:
    """QuantizeLinear or DequantizeLinear."""
    opset = SCALE_OPSETS[outline.data_type]
    draft.needs(opset, op_type if opset == 13 else f"{float_type(outline.data_type, outline.where)} scales")
    per_channel = outline.axis not in (None, 1)  # 1 is the default
    return draft.node(op_type, *inputs, output=output, **({"axis": outline.axis} if per_channel else {}))


def _scale(draft: Draft, outline: Outline, dims: tuple[int, ...]) -> str:
    dtype = float_type(outline.data_type, outline.where)
    return draft.slot("s", outline.data_type, dims, lambda weight: stored_scale(weight, dtype, outline.where))


def _zeros(draft: Draft, outline: Outline, kind: StorageType, offset: int, dims: tuple[int, ...]) -> str:
    return draft.integers("z", kind, dims, lambda weight: to_type(_zero_point(weight) + offset, kind, outline.where))


def _zero_point(weight: QuantizedWeight) -> NDArray[np.int16]:
    """Zero points in the shape of the scales."""
    given = 0 if weight.zero_point is None else weight.zero_point
    return np.broadcast_to(np.reshape(given, np.shape(weight.scale) if np.size(given) > 1 else ()), np.shape(weight.scale)).astype(np.int16)


def _along(weight: QuantizedWeight, values: NDArray[np.generic]) -> NDArray[Any]:
    """Numbers of the grid, broadcast against the codes."""
    return values if weight.axis is None else values.reshape([-1 if d == weight.axis else 1 for d in range(weight.codes.ndim)])


def _float_weight(weight: QuantizedWeight, outline: Outline, kind: StorageType) -> NDArray[np.generic]:
    """Float weight that QuantizeLinear turns into the same codes.

    Raises
    ------
    UnsupportedError
        If it does not, in the arithmetic of the model's type or in float32.
    """
    dtype = float_type(outline.data_type, outline.where)
    scale, zeros = _along(weight, stored_scale(weight, dtype, outline.where)), _along(weight, _zero_point(weight))
    with np.errstate(all="ignore"):
        centred = (weight.codes.astype(np.int16) - zeros).astype(np.float32)
        floats: NDArray[np.generic] = (centred * scale.astype(np.float32)).astype(dtype)
        for arithmetic in {dtype, np.dtype(np.float32)}:
            levels = np.rint(floats.astype(arithmetic) / scale.astype(arithmetic)).astype(np.float32) + zeros
            if wrong := int((np.clip(levels, kind.low, kind.high) != weight.codes).sum()):
                raise UnsupportedError(
                    f"{outline.where}: QuantizeLinear would change {wrong} of {floats.size} codes in {arithmetic}",
                    hint="choose weight_format = 'dq', or exclude the layer",
                )
    return floats

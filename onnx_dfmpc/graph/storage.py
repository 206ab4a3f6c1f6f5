"""How integer codes look in the file: element types, packing, and the nodes that turn codes back into a float weight.

A storage form is a function from a ``QuantizedWeight`` to initializers and nodes (``StoredWeight``). ``native`` is DequantizeLinear
straight on the narrowest element type that holds the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, UnsupportedError
from onnx_dfmpc.graph.protobuf import framed_size
from onnx_dfmpc.spec import QuantizedWeight

SCALE_OPSETS: dict[int, int] = {TensorProto.FLOAT: 13, TensorProto.FLOAT16: 19, TensorProto.BFLOAT16: 19}
"""Float types that DequantizeLinear can produce, and the first opset in which it does (with an axis)."""


@dataclass(frozen=True)
class StorageType:
    """An ONNX integer type as it is stored: ``width`` bits on disk, first available in DequantizeLinear at ``opset``."""

    name: str
    width: int
    signed: bool
    dtype: np.dtype[np.generic]
    opset: int

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest code."""
        return self.low + (1 << self.width) - 1


_TYPES = {
    (kind.width, kind.signed): kind
    for kind in (
        StorageType("INT2", 2, True, np.dtype(ml_dtypes.int2), 25),
        StorageType("UINT2", 2, False, np.dtype(ml_dtypes.uint2), 25),
        StorageType("INT4", 4, True, np.dtype(ml_dtypes.int4), 21),
        StorageType("UINT4", 4, False, np.dtype(ml_dtypes.uint4), 21),
        StorageType("INT8", 8, True, np.dtype(np.int8), 13),
        StorageType("UINT8", 8, False, np.dtype(np.uint8), 13),
    )
}


def storage_type(bits: int, signed: bool) -> StorageType:
    """Narrowest element type that holds codes of ``bits`` bits.

    Raises
    ------
    DfmpcError
        If ``bits`` is not between 2 and 8.

    Examples
    --------
    >>> storage_type(3, signed=False).name, storage_type(6, signed=True).opset
    ('UINT4', 13)
    """
    if not 2 <= bits <= 8:
        raise DfmpcError(f"weights of {bits} bits: only 2 to 8 can be stored")
    width = 2 if bits == 2 else 4 if bits <= 4 else 8
    return _TYPES[width, signed]


def first_opset(kind: StorageType, data_type: int) -> int:
    """First opset in which DequantizeLinear turns ``kind`` into ``data_type``.

    Examples
    --------
    >>> first_opset(storage_type(2, signed=True), TensorProto.FLOAT), first_opset(storage_type(8, signed=True), TensorProto.FLOAT16)
    (25, 19)
    """
    return max(kind.opset, SCALE_OPSETS.get(data_type, 0))


def pack(codes: NDArray[np.integer], kind: StorageType, name: str) -> TensorProto:
    """Integer codes as a tensor of type ``kind``, two or four to a byte where the type is narrower than one.

    Parameters
    ----------
    codes : int array
        Any shape.
    kind : StorageType
        Type to store them in.
    name : str
        Name of the tensor.

    Raises
    ------
    DfmpcError
        If a code does not fit the type: nothing ever wraps.

    Examples
    --------
    >>> len(pack(np.array([0, 1, 2, 3, 3]), storage_type(2, signed=False), "w").raw_data)
    2
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise DfmpcError(f"{name}: codes must be integers, not {codes.dtype}")
    if codes.size and (codes.min() < kind.low or codes.max() > kind.high):
        raise DfmpcError(f"{name}: codes {codes.min()}..{codes.max()} do not fit {kind.name} ({kind.low}..{kind.high})")
    return numpy_helper.from_array(codes.astype(np.int16).astype(kind.dtype), name)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Initializers and nodes that together make up a quantized weight, in the order of evaluation; ``output`` is the float weight."""

    initializers: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    output: str

    @property
    def size(self) -> int:
        """Bytes that they take in the file."""
        return sum(framed_size(part) for part in (*self.initializers, *self.nodes))


def native(weight: QuantizedWeight, kind: StorageType, data_type: int, base: str, fresh: Callable[[str], str]) -> StoredWeight:
    """DequantizeLinear(codes, scale[, zero_point]) with the codes in their own element type.

    Parameters
    ----------
    weight : QuantizedWeight
        Codes and grid.
    kind : StorageType
        Element type of codes and zero point; signed like the codes.
    data_type : int
        ``TensorProto`` element type of the float weight, and so of the scale: FLOAT, FLOAT16 or BFLOAT16.
    base : str
        Name of the float weight; all new names begin with it.
    fresh : callable
        Makes a name unique in the model.

    Raises
    ------
    UnsupportedError
        If the float weight is of a type that DequantizeLinear cannot produce, or a scale does not fit it.
    DfmpcError
        If codes or zero points are outside of their nominal bits.
    """
    _require_nominal_range(weight, base)
    codes = pack(weight.codes, kind, fresh(f"{base}_quantized"))
    tensors = [codes, numpy_helper.from_array(_scale(weight, data_type, base), fresh(f"{base}_scale"))]
    if weight.zero_point is not None and np.any(weight.zero_point):
        tensors.append(pack(np.reshape(weight.zero_point, np.shape(weight.scale)), kind, fresh(f"{base}_zero_point")))
    output = fresh(f"{base}_dequantized")
    node = helper.make_node("DequantizeLinear", [tensor.name for tensor in tensors], [output], name=fresh(f"{base}_DequantizeLinear"))
    if weight.axis is not None:
        node.attribute.append(helper.make_attribute("axis", weight.axis))
    return StoredWeight(tuple(tensors), (node,), output)


def _scale(weight: QuantizedWeight, data_type: int, base: str) -> NDArray[np.generic]:
    if data_type not in SCALE_OPSETS:
        raise UnsupportedError(
            f"{base}: weights of type {TensorProto.DataType.Name(data_type)} cannot come from DequantizeLinear",
            hint="exclude the layer, or export the model in float32",
        )
    scale = np.asarray(weight.scale)
    with np.errstate(over="ignore", under="ignore"):
        stored = scale.astype(helper.tensor_dtype_to_np_dtype(data_type))
    if not np.all(np.isfinite(stored.astype(np.float64))) or np.any((stored == 0) & (scale != 0)):
        raise UnsupportedError(
            f"{base}: a scale between {scale.min():.3g} and {scale.max():.3g} does not fit {TensorProto.DataType.Name(data_type)}",
            hint="exclude the layer, or export the model in float32",
        )
    return stored


def _require_nominal_range(weight: QuantizedWeight, base: str) -> None:
    low = -(2 ** (weight.bits - 1)) if weight.signed else 0
    high = low + 2**weight.bits - 1
    for what, values in (("code", weight.codes), ("zero point", weight.zero_point)):
        if values is not None and np.size(values) and (np.min(values) < low or np.max(values) > high):
            sign = "signed" if weight.signed else "unsigned"
            raise DfmpcError(f"{base}: {what} {np.min(values)}..{np.max(values)} outside of {weight.bits} {sign} bits ({low}..{high})")

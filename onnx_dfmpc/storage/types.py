"""ONNX's integer types as weights are stored in them, and numbers that have to fit their type: nothing ever
wraps.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, UnsupportedError
from onnx_dfmpc.spec import QuantizedWeight

SCALE_OPSETS: dict[int, int] = {TensorProto.FLOAT: 13, TensorProto.FLOAT16: 19, TensorProto.BFLOAT16: 19}
"""Float types that DequantizeLinear can produce, and the first opset in which it does (with an axis)."""


@dataclass(frozen=True)
class StorageType:
    """An ONNX integer type as it is stored: ``width`` bits on disk, first available in Cast and
    DequantizeLinear at ``opset``.
    """

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

    @property
    def data_type(self) -> int:
        """Element type in ``TensorProto``."""
        return int(TensorProto.DataType.Value(self.name))


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

ITEM_BITS: dict[int, int] = {kind.data_type: kind.width for kind in _TYPES.values()} | {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
}
"""Bits on disk of one number, by ``TensorProto`` element type."""


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


def to_type(codes: NDArray[np.integer], kind: StorageType, name: str) -> NDArray[np.generic]:
    """Integer codes in the NumPy type of ``kind``.

    Raises
    ------
    DfmpcError
        If a code does not fit the type.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise DfmpcError(f"{name}: codes must be integers, not {codes.dtype}")
    if codes.size and (codes.min() < kind.low or codes.max() > kind.high):
        raise DfmpcError(
            f"{name}: codes {codes.min()}..{codes.max()} do not fit {kind.name} ({kind.low}..{kind.high})"
        )
    return codes.astype(np.int16).astype(kind.dtype)


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
        If a code does not fit the type.

    Examples
    --------
    >>> len(pack(np.array([0, 1, 2, 3, 3]), storage_type(2, signed=False), "w").raw_data)
    2
    """
    return numpy_helper.from_array(to_type(codes, kind, name), name)


def float_type(data_type: int, where: str) -> np.dtype[np.generic]:
    """NumPy type of a float weight.

    Raises
    ------
    UnsupportedError
        If DequantizeLinear cannot produce it.
    """
    if data_type not in SCALE_OPSETS:
        raise UnsupportedError(
            f"{where}: weights of type {TensorProto.DataType.Name(data_type)} cannot come from DequantizeLinear",
            hint="exclude the layer, or export the model in float32",
        )
    return helper.tensor_dtype_to_np_dtype(data_type)


def stored_scale(weight: QuantizedWeight, dtype: np.dtype[np.generic], where: str) -> NDArray[np.generic]:
    """Scales of a weight in the float type of the model.

    Raises
    ------
    UnsupportedError
        If a scale overflows the type, or becomes zero.
    """
    scale = np.asarray(weight.scale)
    with np.errstate(over="ignore", under="ignore"):
        stored = scale.astype(dtype)
    if not np.all(np.isfinite(stored.astype(np.float64))) or np.any((stored == 0) & (scale != 0)):
        raise UnsupportedError(
            f"{where}: a scale between {scale.min():.3g} and {scale.max():.3g} does not fit {dtype}",
            hint="exclude the layer, or export the model in float32",
        )
    return stored


def require_nominal_range(weight: QuantizedWeight, where: str) -> None:
    """Raise DfmpcError if codes or zero points are outside of their nominal bits."""
    low = -(2 ** (weight.bits - 1)) if weight.signed else 0
    high = low + 2**weight.bits - 1
    for what, values in (("code", weight.codes), ("zero point", weight.zero_point)):
        if values is not None and np.size(values) and (np.min(values) < low or np.max(values) > high):
            sign = "signed" if weight.signed else "unsigned"
            raise DfmpcError(
                f"{where}: {what} {np.min(values)}..{np.max(values)} outside of {weight.bits} {sign} bits ({low}..{high})"
            )

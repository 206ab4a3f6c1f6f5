"""What a stored weight consists of: integer types, tensors and nodes, and the bytes that they take.

A `WeightLayout` is a stored weight without its numbers. Its size is exact, so that budgets can be planned
before anything is quantized, and `WeightLayout.fill` puts the numbers in. Numbers that do not fit their type
are an error: nothing ever wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, LayerError, UnsupportedError
from onnx_dfmpc.model.protobuf import framed, framed_size
from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.spec.widths import LEVELS, WIDTHS_IN_WORDS, code_limits

SCALE_OPSETS: dict[int, int] = {TensorProto.FLOAT: 13, TensorProto.FLOAT16: 19, TensorProto.BFLOAT16: 19}
"""Float types that DequantizeLinear can produce, and the first opset in which it does (with an axis): ONNX's
operator changelog.
"""

Numbers = Callable[[QuantizedWeight], NDArray[np.generic]]
"""The numbers of one tensor of a weight, in its element type and in any shape."""


@dataclass(frozen=True)
class StorageType:
    """An ONNX integer type: ``width`` bits on disk, in Cast and DequantizeLinear from ``opset`` on."""

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
        # 13: since then DequantizeLinear has an axis, and so a scale per channel.
        StorageType("INT8", 8, True, np.dtype(np.int8), 13),
        StorageType("UINT8", 8, False, np.dtype(np.uint8), 13),
    )
}

ITEM_BITS: dict[int, int] = {kind.data_type: kind.width for kind in _TYPES.values()} | {
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
}
"""Bits on disk of one number, by ``TensorProto`` element type."""


def storage_type(bits: float, signed: bool) -> StorageType:
    """Narrowest element type for codes of ``bits`` bits. DfmpcError if there are no such codes.

    >>> storage_type(3, signed=False).name, storage_type(6, signed=True).opset
    ('UINT4', 13)
    """
    if bits not in LEVELS:
        raise DfmpcError(f"weights of {bits} bits: expected {WIDTHS_IN_WORDS}")
    width = 2 if bits <= 2 else 4 if bits <= 4 else 8
    return _TYPES[width, signed]


def to_type(codes: NDArray[np.integer], kind: StorageType, layer: str) -> NDArray[np.generic]:
    """Integer codes in the NumPy type of ``kind``. DfmpcError if a code does not fit."""
    codes = np.asarray(codes)
    # ml_dtypes does not complain: as int4, 8 is -8 and NaN is 0.
    if codes.dtype.kind not in "iu":
        raise DfmpcError(f"{layer}: codes must be integers, not {codes.dtype}")
    if codes.size and (codes.min() < kind.low or codes.max() > kind.high):
        raise DfmpcError(
            f"{layer}: codes {codes.min()}..{codes.max()} do not fit {kind.name} ({kind.low}..{kind.high})"
        )
    return codes.astype(kind.dtype)


def scale_type(data_type: int, layer: str) -> int:
    """Type of the scales of a float weight: its own. DequantizeLinear does not produce float64, which is cast
    from float32. UnsupportedError if the type is none of these.
    """
    if data_type == TensorProto.DOUBLE:
        return TensorProto.FLOAT
    if data_type not in SCALE_OPSETS:
        name = TensorProto.DataType.Name(data_type)
        raise UnsupportedError(
            f"{layer}: weights of type {name} cannot come from DequantizeLinear",
            hint="exclude the layer, or export the model in float32",
        )
    return data_type


def small_tensor(name: str, data_type: int, values: NDArray[np.integer]) -> TensorProto:
    """Tensor of integers, not as raw bytes: numbers below 128 take one byte each, whatever their type."""
    return helper.make_tensor(name, data_type, values.shape, values.ravel().tolist())


def stored_scale(weight: QuantizedWeight, dtype: np.dtype[np.generic], layer: str) -> NDArray[np.generic]:
    """Scales in the float type of the model. LayerError if one overflows it, or becomes zero."""
    scale = np.asarray(weight.scale)
    with np.errstate(over="ignore", under="ignore"):
        stored = scale.astype(dtype)
    if not np.all(np.isfinite(stored.astype(np.float64))) or np.any((stored == 0) & (scale != 0)):
        raise LayerError(
            layer, f"a scale between {scale.min():.3g} and {scale.max():.3g} does not fit {dtype}"
        )
    return stored


def _require_nominal_range(weight: QuantizedWeight, layer: str) -> None:
    """DfmpcError if codes or zero points are outside of their nominal bits; the element type may be wider."""
    if weight.vector:  # storing them looks for their rows
        return
    low, high = code_limits(weight.bits, signed=weight.signed)
    for what, values in (("code", weight.codes), ("zero point", weight.zero_point)):
        if values is not None and np.size(values) and (np.min(values) < low or np.max(values) > high):
            raise DfmpcError(
                f"{layer}: {what} {np.min(values)}..{np.max(values)} outside of {weight.bits} "
                f"{'signed' if weight.signed else 'unsigned'} bits ({low}..{high})"
            )


@dataclass(frozen=True)
class WeightNames:
    """What the new tensors of a layer are called.

    ``label``, such as "q3", is what their names begin with, and ``prefix``, such as "q", what those of
    constants begin with that layers share; ``output`` is the float weight that the layer's node reads.
    ``weight`` is what the float weight was called in the model, "" where others read that one, too.
    """

    label: str
    output: str
    prefix: str
    weight: str = ""


@dataclass(frozen=True)
class WeightSpec:
    """A quantized weight without its numbers: all that decides how it is stored.

    ``data_type`` is the ``TensorProto`` type of the float weight. ``two_bits_fail`` says why ONNX Runtime
    gets this layer wrong from 2-bit codes; "" where it does not. ``bits``, ``signed``, ``axis`` and
    ``vector`` are as in `QuantizedWeight`, and ``zero_point`` says whether one differs from zero.
    """

    layer: str
    shape: tuple[int, ...]
    data_type: int
    names: WeightNames
    two_bits_fail: str
    bits: float
    signed: bool
    axis: int | None
    zero_point: bool
    vector: bool = False

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of scale and zero point."""
        return () if self.axis is None else (self.shape[self.axis],)

    @property
    def broadcast(self) -> tuple[int, ...]:
        """Shape of scale and zero point that broadcasts against the weight."""
        return () if self.axis is None else (self.shape[self.axis], *[1] * (len(self.shape) - self.axis - 1))


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """A tensor of a weight without its numbers, which ``numbers`` makes of a `QuantizedWeight`."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    numbers: Numbers

    def empty(self) -> TensorProto:
        """The tensor without its numbers."""
        return TensorProto(name=self.name, data_type=self.data_type, dims=self.dims)

    def fill(self, weight: QuantizedWeight) -> TensorProto:
        """The tensor."""
        # As raw bytes: helper.make_tensor(values) writes 5.5 times as many for INT8.
        return numpy_helper.from_array(self.numbers(weight).reshape(self.dims), self.name)

    @property
    def size(self) -> int:
        """Bytes that it takes in the file."""
        content = -(-prod(self.dims) * ITEM_BITS[self.data_type] // 8)  # whole bytes
        return framed(self.empty().ByteSize() + framed(content))


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Initializers and nodes of a quantized weight in order of evaluation; ``output`` is the float weight."""

    initializers: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    output: str

    @property
    def size(self) -> int:
        """Bytes that they take in the file."""
        return sum(framed_size(part) for part in (*self.initializers, *self.nodes))


@dataclass(frozen=True, eq=False)
class WeightLayout:
    """A stored weight without its numbers.

    Attributes
    ----------
    storage : str
        What lies in the file, such as "UINT4".
    tensors : tuple of TensorSpec
        Initializers whose numbers are still to come.
    constants : tuple of TensorProto
        Small initializers that are the same whatever the weight.
    nodes : tuple of NodeProto
        In the order of evaluation.
    shared : frozenset of str
        Constants that all layers of a model have in common (see `tables.shared_parts`).
    opset, reason : int, str
        First opset that has all of it, and what needs that opset.
    note : str
        What a reader of the report should know.
    """

    spec: WeightSpec
    storage: str
    tensors: tuple[TensorSpec, ...]
    constants: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    shared: frozenset[str]
    opset: int
    reason: str
    note: str

    @property
    def size(self) -> int:
        """Bytes that it takes in the file, not counting what layers share."""
        parts = (*self.constants, *self.nodes)
        return sum(tensor.size for tensor in self.tensors) + sum(framed_size(part) for part in parts)

    def fill(self, weight: QuantizedWeight) -> StoredWeight:
        """Put the numbers in.

        DfmpcError if codes or zero points are outside of their nominal bits, UnsupportedError if a scale does
        not fit the float type of the model.
        """
        _require_nominal_range(weight, self.spec.layer)
        return self._stored(tensor.fill(weight) for tensor in self.tensors)

    def empty(self) -> StoredWeight:
        """Leave the numbers out: a stored weight that is too small, and no valid part of a model."""
        return self._stored(tensor.empty() for tensor in self.tensors)

    def _stored(self, tensors: Iterable[TensorProto]) -> StoredWeight:
        return StoredWeight((*tensors, *self.constants), self.nodes, self.spec.names.output)


@dataclass(eq=False)
class LayoutBuilder:
    """Collects the tensors and nodes of one layout. Names begin with the label of ``spec``, and every name is
    short, since each of its bytes is in the file several times: intermediate results are A, B, C.
    """

    spec: WeightSpec
    tensors: list[TensorSpec] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    opsets: dict[int, str] = field(default_factory=dict)

    def tensor(self, suffix: str, data_type: int, dims: Sequence[int], numbers: Numbers) -> str:
        """Add a tensor; returns its name."""
        self.tensors.append(TensorSpec(self.spec.names.label + suffix, data_type, tuple(dims), numbers))
        return self.tensors[-1].name

    def integers(self, suffix: str, kind: StorageType, dims: Sequence[int], numbers: Numbers) -> str:
        """Add a tensor of integers, and require the opset of its type; returns its name."""
        if kind.width < 8:
            self.needs(kind.opset, f"{kind.name} weights")
        return self.tensor(suffix, kind.data_type, dims, numbers)

    def constant(self, suffix: str, data_type: int, values: Sequence[int]) -> str:
        """Add a small tensor of small integers; returns its name."""
        self.constants.append(small_tensor(self.spec.names.label + suffix, data_type, np.asarray(values)))
        return self.constants[-1].name

    def share(self, key: str) -> str:
        """Use a constant that layers share (`tables.shared_parts`); returns its name."""
        name = f"{self.spec.names.prefix}_{key}"
        self.shared.add(name)
        return name

    def node(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node without a name of its own; returns the name of its output."""
        output = output or f"{self.spec.names.label}{chr(ord('A') + len(self.nodes))}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def cast(self, name: str, data_type: int, output: str = "") -> str:
        """Add a Cast; returns the name of its output."""
        return self.node("Cast", name, output=output, to=data_type)

    def needs(self, opset: int, reason: str) -> None:
        """Require an opset."""
        self.opsets.setdefault(opset, reason)

    def finish(self, storage: str, note: str = "") -> WeightLayout:
        """All that was added, as a layout. The last node must have written the float weight."""
        opset = max(self.opsets)
        parts = tuple(self.tensors), tuple(self.constants), tuple(self.nodes)
        return WeightLayout(
            self.spec, storage, *parts, frozenset(self.shared), opset, self.opsets[opset], note
        )

"""Codes packed into bytes, and unpacked by looking the bytes up in a table.

    bytes -> Cast(INT32) -> Gather(table, INT8) -> Reshape

Codes of L levels are digits of a number to base L, k to a byte. Row i of the table has the k digits of i:

    levels   3    4    6   16              8    32    64
    codes    5    4    3    2 in a byte    8     8     4 in 3, 5, 3 bytes
    bits     1.6  2  2.67   4              3     5     6

No power of 8, 32 or 64 fits a byte without a gap. So the low part of such a code (4 or 16 levels) is a digit
as above, and what is above that (2 or 4 levels) makes, for the k codes of a byte together, a number that goes
into a second tensor, two or four to a byte. A row is then at ``byte + 256 number``. One index serves k codes,
so that the sum takes little memory: ONNX Runtime keeps every intermediate result of constant folding until
the model is loaded, and sums of single codes in INT32 would take 17 bytes per weight instead of at most 9.

Weights as rows of a table of vectors (`spec.vectors`) need no digits: a byte is the index of a row, and where
there are more than 256 rows the rest of the index is a digit of a second tensor, as above. The table lies in
the file the other way around, (k, rows), and is looked up along its second axis. So the first weights of all
rows come first, which are those of the first channels, and nothing has to be transposed, unless the output
channels are not the first axis of the weight:

    bytes -> Cast(INT32) -> Gather(table, axis=1) -> Reshape -> (Slice) -> (Transpose)

Tables are INT8, so that DequantizeLinear reads what integer kernels want. All layers of a model share them,
and those of digits are computed from small numbers when the model is loaded: all together take 1.6 kB in
the file. Of the rows of vectors it has the first half, since the others are the opposite. Nothing here is
younger than opset 13.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.spec.vectors import VECTORS, VectorTable
from onnx_dfmpc.storage.types import LayoutBuilder, small_tensor

BYTE = 256

TOGETHER = {1: 1, 2: 8, 4: 4, 16: 2}
"""How many numbers share a byte, by what each may be; where that is one, there is nothing to store."""

Digits = Callable[[QuantizedWeight], NDArray[np.uint8]]
"""Codes of a weight from 0 up."""


@dataclass(frozen=True)
class Packing:
    """How codes lie in bytes.

    ``base`` levels of a code are a digit, ``digits`` of these are in a byte. Codes of more levels have a high
    part of ``high`` levels; those of a byte are a number to base ``high``.
    """

    base: int
    digits: int
    high: int = 1

    @property
    def levels(self) -> int:
        """Levels of a code."""
        return self.base * self.high

    @property
    def numbers(self) -> int:
        """What the high parts of a byte's codes may be together."""
        return int(self.high**self.digits)

    @property
    def together(self) -> int:
        """Bytes whose high parts share a byte."""
        return TOGETHER[self.numbers]

    @property
    def group(self) -> int:
        """Codes in as few bytes as can be filled."""
        return self.digits * self.together

    @property
    def label(self) -> str:
        """What it looks like in the file.

        >>> Packing(3, 5).label, Packing(4, 4, 2).label
        ('3 levels, 5 in a byte', '8 levels, 8 in 3 bytes')
        """
        count = self.together + (self.high > 1)
        return f"{self.levels} levels, {self.group} in {f'{count} bytes' if count > 1 else 'a byte'}"


PACKINGS = {
    packing.levels: packing
    for packing in (
        Packing(3, 5),
        Packing(4, 4),
        Packing(6, 3),
        Packing(4, 4, high=2),
        Packing(16, 2),
        Packing(16, 2, high=2),
        Packing(16, 2, high=4),
    )
}
"""By levels, ascending."""


def packings(levels: int) -> tuple[Packing, ...]:
    """Ways to pack codes, the densest first."""
    return tuple(packing for packing in PACKINGS.values() if packing.levels >= levels)


def pack(digits: NDArray[np.integer], base: int, count: int) -> NDArray[np.uint8]:
    """Digits to a base, ``count`` to a byte, the first one the lowest; zeros fill the last byte.

    >>> pack(np.array([1, 2, 0, 2]), 3, 5).tolist(), pack(np.array([1, 15, 3]), 16, 2).tolist()
    ([61], [241, 3])
    """
    packed = np.zeros(-(-len(digits) // count), np.uint8)
    for place in range(count):
        # In bytes, which hold every sum: a large layer would be gigabytes of wider numbers.
        some = digits[place::count].astype(np.uint8, copy=False)
        packed[: len(some)] += some * np.uint8(base**place)
    return packed


def look_up(builder: LayoutBuilder, packing: Packing, digits: Digits, *, signed: bool) -> str:
    """Add packed codes and the nodes that unpack them; returns the name of the INT8 codes."""
    spec = builder.spec
    size = prod(spec.shape)
    groups = -(-size // packing.group)

    def low(weight: QuantizedWeight) -> NDArray[np.generic]:
        packed = pack(digits(weight).ravel() % np.uint8(packing.base), packing.base, packing.digits)
        return _with_zeros(packed, groups * packing.together)

    def high(weight: QuantizedWeight) -> NDArray[np.generic]:
        numbers = pack(digits(weight).ravel() // np.uint8(packing.base), packing.high, packing.digits)
        return pack(numbers, packing.numbers, packing.together)

    dims = (groups,) if packing.together == 1 else (groups, packing.together)
    rows = builder.cast(builder.tensor("", TensorProto.UINT8, dims, low), TensorProto.INT32)
    if packing.high > 1:
        numbers = builder.cast(builder.tensor("h", TensorProto.UINT8, (groups,), high), TensorProto.INT32)
        starts = builder.node("Gather", builder.share(f"{packing.numbers}i"), numbers)
        rows = builder.node("Add", rows, starts)
    codes = builder.node("Gather", builder.share(f"{packing.levels}{'s' if signed else ''}"), rows)
    if size % packing.group:
        builder.needs(10, "Slice")
        flat = builder.node("Reshape", codes, builder.share("m"))
        end = builder.constant("e", TensorProto.INT64, (size,))
        codes = builder.node("Slice", flat, builder.share("0"), end)
    return builder.node("Reshape", codes, builder.constant("r", TensorProto.INT64, spec.shape))


def _with_zeros(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """So many bytes, the last of them zeros."""
    return packed if len(packed) == count else np.pad(packed, (0, count - len(packed)))


# ------------------------------------------------------------------------------------------------------------
# rows of vectors


def look_up_vectors(builder: LayoutBuilder, table: VectorTable) -> str:
    """Add indices of rows of a table and the nodes that look them up; returns the name of the INT8 levels.

    DfmpcError where the channels have no scale of their own.
    """
    spec, axis, length = builder.spec, builder.spec.axis, table.length
    if axis is None:
        raise DfmpcError(f"{spec.layer}: rows of a table need a scale per channel")
    channels, rest = spec.shape[axis], (*spec.shape[:axis], *spec.shape[axis + 1 :])
    each = -(-channels // length)
    count, together = each * prod(rest), TOGETHER[table.high]
    groups = -(-count // together)

    def low(weight: QuantizedWeight) -> NDArray[np.generic]:
        return _with_zeros(row_indices(weight, table, spec.layer).astype(np.uint8), groups * together)

    def high(weight: QuantizedWeight) -> NDArray[np.generic]:
        return pack(row_indices(weight, table, spec.layer) // BYTE, table.high, together)

    dims = (groups,) if together == 1 else (groups, together)
    rows = builder.cast(builder.tensor("", TensorProto.UINT8, dims, low), TensorProto.INT32)
    if together > 1:
        numbers = builder.cast(builder.tensor("h", TensorProto.UINT8, (groups,), high), TensorProto.INT32)
        rows = builder.node("Add", rows, builder.node("Gather", builder.share(f"{table.high}i"), numbers))
    levels = builder.node("Gather", builder.share(table.key), rows, axis=1)
    if count % together:
        flat = builder.constant("f", TensorProto.INT64, (length, -1))
        levels = _first(builder, builder.node("Reshape", levels, flat), "e", count, builder.share("1"))
    whole = builder.constant("r", TensorProto.INT64, (each * length, *rest))
    levels = builder.node("Reshape", levels, whole)
    if channels % length:
        levels = _first(builder, levels, "c", channels)
    if axis:
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(spec.shape))]
        levels = builder.node("Transpose", levels, perm=order)
    return levels


def _first(builder: LayoutBuilder, name: str, suffix: str, count: int, *axis: str) -> str:
    """The first so many of a tensor along its first axis, or along another one."""
    builder.needs(10, "Slice")
    end = builder.constant(suffix, TensorProto.INT64, (count,))
    return builder.node("Slice", name, builder.share("0"), end, *axis)


def row_indices(weight: QuantizedWeight, table: VectorTable, layer: str) -> NDArray[np.uint16]:
    """Rows that the codes of a weight are, in the order in which `look_up_vectors` stores them.

    DfmpcError where there is no such row.
    """
    assert weight.axis is not None
    length, axis = table.length, weight.axis
    codes = np.moveaxis(weight.codes, axis, 0).reshape(weight.codes.shape[axis], -1)
    each = -(-len(codes) // length)
    missing = length * each - len(codes)
    blocks = (np.pad(codes, ((0, missing), (0, 0))) if missing else codes).reshape(length, each, -1)
    # Of the last rows some channels are not there: any row will do that is right in those before.
    present = (np.arange(length * each).reshape(length, each) < len(codes)).sum(axis=0)
    indices = np.empty(blocks.shape[1:], np.uint16)
    for some in np.unique(present):
        known = _keys(table.rows[:, :some].T)
        order = known.argsort(kind="stable")
        for b in np.flatnonzero(present == some):
            wanted = _keys(blocks[:some, b])
            places = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
            indices[b] = order[places]
            if not np.array_equal(known[indices[b]], wanted):
                raise DfmpcError(f"{layer}: codes are not rows of the table of {table.count} rows")
    return indices.ravel()


def _keys(levels: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for the levels (k, m) of each of m vectors."""
    keys: NDArray[np.int64] = BYTE ** np.arange(len(levels)) @ (levels.astype(np.int64) + BYTE // 2)
    return keys


# ------------------------------------------------------------------------------------------------------------
# what layers share


def shared_parts(names: Collection[str]) -> tuple[list[TensorProto], list[NodeProto]]:
    """Initializers and nodes that make the shared constants of layouts.

    ``q_8`` is the table of 8 levels, and ``q_8s`` that of signed codes, 4 less. ``q_4i`` has 256 times the
    digits of a byte to base 4. ``q_2v3`` is the table of vectors of two times 256 rows of 3. ``q_m`` is the
    shape -1, and ``q_0`` and ``q_1`` are numbers.
    """
    if not names:
        return [], []
    (prefix,) = {name.rpartition("_")[0] for name in names}
    keys = {name.rpartition("_")[2] for name in names}
    parts = _Shared(prefix)
    for key in sorted(keys):
        if key == "m":
            parts.constant(key, TensorProto.INT64, [-1])
        elif key in ("0", "1"):
            parts.constant(key, TensorProto.INT64, [int(key)])
        elif "v" in key:
            parts.vectors(key)
        elif key.endswith("i"):
            parts.starts(int(key[:-1]))
        else:
            parts.table(PACKINGS[int(key.rstrip("s"))], signed=key.endswith("s"))
    return list(parts.initializers.values()), list(parts.nodes.values())


class _Shared:
    """Collects shared constants by name, each once."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.initializers: dict[str, TensorProto] = {}
        self.nodes: dict[str, NodeProto] = {}

    def constant(self, key: str, data_type: int, values: object) -> str:
        name = f"{self.prefix}_{key}"
        self.initializers.setdefault(name, small_tensor(name, data_type, np.asarray(values)))
        return name

    def node(self, key: str, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.prefix}_{key}"
        self.nodes.setdefault(name, helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def table(self, packing: Packing, *, signed: bool) -> str:
        """INT8 codes of every row."""
        rows, key = self.rows(packing), str(packing.levels)
        if signed:
            key += "s"
            half = self.constant(f"{key}h", TensorProto.INT32, packing.levels // 2)
            rows = self.node(f"{key}d", "Sub", rows, half)
        return self.node(key, "Cast", rows, to=TensorProto.INT8)

    def vectors(self, key: str) -> str:
        """INT8 levels (k, rows) of a table of vectors."""
        (table,) = (one for one in VECTORS.values() if one.key == key)
        stored = numpy_helper.from_array(np.ascontiguousarray(table.half.T), f"{self.prefix}_{key}a")
        self.initializers.setdefault(stored.name, stored)
        # ONNX Runtime and others calculate with INT32, but not with INT8.
        half = self.node(f"{key}b", "Cast", stored.name, to=TensorProto.INT32)
        opposite = self.node(f"{key}c", "Mul", half, self.constant("n", TensorProto.INT32, -1))
        whole = self.node(f"{key}d", "Concat", half, opposite, axis=1)
        return self.node(key, "Cast", whole, to=TensorProto.INT8)

    def starts(self, base: int) -> str:
        """First rows of the parts of a table that numbers to a base choose."""
        packing = PACKINGS.get(base, Packing(base, TOGETHER[base]))
        byte = self.constant("b", TensorProto.INT32, BYTE)
        return self.node(f"{base}i", "Mul", self.rows(packing), byte)

    def rows(self, packing: Packing) -> str:
        """INT32 digits of every row: the sum of those of its first and of its last digits."""
        base, digits, key = packing.base, packing.digits, str(packing.levels)
        if packing.high > 1:
            numbers = packing.base * _digits(packing.high, digits)
            upper = self.constant(f"{key}a", TensorProto.INT32, numbers[:, None])
            lower, count = self.rows(Packing(base, digits)), BYTE * packing.numbers
        else:
            split = (digits + 1) // 2
            first, last = _digits(base, split), _digits(base, digits - split)
            upper = self.constant(f"{key}a", TensorProto.INT32, np.pad(last, ((0, 0), (split, 0)))[:, None])
            lower = self.constant(f"{key}c", TensorProto.INT32, np.pad(first, ((0, 0), (0, digits - split))))
            count = base**digits
        shape = self.constant(f"{key}r", TensorProto.INT64, (count, digits))
        return self.node(f"{key}t", "Reshape", self.node(f"{key}u", "Add", upper, lower), shape)


def _digits(base: int, count: int) -> NDArray[np.int64]:
    """Digits of the numbers of ``count`` digits, the lowest one first.

    >>> _digits(3, 2)[:4].tolist()
    [[0, 0], [1, 0], [2, 0], [0, 1]]
    """
    digits: NDArray[np.int64] = np.arange(base**count)[:, None] // base ** np.arange(count) % base
    return digits

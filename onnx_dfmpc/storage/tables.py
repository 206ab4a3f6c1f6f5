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

Tables are INT8, so that DequantizeLinear reads what integer kernels want. All layers of a model share them,
and they are computed from the digits of small numbers when the model is loaded: all together take 1.6 kB in
the file. Nothing here is younger than opset 13.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.storage.types import LayoutBuilder, small_tensor

BYTE = 256

Digits = Callable[[QuantizedWeight], NDArray[np.integer]]
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
        return {1: 1, 4: 4, 16: 2}[self.numbers]

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
    padded = np.zeros(-(-len(digits) // count) * count, np.int64)
    padded[: len(digits)] = digits
    packed: NDArray[np.uint8] = (padded.reshape(-1, count) @ base ** np.arange(count)).astype(np.uint8)
    return packed


def look_up(builder: LayoutBuilder, packing: Packing, digits: Digits, *, signed: bool) -> str:
    """Add packed codes and the nodes that unpack them; returns the name of the INT8 codes."""
    spec = builder.spec
    size = prod(spec.shape)
    groups = -(-size // packing.group)

    def low(weight: QuantizedWeight) -> NDArray[np.generic]:
        padded = np.zeros(groups * packing.group, np.int64)
        padded[:size] = digits(weight).ravel() % packing.base
        return pack(padded, packing.base, packing.digits)

    def high(weight: QuantizedWeight) -> NDArray[np.generic]:
        numbers = pack(digits(weight).ravel() // packing.base, packing.high, packing.digits)
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


# ------------------------------------------------------------------------------------------------------------
# what layers share


def shared_parts(names: Collection[str]) -> tuple[list[TensorProto], list[NodeProto]]:
    """Initializers and nodes that make the shared constants of layouts.

    ``q_8`` is the table of 8 levels, and ``q_8s`` that of signed codes, 4 less. ``q_4i`` has 256 times the
    digits of a byte to base 4. ``q_m`` is the shape -1, and ``q_0`` a zero.
    """
    if not names:
        return [], []
    (prefix,) = {name.rpartition("_")[0] for name in names}
    keys = {name.rpartition("_")[2] for name in names}
    parts = _Shared(prefix)
    for key in sorted(keys):
        if key == "m":
            parts.constant(key, TensorProto.INT64, [-1])
        elif key == "0":
            parts.constant(key, TensorProto.INT64, [0])
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

    def starts(self, base: int) -> str:
        """First rows of the parts of a table that numbers to a base choose."""
        packing = next(one for one in PACKINGS.values() if one.high == 1 and one.base == base)
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

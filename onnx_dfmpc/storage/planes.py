"""Codes of 3, 5, 6 and 7 bits in as many bits on disk: planes of 4, 2 and 1 bits.

    3 = UINT2 + 1 bit        5 = UINT4 + 1 bit        6 = UINT4 + UINT2        7 = UINT4 + UINT2 + 1 bit

The lowest bits are in the first plane; a plane at position p is shifted left by p, and all are joined by OR.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.storage.types import LayoutBuilder, storage_type, to_type

SPLITS: dict[int, tuple[tuple[int, ...], ...]] = {
    3: ((2, 1),),
    5: ((4, 1), (4, 2)),  # the second wastes a bit, but needs no whole bytes and fewer nodes
    6: ((4, 2),),
    7: ((4, 2, 1),),
}
"""Widths of the planes that hold codes of N bits, lowest first. 2, 4 and 8 bits have types of their own."""

UnsignedCodes = Callable[[QuantizedWeight], NDArray[np.integer]]


def splits(bits: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Ways to split ``size`` codes of ``bits`` bits; planes of single bits need whole bytes.

    >>> splits(5, 72), splits(5, 75), splits(4, 72)
    (((4, 1), (4, 2)), ((4, 2),), ())
    """
    return tuple(split for split in SPLITS.get(bits, ()) if 1 not in split or size % 8 == 0)


def label(split: tuple[int, ...]) -> str:
    """What a split looks like in the file.

    >>> label((4, 2, 1))
    'UINT4+UINT2+1 bit'
    """
    return "+".join("1 bit" if width == 1 else storage_type(width, signed=False).name for width in split)


def join(builder: LayoutBuilder, split: tuple[int, ...], codes: UnsignedCodes) -> str:
    """Add planes and the nodes that join them; returns the name of the UINT8 codes.

    All of the arithmetic is UINT8: ONNX Runtime keeps every intermediate result of constant folding until the
    model is loaded, and INT32 would make that 17 bytes per weight instead of 4. Its BitShift and BitwiseOr
    know UINT8 (its Add and Mul do not).
    """
    joined = ""
    for width, position in zip(split, accumulate(split, initial=0), strict=False):
        if width == 1:
            plane = _bit_plane(builder, position, codes)
        else:
            plane = _typed_plane(builder, width, position, codes)
        if joined:
            builder.needs(18, "BitwiseOr")
        joined = builder.node("BitwiseOr", joined, plane) if joined else plane
    return joined


def _typed_plane(builder: LayoutBuilder, width: int, position: int, codes: UnsignedCodes) -> str:
    """``width`` bits of every code from bit ``position`` up, stored in a type of that width."""
    kind, spec = storage_type(width, signed=False), builder.spec

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return to_type(codes(weight) >> position & kind.high, kind, spec.layer)

    stored = builder.integers("h" if position else "", kind, spec.shape, numbers)
    plane = builder.cast(stored, TensorProto.UINT8)
    if not position:
        return plane
    return builder.node("BitShift", plane, _shared(builder, f"{position}"), direction="LEFT")


def _bit_plane(builder: LayoutBuilder, position: int, codes: UnsignedCodes) -> str:
    """Bit ``position`` of every code, stored eight to a byte, since ONNX has no type of one bit.

    Gather unpacks a byte by taking its row of a table of 256 x 8 that all layers share, already shifted to
    ``position``. Shifts and masks in every layer would take more nodes than the bits save.
    """

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return np.packbits(codes(weight).ravel() >> position & 1, bitorder="little")

    shape = builder.spec.shape
    table = _shared(builder, f"t{position}")
    packed = builder.tensor("p", TensorProto.UINT8, (int(np.prod(shape)) // 8,), numbers)
    rows = builder.node("Gather", table, builder.cast(packed, TensorProto.INT32))  # indices cannot be UINT8
    return builder.node("Reshape", rows, builder.constant("r", TensorProto.INT64, shape))


def _shared(builder: LayoutBuilder, key: str) -> str:
    name = f"{builder.spec.names.prefix}_{key}"
    builder.shared.add(name)
    return name


def shared_parts(names: Collection[str]) -> tuple[list[TensorProto], list[NodeProto]]:
    """Initializers and nodes that make the shared constants of layouts: ``q_4``, the number 4, and ``q_t4``,
    the table that has the bits of byte i, each at position 4, in row i.

    The table is computed from small constants when the model is loaded, so that it takes no 2 kB in the file.
    """
    if not names:
        return [], []
    (prefix,) = {name.rpartition("_")[0] for name in names}
    keys = {name.rpartition("_")[2] for name in names}
    initializers: list[TensorProto] = []
    nodes: list[NodeProto] = []

    def constant(key: str, values: object) -> str:
        initializers.append(numpy_helper.from_array(np.asarray(values, np.uint8), f"{prefix}_{key}"))
        return initializers[-1].name

    def node(op_type: str, inputs: list[str], key: str, **attributes: str) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"{prefix}_{key}"], **attributes))
        return str(nodes[-1].output[0])

    positions = sorted({key.lstrip("t") for key in keys})
    numbers = {position: constant(position, int(position)) for position in positions}
    tables = sorted(key[1:] for key in keys if key.startswith("t"))
    if tables:
        every_byte = constant("a", np.arange(256)[:, None])
        places, one = constant("p", np.arange(8)), constant("1", 1)
        shifted = node("BitShift", [every_byte, places], "s", direction="RIGHT")
        bits = node("BitwiseAnd", [shifted, one], "t")
        for position in tables:
            node("BitShift", [bits, numbers[position]], f"t{position}", direction="LEFT")
    return initializers, nodes

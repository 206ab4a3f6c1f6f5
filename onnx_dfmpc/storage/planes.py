"""Codes of 3, 5, 6 and 7 bits in as many bits on disk: planes of 4, 2 and 1 bits, put together by integer
operations on constants.

    3 = UINT2 + 1 bit        5 = UINT4 + 1 bit        6 = UINT4 + UINT2        7 = UINT4 + UINT2 + 1 bit

The lowest bits are in the first plane. All of it is UINT8, since ONNX Runtime keeps every intermediate result
of constant folding until the model is loaded: with INT32 arithmetic that would be 17 bytes per weight instead
of 4.

ONNX has no type of one bit. Eight of them are a byte, and Gather takes the byte's row out of a table of 256 x
8 that all layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.storage.parts import LayoutBuilder
from onnx_dfmpc.storage.types import storage_type, to_type

SPLITS: dict[int, tuple[tuple[int, ...], ...]] = {
    3: ((2, 1),),
    5: ((4, 1), (4, 2)),
    6: ((4, 2),),
    7: ((4, 2, 1),),
}
"""Widths of the planes that hold codes of so many bits, lowest first."""

UnsignedCodes = Callable[[QuantizedWeight], NDArray[np.integer]]


def splits(bits: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Ways to split ``size`` codes of ``bits`` bits; planes of single bits need whole bytes.

    Examples
    --------
    >>> splits(5, 72), splits(5, 75), splits(4, 72)
    (((4, 1), (4, 2)), ((4, 2),), ())
    """
    return tuple(split for split in SPLITS.get(bits, ()) if 1 not in split or size % 8 == 0)


def label(split: tuple[int, ...]) -> str:
    """What a split looks like in the file.

    Examples
    --------
    >>> label((4, 2, 1))
    'UINT4+UINT2+1 bit'
    """
    return "+".join("1 bit" if width == 1 else storage_type(width, signed=False).name for width in split)


def join(
    builder: LayoutBuilder, split: tuple[int, ...], shape: tuple[int, ...], codes: UnsignedCodes, prefix: str
) -> str:
    """Add planes and the nodes that put them together; returns the name of the UINT8 codes.

    Parameters
    ----------
    builder : LayoutBuilder
    split : tuple of int
        Widths of the planes, lowest first.
    shape : tuple of int
        Of the weight.
    codes : callable
        Codes of a weight, 0 or more.
    prefix : str
        What the names of shared constants begin with.
    """
    joined = ""
    for width, position in zip(split, accumulate(split, initial=0), strict=False):
        part = (
            _bits(builder, position, shape, codes, prefix)
            if width == 1
            else _plane(builder, width, position, shape, codes, prefix)
        )
        if joined:
            builder.needs(18, "BitwiseOr")
        joined = builder.node("BitwiseOr", joined, part) if joined else part
    return joined


def _plane(
    builder: LayoutBuilder,
    width: int,
    position: int,
    shape: tuple[int, ...],
    codes: UnsignedCodes,
    prefix: str,
) -> str:
    kind = storage_type(width, signed=False)

    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return to_type(codes(weight) >> position & kind.high, kind, builder.where)

    name = builder.cast(builder.integers("h" if position else "", kind, shape, numbers), TensorProto.UINT8)
    if position:
        builder.shared.add(f"_{position}")
        name = builder.node("BitShift", name, f"{prefix}_{position}", direction="LEFT")
    return name


def _bits(
    builder: LayoutBuilder, position: int, shape: tuple[int, ...], codes: UnsignedCodes, prefix: str
) -> str:
    def numbers(weight: QuantizedWeight) -> NDArray[np.generic]:
        return np.packbits(codes(weight).ravel() >> position & 1, bitorder="little")

    builder.shared.add(f"_t{position}")
    packed = builder.slot("p", TensorProto.UINT8, (int(np.prod(shape)) // 8,), numbers)
    rows = builder.node("Gather", f"{prefix}_t{position}", builder.cast(packed, TensorProto.INT32))
    return builder.node("Reshape", rows, builder.constant("r", TensorProto.INT64, shape))


def shared_parts(keys: Collection[str], prefix: str) -> tuple[list[TensorProto], list[NodeProto]]:
    """Initializers and nodes behind the ``shared`` names of layouts.

    Parameters
    ----------
    keys : collection of str
        ``_p`` is the number p; ``_tp`` the table that has the bits of byte i, each at position p, in row i.
    prefix : str
        What the names begin with.
    """
    initializers: list[TensorProto] = []
    nodes: list[NodeProto] = []

    def constant(name: str, values: object) -> str:
        initializers.append(numpy_helper.from_array(np.asarray(values, np.uint8), f"{prefix}_{name}"))
        return initializers[-1].name

    def node(op_type: str, inputs: list[str], name: str, **attributes: str) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"{prefix}_{name}"], **attributes))
        return str(nodes[-1].output[0])

    numbers = {
        position: constant(position, int(position)) for position in sorted({key.lstrip("_t") for key in keys})
    }
    tables = sorted(key[2:] for key in keys if key.startswith("_t"))
    if tables:
        every_byte, places, one = (
            constant("a", np.arange(256)[:, None]),
            constant("p", np.arange(8)),
            constant("1", 1),
        )
        bits = node("BitwiseAnd", [node("BitShift", [every_byte, places], "s", direction="RIGHT"), one], "t")
        for position in tables:
            node("BitShift", [bits, numbers[position]], f"t{position}", direction="LEFT")
    return initializers, nodes

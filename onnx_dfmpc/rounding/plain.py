"""Nearest codes of a weight of any shape, a scale for every index of one axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.linalg.products import slabs
from onnx_dfmpc.rounding.grids import GridSpec, dequantize, some_rows
from onnx_dfmpc.rounding.rounding import quantize_rows
from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.spec.planned import stored_bits


def round_plain(weight: NDArray[np.floating], axis: int, bits: float) -> tuple[QuantizedWeight, float | None]:
    """Codes on a symmetric grid, and the SQNR of the weight in dB; None where it is all zero or exact."""
    first = np.moveaxis(weight, axis, 0)
    rows = first.reshape(1, len(first), -1).astype(np.float32, copy=False)
    codes = quantize_rows(rows, GridSpec("symmetric", bits), "nearest")
    stored = np.moveaxis(codes.codes.astype(np.int8, copy=False).reshape(first.shape), 0, axis)
    signal = noise = 0.0
    for part in slabs(rows):
        signal += float(np.square(rows[:, part]).sum())
        noise += float(np.square(rows[:, part] - dequantize(some_rows(codes, part))).sum())
    return QuantizedWeight(
        codes=np.ascontiguousarray(stored),
        scale=codes.scale[0].astype(np.float32),
        zero_point=None,
        bits=stored_bits(bits, "symmetric"),
        signed=True,
        axis=axis,
    ), 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None

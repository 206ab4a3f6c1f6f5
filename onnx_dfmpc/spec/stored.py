"""The numbers that go into the file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec.arrays import Array
from onnx_dfmpc.spec.matched import BatchNorm


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Integer codes and their grid, in the layout of the stored weight.

    ``W ~ scale * (codes - zero_point)`` broadcast along ``axis``; ``axis`` is None for one grid per tensor.

    Attributes
    ----------
    codes : int array, shape of the weight
        Within `widths.code_limits` of ``bits`` and ``signed``.
    scale : float32 array, shape (channels along axis,) or ()
    zero_point : int array like scale, or None for zero
    bits : float
        Nominal bits, one of `widths.WIDTHS`. Ternary is 1.58 bits.
    vector : bool
        Whether codes are the levels of rows of the table `vectors.VECTORS` of ``bits``: with the channels of
        ``axis`` in k parts, one row for the first channel of all parts, and so on.
    """

    codes: NDArray[np.integer]
    scale: Array
    zero_point: NDArray[np.integer] | None
    bits: float
    signed: bool
    axis: int | None
    vector: bool = False

    def dequantize(self) -> NDArray[np.float32]:
        """Float weight that the codes stand for, shape of ``codes``, as ONNX DequantizeLinear computes it."""
        along = (
            () if self.axis is None else tuple(-1 if d == self.axis else 1 for d in range(self.codes.ndim))
        )
        codes = self.codes.astype(np.float32)
        if self.zero_point is not None:
            codes = codes - np.reshape(self.zero_point, along).astype(np.float32)
        return codes * np.reshape(self.scale, along).astype(np.float32)


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """Everything rewrite needs to know about one layer.

    ``batch_norm`` replaces the parameters of the layer's BatchNormalization; ``bias`` (float32, shape
    (channels,)) replaces the layer's bias, and is added as a new one where there was none. None leaves what
    is there.
    """

    name: str
    weight: QuantizedWeight
    bias: NDArray[np.float32] | None = None
    batch_norm: BatchNorm | None = None
    gain: Array | None = None
    predicted_sqnr_db: float | None = None
    source: str = ""
    notes: tuple[str, ...] = field(default=())

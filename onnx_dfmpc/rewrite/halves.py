"""Which layers get scales and biases of 16 bits.

The float layer alone decides, so that the size of a file is known before anything is quantized. Where it says
no, as of the biases that take the mean off pictures of 0 to 255, numbers stay float32. So does a new bias
that turns out to be too large, where inputs are: then sizes are predicted once more (`Layer.large_bias`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.fold import LEVELS, MARGIN, factor_and_shift
from onnx_dfmpc.spec import Array, Layer
from onnx_dfmpc.spec.ops import to_rows
from onnx_dfmpc.storage.halves import MOST, STEP

TOLERANCE = 2.0**-11
"""Relative error of a number of 11 significant bits."""

LARGEST_BIAS = 8.0
"""Biases over what they are added to, root mean squares. At 8 the error is 56 dB below the output; shared
networks have 4 at most, but for layers that take the mean off pictures of 0..255 (YuNet: 71).
"""


@dataclass(frozen=True)
class Halves:
    """Whether scales and bias of a layer are to be float16 numbers."""

    scale: bool = False
    bias: bool = False


def halves_of(
    layer: Layer, weight: NDArray[np.floating], bias: NDArray[np.floating] | None, *, folded: bool
) -> Halves:
    """What of a float layer will be good enough in float16, its batch norm ``folded`` or not.

    ``weight`` has the shape and type of the file, ``bias`` has shape (channels,). A channel that is as good
    as silent, as weight decay leaves many, counts by its error beside the layer's largest one.
    """
    if weight.dtype != np.float32:
        return Halves()
    rows = to_rows(weight, layer)
    largest = np.maximum(rows.max(axis=2), -rows.min(axis=2)).ravel().astype(np.float64)
    if layer.batch_norm is None:
        factor: Array = np.ones(1)
        shift: Array = np.zeros(1) if bias is None else bias.astype(np.float64)
        # Of outputs, where the deviation of inputs is 1.
        deviation: Array = np.sqrt(np.einsum("grn,grn->gr", rows, rows)).ravel().astype(np.float64)
    else:
        factor, shift = factor_and_shift(layer.batch_norm, bias)
        deviation = np.abs(layer.batch_norm.gamma)
    after = largest * np.abs(factor)  # batch norm
    stored, step = (after, STEP) if folded else (largest, STEP * float(np.abs(factor).max()))
    most = MOST / MARGIN
    silent = LEVELS * step <= TOLERANCE * after.max() or not after.any()
    scale = bool(stored.max() <= most and silent)
    small = np.square(shift).mean() <= LARGEST_BIAS**2 * np.square(deviation).mean()
    return Halves(scale, bool(small and np.abs(shift).max() <= most and not layer.large_bias))

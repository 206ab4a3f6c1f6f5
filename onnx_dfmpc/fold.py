"""Batch norm into the numbers of the layer before it: exact, since a grid per channel takes any factor per
channel.

    gamma/sigma (W_q x + bias - mu) + beta = a W_q x + b        a = gamma/sigma        b = beta + a (bias -
    mu)

The codes stay and the scales become |a| s. Where a < 0, codes and zero point are reflected within their
range, q' = low + high - q: then q' - z' = -(q - z). Where a = 0, every code is the zero point, and the scale
is 1. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnx_dfmpc.spec import Array, BatchNorm, Layer, QuantizedLayer, QuantizedWeight
from onnx_dfmpc.spec.ops import to_rows
from onnx_dfmpc.spec.widths import code_limits

SMALLEST = {
    np.dtype(np.float32): float(np.finfo(np.float32).tiny),
    np.dtype(np.float16): float(np.finfo(np.float16).smallest_subnormal),
}
"""A channel with a smaller scale is silent: in float32 some runtimes take denormal numbers for zero, in
float16 it would become zero.
"""

MARGIN = 4.0
"""How far quantization and its repair may move a scale or a bias from what the float weight suggests.

Measured at 2 bits on eight networks with batch norm: the largest weight of a layer grew by up to 1.26 times,
the largest bias by up to 1.27. So 4 is safe; it decides something only in float16, near 65504.
"""

LEVELS = 256
"""Levels of 8 bits: no scale is multiplied with more."""


def fold(
    quantized: QuantizedLayer,
    layer: Layer,
    bias: NDArray[np.floating] | None,
    dtype: DTypeLike = np.float32,
    *,
    keeps_codes: bool = False,
) -> QuantizedLayer:
    """The same layer without its batch norm, with a new bias and a grid per channel.

    Its weight must have a grid per channel, or one that can become so: not that of a grouped ConvTranspose.
    Signed codes must be symmetric around 0. ``bias``, shape (channels,), is that of the float layer, for
    where ``quantized`` has no new one. ``dtype`` is the float type that the scales will have in the file:
    float32 or float16. With ``keeps_codes``, as where other layers read them too, no code changes: the scale
    is negative where the factor is, and 0 where that is.

    >>> norm = BatchNorm("bn", "b", *(np.array([v, v]) for v in (-2.0, 1.0, 0.0, 1.0)), epsilon=0.0)
    >>> layer = Layer("fc", "Gemm", "w", (2, 1), 0, 1, None, "", "x", "y", 2, norm)
    >>> codes, zeros = np.array([[0], [3]], np.uint8), np.uint8([1, 1])
    >>> weight = QuantizedWeight(codes, np.float32([1, 2]), zeros, bits=2, signed=False, axis=0)
    >>> folded = fold(QuantizedLayer("fc", weight), layer, None)
    >>> folded.weight.codes.ravel().tolist(), folded.weight.scale.tolist()
    ([3, 0], [2.0, 4.0])
    >>> folded.weight.dequantize().ravel().tolist(), folded.bias.tolist()
    ([2.0, -8.0], [1.0, 1.0])
    """
    norm = quantized.batch_norm or layer.batch_norm
    assert norm is not None, f"{layer.name} has no batch norm"
    factor, shift = factor_and_shift(norm, bias if quantized.bias is None else quantized.bias)
    keeps_codes = keeps_codes or quantized.weight.vector  # which are rounded the way that they will be
    weight = _scaled(quantized.weight, factor, layer.axis, SMALLEST[np.dtype(dtype)], keeps_codes)
    return replace(quantized, weight=weight, bias=shift.astype(np.float32), batch_norm=None)


def fits(layer: Layer, weight: NDArray[np.floating], bias: NDArray[np.floating] | None) -> bool:
    """Whether scales and bias will fit the float type of the weight, as far as the float layer tells.

    ``weight`` has the shape and type of the file, ``bias`` has shape (channels,). In float32 they always fit,
    but for numbers that no trained network has. In float16 small scales have few bits left: what that does to
    a weight has to be less than the rounding of the layer's largest one, since the outputs are rounded as
    coarsely.
    """
    assert layer.batch_norm is not None
    factor, shift = factor_and_shift(layer.batch_norm, bias)
    largest = np.abs(to_rows(weight, layer)).max(axis=2).ravel().astype(np.float64) * np.abs(factor)
    limits = np.finfo(weight.dtype)
    most, coarsest = float(limits.max) / MARGIN, LEVELS * SMALLEST[weight.dtype]
    return bool(
        (np.abs(shift) <= most).all()
        and (largest <= most).all()
        and (coarsest <= float(limits.eps) * largest.max() or not largest.any())
    )


def factor_and_shift(norm: BatchNorm, bias: NDArray[np.floating] | None) -> tuple[Array, Array]:
    """Factor and shift of batch norm after a bias, each of shape (channels,), in float64."""
    factor: Array = norm.gamma / norm.sigma
    return factor, norm.beta + factor * ((0.0 if bias is None else bias.astype(np.float64)) - norm.mean)


def _scaled(
    weight: QuantizedWeight, factor: Array, axis: int, smallest: float, keeps_codes: bool
) -> QuantizedWeight:
    """Weight times a factor per output channel."""
    along = tuple(-1 if d == axis else 1 for d in range(weight.codes.ndim))
    if keeps_codes:
        scale = factor * weight.scale
        silent = np.abs(scale) < smallest
        zero_point = weight.zero_point
        if zero_point is not None:
            zero_point = np.broadcast_to(zero_point, scale.shape)
        return replace(
            weight, scale=np.where(silent, 0, scale).astype(np.float32), zero_point=zero_point, axis=axis
        )
    scale = np.abs(factor) * weight.scale
    silent = scale < smallest
    ends = 0 if weight.signed else sum(code_limits(weight.bits, signed=False))  # lowest plus highest code
    given = 0 if weight.zero_point is None else weight.zero_point
    zeros = np.broadcast_to(given, scale.shape).astype(np.int16)
    zeros = np.where(factor < 0, ends - zeros, zeros)
    codes = weight.codes
    if (factor < 0).any() or silent.any():  # rare, and a copy of all codes
        codes = np.where((factor < 0).reshape(along), ends - codes.astype(np.int16), codes)
        codes = np.where(silent.reshape(along), zeros.reshape(along), codes)
    return replace(
        weight,
        codes=codes.astype(weight.codes.dtype, copy=False),
        scale=np.where(silent, 1, scale).astype(np.float32),
        zero_point=zeros.astype(weight.codes.dtype) if zeros.any() else None,
        axis=axis,
    )

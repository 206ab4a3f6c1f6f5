"""The rounding methods by name. A new one is one more entry of `ROUNDINGS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.linalg.matrices import Covariance
from onnx_dfmpc.linalg.products import slabs
from onnx_dfmpc.rounding.gptq import gptq, sketch
from onnx_dfmpc.rounding.grids import Codes, GridSpec, empty_codes, min_max, nearest, ternary
from onnx_dfmpc.rounding.squant import squant
from onnx_dfmpc.spec import Array

Sketch = Callable[[Array, Sequence[GridSpec], Covariance, int], list[Codes]]


@dataclass(frozen=True)
class RoundingMethod:
    """A way to choose the codes of a weight.

    ``codes(rows, grid, taps, covariance)`` are those of rows (g, r, n) with ``taps`` kernel taps per input
    channel on a scalar grid that is not ternary; the covariance of the inputs is None unless the method needs
    statistics. ``vectors(rows, grid, covariance, layers)`` are those on a grid of vectors, None where the
    method has none; the groups are those of so many layers, one after the other.
    ``sketch(rows, grids, covariance, layers)`` is a cheaper stand-in for predictions, on several grids.
    """

    codes: Callable[[Array, GridSpec, int, Covariance | None], Codes]
    needs_statistics: bool = False
    sketch: Sketch | None = None
    vectors: Callable[[Array, GridSpec, Covariance, int], Codes] | None = None


def quantize_rows(
    rows: Array,
    grid: GridSpec,
    rounding: str,
    *,
    taps: int = 1,
    covariance: Covariance | None = None,
    layers: int = 1,
) -> Codes:
    """Codes of rows (g, r, n) by one of `ROUNDINGS`; a ternary grid has thresholds of its own instead."""
    if grid.kind == "ternary":
        return ternary(rows, per_channel=grid.per_channel)
    method = ROUNDINGS[rounding]
    if grid.kind != "vector":
        return method.codes(rows, grid, taps, covariance)
    if method.vectors is None or covariance is None:
        raise ValueError(f"{rounding} has no vectors, or no covariance")
    return method.vectors(rows, grid, covariance, layers)


def quantize_alike(
    weights: Sequence[Array], grid: GridSpec, rounding: str, *, taps: int, covariances: Sequence[Array]
) -> list[Codes]:
    """`quantize_rows` of several weights of one shape and grid, one per channel, all at once.

    Groups are rounded independently of each other, so the groups of all weights can be rounded side by side:
    the time of small ones is that of the Python loop over their inputs.
    """
    rows, covariance = np.concatenate(weights), np.concatenate(covariances)
    layers = len(weights)
    together = quantize_rows(rows, grid, rounding, taps=taps, covariance=covariance, layers=layers)
    return split(together, layers)


def split(codes: Codes, parts: int) -> list[Codes]:
    """Codes of several weights, one after the other along the groups, apart."""
    arrays = (np.split(array, parts) for array in (codes.codes, codes.scale, codes.zero_point))
    return [
        Codes(own, scale, zero_point, codes.limits) for own, scale, zero_point in zip(*arrays, strict=True)
    ]


def _nearest(rows: Array, grid: GridSpec, taps: int, covariance: Covariance | None) -> Codes:
    scale, zero_point = min_max(rows, grid)
    codes = empty_codes(rows, grid.limits)
    for part in slabs(rows):
        codes[:, part] = nearest(rows[:, part], scale[:, part], zero_point[:, part], grid.limits)
    return Codes(codes, scale, zero_point, grid.limits)


def _squant(rows: Array, grid: GridSpec, taps: int, covariance: Covariance | None) -> Codes:
    scale, zero_point = min_max(rows, grid)
    codes = empty_codes(rows, grid.limits)
    for part in slabs(rows):
        codes[:, part] = squant(rows[:, part], scale[:, part], zero_point[:, part], grid.limits, taps)
    return Codes(codes, scale, zero_point, grid.limits)


def _gptq(rows: Array, grid: GridSpec, taps: int, covariance: Covariance | None) -> Codes:
    if covariance is None:
        raise ValueError("gptq needs the covariance of the inputs")
    return gptq(rows, grid, covariance)


ROUNDINGS: dict[str, RoundingMethod] = {
    "nearest": RoundingMethod(_nearest),
    "squant": RoundingMethod(_squant),
    "gptq": RoundingMethod(_gptq, needs_statistics=True, sketch=sketch, vectors=gptq),
}

"""Rounding that makes the error of the output small, not that of the weights (after GPTQ, Frantar et al., arXiv
2210.17323).

A row w that becomes wq = scale (codes - zero_point) moves its output by e'x, e = wq - w. Bias correction takes
off the mean of that. With H the covariance of the inputs x, what is left to make small is

    Var(e'x) = e' H e = |L e|^2        L'L = H, L lower triangular

In units of the scale the error is d = e / scale = codes - (w / scale + zero_point), and the best code of weight
j, the others given, is the nearest one to

    codes_j - (M d)_j        M has ones on its diagonal

M = H with row j divided by H_jj minimises d'Hd over code j given all others. M = L with row j divided by L_jj
makes element j of L d zero given those before j. `sweep` goes through the inputs once, moves each to that
code, and keeps the residual M d up to date. It is the whole of two methods:

  feedback   M from L, starting at the float weights, so that d = 0: weights are rounded one after the other,
             and each one's error is moved to those that are still float. That is GPTQ.
  descend    M from H, starting at codes: coordinate descent. A step lowers e'He or leaves it.

`gptq` searches the grid around them:

  1. feedback on grids that cover several shares of a row's range; the one of the highest correlation stays
  2. with few levels, the zero point one step to either side, at that share
  3. the scale that minimises |L e| for these codes, in closed form
  4. coordinate descent on the grid that was found

Rows are independent of each other, and so are groups. Weights are columns here, (g, n, r): one input of all
rows is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.linalg.matrices import Covariance, Matrix, matrix
from onnx_dfmpc.rounding.grids import Codes, GridSpec, min_max
from onnx_dfmpc.spec import Array

DAMPING = 0.01
"""Share of its mean diagonal that is added to H before it is factored: that of GPTQ."""

RATIOS = {2: (0.55, 0.65, 0.75, 0.85, 0.95), 3: (0.6, 0.7, 0.8, 0.9, 1.0), 4: (0.75, 0.85, 0.95, 1.0)}
"""Shares of the range of a row that its grid may cover: the fewer levels, the more it pays to clip. Above 4
bits it does not.
"""

ZERO_POINT_STEPS = {2: (-1, 1), 3: (-1, 1)}
"""Steps by which the zero point may move from where the range of the row puts it: with few levels, one more on
the side of the many small weights may be worth more than the end of the other side.
"""

SWEEPS = 4
"""Most passes of coordinate descent."""

SKETCH_RATIO = {2: 0.75, 3: 0.85, 4: 0.95}
"""The share of the range for a `sketch`: one of those that the search tries, near the middle."""

MOST_WEIGHTS = 1 << 20
"""Weights times grids that are rounded at once. A pass keeps half a dozen float64 arrays of that size."""

LEAF = 8
"""Inputs that `sweep` visits one by one, unless the grain of the matrix is coarser."""


def gptq(rows: Array, grid: GridSpec, covariance: Covariance) -> Codes:
    """Codes of rows (g, r, n) for inputs of a covariance, on an asymmetric or symmetric grid."""
    g, r, n = rows.shape
    ratios = RATIOS.get(grid.bits, (1.0,))
    steps: tuple[int, ...] = ()
    if grid.kind == "asymmetric" and grid.per_channel:
        steps = ZERO_POINT_STEPS.get(grid.bits, ())
    factor, unit_covariance = CholeskyFactor.of(covariance), matrix(covariance).unit_diagonal()
    widest, middle = (array.astype(np.float64) for array in min_max(rows, grid))
    codes, scale, zero_point = np.empty_like(rows), np.empty((g, r)), np.empty((g, r))
    # A grid for the whole tensor is chosen by all of its rows, so they have to be rounded together.
    slab = max(1, MOST_WEIGHTS // (g * n * len(ratios))) if grid.per_channel else r
    for start in range(0, r, slab):
        part = slice(start, start + slab)
        weights = rows[:, part].transpose(0, 2, 1).astype(np.float64)
        responses = Responses.of(weights, factor)
        scales = np.multiply.outer(ratios, widest[:, part])
        best = _try(weights, factor, responses, scales, middle[None, :, part], grid).best(grid.per_channel)
        if steps:
            moved = np.clip(np.add.outer(steps, best.zero_point[0]), *grid.limits)
            others = _try(weights, factor, responses, best.scale, moved, grid)
            best = best.and_also(others).best(grid.per_channel)
        scale[:, part] = best.scale[0]
        if grid.per_channel:
            scale[:, part] *= responses.best_scale(best.error[0])
        zero_point[:, part] = best.zero_point[0]
        levels = descend(
            weights,
            unit_covariance,
            best.codes[0],
            scale[:, part],
            zero_point[:, part],
            *grid.limits,
            sweeps=SWEEPS,
        )
        codes[:, part] = levels.transpose(0, 2, 1)
    return Codes(codes, scale, zero_point, *grid.limits)


def sketch(rows: Array, grids: Sequence[GridSpec], covariance: Covariance) -> list[Codes]:
    """Codes of rows (g, r, n) on each grid by one pass of error feedback, without a search.

    About 1 dB noisier than `gptq`, much the same for every layer, and the covariance is factored once for all.
    """
    weights, factor = rows.transpose(0, 2, 1), CholeskyFactor.of(covariance)
    sketched = []
    for grid in grids:
        widest, zero_point = min_max(rows, grid)
        scale = SKETCH_RATIO.get(grid.bits, 1.0) * widest
        levels, _ = feedback(weights, factor, scale, zero_point, *grid.limits)
        sketched.append(Codes(levels.transpose(0, 2, 1), scale, zero_point, *grid.limits))
    return sketched


@dataclass(frozen=True, eq=False)
class CholeskyFactor:
    """L, lower triangular with L'L = H damped: its rows divided by its diagonal, and the diagonal (g, n)."""

    unit: Matrix
    diagonal: Array

    @classmethod
    def of(cls, covariance: Covariance) -> CholeskyFactor:
        """Factor of a covariance."""
        factor = matrix(covariance).damped(DAMPING).cholesky()
        return cls(factor.unit_diagonal(), factor.diagonal())

    def times(self, columns: Array) -> Array:
        """L times columns (g, n, r)."""
        every = slice(0, self.unit.inputs)
        return self.unit.part(every, every, columns) * self.diagonal[..., None]


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses y = L w (g, n, r) of float weights, and their squared norms <w, w> (g, r).

    <u, v> = u' H v is the covariance of what the rows u and v put out.
    """

    values: Array
    norm: Array

    @classmethod
    def of(cls, weights: Array, factor: CholeskyFactor) -> Responses:
        """Responses of weights (g, n, r)."""
        values = factor.times(weights)
        return cls(values, _inner(values, values))

    def products(self, error: Array) -> tuple[Array, Array]:
        """<w, wq> and <wq, wq>, each of shape (g, r), for an error L (wq - w) of shape (g, n, r)."""
        mixed = _inner(self.values, error)
        return self.norm + mixed, self.norm + 2 * mixed + _inner(error, error)

    def correlation(self, error: Array) -> Array:
        """Squared correlation of w'x and wq'x, shape (g, r); 0 where they oppose each other.

        This, not |L e|, picks a grid: a factor per row is free, since the scale and then the gain are fitted
        to the codes, and 1 - correlation is the error that the best factor leaves.
        """
        across, own = self.products(error)
        squared: Array = np.where(across > 0, across, 0) ** 2 / np.maximum(
            own * self.norm, np.finfo(np.float32).tiny
        )
        return squared

    def best_scale(self, error: Array) -> Array:
        """Factor per row of wq that minimises |L e|, shape (g, r); 1 where none helps."""
        across, own = self.products(error)
        return np.where((across > 0) & (own > 0), across / np.where(own > 0, own, 1), 1)


def _inner(a: Array, b: Array) -> Array:
    product: Array = np.einsum("gnr,gnr->gr", a, b)
    return product


@dataclass(frozen=True, eq=False)
class _Trials:
    """Rows rounded on t grids: codes and error L e (t, g, n, r); scale, zero point, squared correlation (t, g, r)."""

    codes: Array
    error: Array
    scale: Array
    zero_point: Array
    correlation: Array

    def best(self, per_channel: bool) -> _Trials:
        """The trial (t = 1) that suits each row best, or all rows on average; the first one of equals."""
        score = self.correlation
        if not per_channel:
            score = np.broadcast_to(score.mean(axis=(1, 2), keepdims=True), score.shape)
        choice = score.argmax(axis=0)[None]
        of_rows = choice[:, :, None]
        return _Trials(
            np.take_along_axis(self.codes, of_rows, 0),
            np.take_along_axis(self.error, of_rows, 0),
            np.take_along_axis(self.scale, choice, 0),
            np.take_along_axis(self.zero_point, choice, 0),
            np.take_along_axis(self.correlation, choice, 0),
        )

    def and_also(self, others: _Trials) -> _Trials:
        """These trials, then others."""
        return _Trials(
            np.concatenate((self.codes, others.codes)),
            np.concatenate((self.error, others.error)),
            np.concatenate((self.scale, others.scale)),
            np.concatenate((self.zero_point, others.zero_point)),
            np.concatenate((self.correlation, others.correlation)),
        )


def _try(
    weights: Array,
    factor: CholeskyFactor,
    responses: Responses,
    scale: Array,
    zero_point: Array,
    grid: GridSpec,
) -> _Trials:
    """Error feedback of weights (g, n, r) on the grids of scales and zero points (t, g, r)."""
    scale, zero_point = np.broadcast_arrays(scale, zero_point)
    trials = len(scale)
    # As t r rows in one sweep: its cost is that of its Python loop over inputs until there are many rows.
    codes, error = feedback(
        np.tile(weights, trials),
        factor,
        np.concatenate(scale, axis=1),
        np.concatenate(zero_point, axis=1),
        *grid.limits,
    )
    errors = np.stack(np.split(error, trials, axis=2))
    correlation = np.stack([responses.correlation(one) for one in errors])
    return _Trials(np.stack(np.split(codes, trials, axis=2)), errors, scale, zero_point, correlation)


def feedback(
    weights: Array, factor: CholeskyFactor, scale: Array, zero_point: Array, low: int, high: int
) -> tuple[Array, Array]:
    """Error feedback for weights (g, n, r) on grids (g, r): codes and the error of the response L e, (g, n, r)."""
    codes = (weights / scale[:, None] + zero_point[:, None]).astype(np.float64)
    residual = np.zeros_like(codes)  # of M d: nothing has been rounded yet
    sweep(factor.unit, codes, residual, low, high, forward_only=True)
    residual *= factor.diagonal[..., None] * scale[:, None]
    return codes, residual


def descend(
    weights: Array,
    unit_covariance: Matrix,
    codes: Array,
    scale: Array,
    zero_point: Array,
    low: int,
    high: int,
    *,
    sweeps: int,
) -> Array:
    """Coordinate descent of e'He from codes (g, n, r), for at most that many sweeps: codes (g, n, r)."""
    every = slice(0, unit_covariance.inputs)
    codes = codes.astype(np.float64)
    residual = unit_covariance.part(every, every, codes - (weights / scale[:, None] + zero_point[:, None]))
    for sweeps_left in reversed(range(sweeps)):
        if not sweep(unit_covariance, codes, residual, low, high, forward_only=sweeps_left == 0):
            break
    return codes


def sweep(
    unit: Matrix, values: Array, residual: Array, low: int, high: int, *, forward_only: bool = False
) -> bool:
    """Move each weight in turn to its best code given the others, in place; whether any moved.

    ``values`` (g, n, r), float64, are codes, or weights in units of codes, and become codes. ``residual`` is
    M d of them, before and after. With ``forward_only`` it is brought up to date only for the inputs that are
    still to come: all that a lower triangular M has, and all that the last sweep needs.
    """
    steps = np.empty_like(values)
    return _sweep_part(unit, values, residual, steps, low, high, slice(0, unit.inputs), forward_only)


def _sweep_part(
    unit: Matrix,
    values: Array,
    residual: Array,
    steps: Array,
    low: int,
    high: int,
    inputs: slice,
    forward_only: bool,
) -> bool:
    """`sweep` over a range of inputs, by halves; ``steps`` receives how far each moved.

    A step changes the residual of all inputs. One at a time that is n rank-one updates of the whole array; here
    the steps of one half reach the other in one matrix product, and only a leaf is done one by one.
    """
    grains = (inputs.stop - inputs.start) // unit.grain
    if inputs.stop - inputs.start <= LEAF or grains == 1:
        block = unit.block(inputs.start, inputs.stop).astype(np.float64)
        return _sweep_leaf(block, values[:, inputs], residual[:, inputs], steps[:, inputs], low, high)
    middle = inputs.start + grains // 2 * unit.grain
    first, second = slice(inputs.start, middle), slice(middle, inputs.stop)
    first_moved = _sweep_part(unit, values, residual, steps, low, high, first, forward_only)
    if first_moved:
        residual[:, second] += unit.part(second, first, steps[:, first])
    second_moved = _sweep_part(unit, values, residual, steps, low, high, second, forward_only)
    if second_moved and not forward_only:
        residual[:, first] += unit.part(first, second, steps[:, second])
    return first_moved or second_moved


def _sweep_leaf(block: Array, values: Array, residual: Array, steps: Array, low: int, high: int) -> bool:
    for j in range(values.shape[1]):
        code = np.rint(values[:, j] - residual[:, j])
        np.minimum(np.maximum(code, low, out=code), high, out=code)
        step = np.subtract(code, values[:, j], out=steps[:, j])
        values[:, j] = code
        residual += block[:, :, j, None] * step[:, None]
    return bool(steps.any())

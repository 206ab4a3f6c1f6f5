"""Rounding that makes the error of the output small, not that of the weights (after GPTQ, Frantar et al.,
arXiv 2210.17323).

A row w that becomes wq = scale (codes - zero_point) moves its output by e'x, e = wq - w. Bias correction
takes off the mean of that. With H the covariance of the inputs x, what is left to make small is

    Var(e'x) = e' H e = |L e|^2        L'L = H, L lower triangular

In units of the scale the error is d = e / scale = codes - (w / scale + zero_point), and the best code of
weight j, the others given, is the nearest one to

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
  4. coordinate descent on that grid

Doing 3 and 4 again and again gains 0.03 dB. Rows are independent of each other, and so are groups. Weights
are columns here, (g, n, r): one input of all rows is contiguous.

Numbers at the constants are output SQNR in dB of ResNet-20 in 2 and in 3 bits, on training images, as
`python -m benchmarks.constants` measures them; the values here have 12.00 and 18.75.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.linalg.low_rank import SemiSeparable, Unit, multiply
from onnx_dfmpc.linalg.matrices import Covariance, Dense, Kronecker, matrix
from onnx_dfmpc.linalg.products import product
from onnx_dfmpc.rounding.grids import Codes, GridSpec, empty_codes, first_grid
from onnx_dfmpc.rounding.levels import WORKING, Levels, levels_of
from onnx_dfmpc.spec import Array
from onnx_dfmpc.spec.vectors import VECTORS

DAMPING = 0.01
"""Share of its mean diagonal that is added to H before it is factored: that of GPTQ. Flat: 0.0001 has 12.07
and 18.76, 0.05 has 11.96 and 18.81.
"""

RATIOS: dict[float, tuple[float, ...]] = {
    1.58: (0.45, 0.55, 0.65, 0.75, 0.85),
    2: (0.55, 0.65, 0.75, 0.85, 0.95),
    2.58: (0.55, 0.65, 0.75, 0.85, 0.95),
    3: (0.6, 0.7, 0.8, 0.9, 1.0),
    4: (0.75, 0.85, 0.95, 1.0),
}
"""Shares of the range of a row that its grid may cover: the fewer levels, the more it pays to clip. Above 4
bits it does not. The whole range alone has 10.19 and 17.83, one share (0.75, 0.8) 11.64 and 18.41, eleven
shares from 0.5 to 1 have 11.98 and 18.67. At 1.58 bits, the mean over ResNet-20, ResNet-8 and
ShuffleNetV2 is 7.71 (with shares 0.1 lower or higher 7.2 to 7.45, with the whole range 5.53); at 2.58 it is
13.96 (13.79 and 12.52).
"""

ZERO_POINT_STEPS: dict[float, tuple[int, ...]] = {1.58: (-1, 1), 2: (-1, 1), 2.58: (-1, 1), 3: (-1, 1)}
"""Steps by which the zero point may move from where the range of the row puts it: with few levels, one more
on the side of the many small weights may be worth more than the end of the other side. A
small effect of either sign: without it ResNet-20 has 12.31 and 18.75, ShuffleNetV2 5.83 and 13.19 instead of
5.88 and 13.26. With steps of 2 as well, 5.67 and 13.26.
"""

VECTOR_RATIOS: dict[bool, tuple[tuple[float, ...], tuple[float, ...]]] = {
    False: ((0.8, 0.95, 1.15), (0.88, 1.05, 1.25)),
    True: ((0.9, 1.1, 1.4), (1.0, 1.25, 1.6)),
}
"""For the rows of a table, up to 3 bits and above: factors of the scale by the root mean square of a row
whose weights count as their inputs vary, and of that by the plain one. Where all inputs vary alike, the two
are the same and the factors lie between each other. Where some hardly vary, the first alone is 4 dB better
than the second (a layer of UltraFace); where inputs correlate strongly, up to 1.5 dB worse. More bits mean
rows for weights far out, which the scale has to let them reach.
"""

SWEEPS = 2
"""Most passes of coordinate descent, of two seeds at 2 and 3 bits: one has up to 0.4 dB less (ResNet-8), four
have up to 0.2 dB more (ResNet-56).
"""

SKETCH_RATIO: dict[float, float] = {1.58: 0.65, 2: 0.75, 2.58: 0.8, 3: 0.85, 4: 0.95}
"""Share of the range of a row for a `sketch`: near the middle of what the search tries. Not studied."""

MOST_WEIGHTS = 1 << 20
"""Weights times grids that are rounded at once. A pass keeps half a dozen arrays of that size."""

MANY_INPUTS, MOST_OF_MANY = 4096, 1 << 23
"""With more inputs, so many weights times grids: a pass is a Python loop over the inputs, however few rows
there are. Speed and memory alone.
"""

LEAF = 32
"""Inputs that `sweep` visits one by one, unless the grain of the matrix is coarser. Speed alone."""


def gptq(rows: Array, grid: GridSpec, covariance: Covariance, layers: int = 1) -> Codes:
    """Codes of rows (g, r, n) for inputs of a covariance, on any grid but a ternary one.

    The groups may be those of several ``layers`` of one shape, one after the other.
    """
    g, r, n = rows.shape
    first, middle = _grids(rows, grid, covariance)
    levels, tried = levels_of(grid, layers), levels_of(grid, layers, len(first))
    steps: tuple[int, ...] = ()
    if grid.kind == "asymmetric" and grid.per_channel:
        steps = ZERO_POINT_STEPS.get(grid.bits, ())
    factor = CholeskyFactor.of(covariance)
    unit = matrix(covariance).unit_diagonal().astype(WORKING)
    codes, scale, zero_point = empty_codes(rows, grid.limits), np.empty((g, r)), np.empty((g, r))
    most = MOST_WEIGHTS if n <= MANY_INPUTS else MOST_OF_MANY
    for part in _parts(r, max(1, most // (g * n * len(first))), grid, g):
        weights = rows[:, part].transpose(0, 2, 1).astype(WORKING)
        responses = Responses.of(weights, factor)
        ranges = _try(responses, first[:, :, part], middle[None, :, part], tried)
        best = _best(levels, ranges)
        if steps:
            moved = np.clip(np.add.outer(np.array(steps, WORKING), best.zero_point[0]), *grid.limits)
            others = _try(responses, best.scale, moved, levels)
            best = _best(levels, best, others)
        scale[:, part] = best.scale[0]
        # One scale for the whole tensor has no room for a factor per row.
        if grid.per_channel:
            scale[:, part] *= responses.best_scale(best.error[0])
        zero_point[:, part] = best.zero_point[0]
        chosen = scale[:, part], zero_point[:, part], levels
        found = descend(weights, unit, best.codes[0], *chosen, SWEEPS)
        codes[:, part] = found.transpose(0, 2, 1)
    return Codes(codes, scale, zero_point, grid.limits)


def _grids(rows: Array, grid: GridSpec, covariance: Covariance) -> tuple[Array, Array]:
    """Scales (t, g, r) to try, and the zero point (g, r) of all."""
    scale, zero_point = first_grid(rows, grid)
    if grid.kind != "vector":
        scales = np.multiply.outer(np.array(RATIOS.get(grid.bits, (1.0,))), scale)
    else:
        weighed, _ = first_grid(rows, grid, _variances(covariance))
        factors = [np.array(some) for some in VECTOR_RATIOS[grid.bits > 3]]
        scales = np.concatenate(
            [np.multiply.outer(factors[0], weighed), np.multiply.outer(factors[1], scale)]
        )
    return scales.astype(WORKING), zero_point.astype(WORKING)


def _variances(covariance: Covariance) -> Array:
    """Of the inputs, shape (g, n), none of them 0."""
    return matrix(covariance).damped(DAMPING).diagonal()


def _parts(r: int, most: int, grid: GridSpec, groups: int) -> list[Part]:
    """Rows to round at once: what shares a grid, or a row of a table, stays together."""
    if not grid.per_channel:
        return [slice(0, r)]
    if grid.kind != "vector":
        return [slice(start, start + most) for start in range(0, r, most)]
    k = VECTORS[grid.bits].length
    each = -(-r // k)
    if groups > 1 or r <= most or each < k:  # channels of one row of a table may be of different groups
        return [slice(0, r)]
    starts = np.arange(k)[:, None] * each
    blocks = max(1, most // k)
    parts = [starts + np.arange(start, min(start + blocks, each)) for start in range(0, each, blocks)]
    return [part[part < r] for part in parts]


def sketch(rows: Array, grids: Sequence[GridSpec], covariance: Covariance, layers: int = 1) -> list[Codes]:
    """Codes of rows (g, r, n) on each grid by one pass of error feedback, without a search.

    About 1 dB noisier than `gptq`, and much the same for every layer.
    """
    weights, factor = rows.transpose(0, 2, 1).astype(WORKING), CholeskyFactor.of(covariance)
    sketched = []
    for grid in grids:
        widest, zero_point = (array.astype(WORKING) for array in first_grid(rows, grid))
        if grid.kind == "vector":
            weighed, _ = first_grid(rows, grid, _variances(covariance))
            middle = float(np.median(np.concatenate(VECTOR_RATIOS[grid.bits > 3])))
            scale = (middle * np.sqrt(widest * weighed)).astype(WORKING)
        else:
            scale = SKETCH_RATIO.get(grid.bits, 1.0) * widest
        codes, _ = feedback(weights, factor, scale, zero_point, levels_of(grid, layers))
        sketched.append(Codes(codes.transpose(0, 2, 1), scale, zero_point, grid.limits))
    return sketched


Part = slice | NDArray[np.intp]
"""Some rows."""

Swept = Dense | Kronecker | Unit
"""A matrix M with ones on its diagonal."""


@dataclass(frozen=True, eq=False)
class CholeskyFactor:
    """L, lower triangular with L'L = H damped: its rows divided by its diagonal, and the diagonal (g, n)."""

    unit: Dense | Kronecker | SemiSeparable
    diagonal: Array

    @classmethod
    def of(cls, covariance: Covariance) -> CholeskyFactor:
        """Factor of a covariance."""
        factor = matrix(covariance).damped(DAMPING).cholesky()
        return cls(factor.unit_diagonal().astype(WORKING), factor.diagonal().astype(WORKING))

    def times(self, columns: Array) -> Array:
        """L times columns (g, n, r)."""
        return _times(self.unit, columns) * self.diagonal[..., None]


@dataclass(frozen=True, eq=False)
class Responses:
    """Float weights w and their responses y = L w, both (g, n, r), and squared norms <w, w> (g, r).

    <u, v> = u' H v is the covariance of the outputs of rows u and v.
    """

    weights: Array
    factor: CholeskyFactor
    values: Array
    norm: Array

    @classmethod
    def of(cls, weights: Array, factor: CholeskyFactor) -> Responses:
        """Responses of weights (g, n, r)."""
        values = factor.times(weights)
        return cls(weights, factor, values, _inner(values, values))

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
    """Codes and error L e (t, g, n, r) of t grids: scale, zero point and squared correlation (t, g, r)."""

    codes: Array
    error: Array
    scale: Array
    zero_point: Array
    correlation: Array


def _best(levels: Levels, *trials: _Trials) -> _Trials:
    """The trial (t = 1) that suits best, each row or those that have to agree; the first one of equals."""
    score = levels.shared(np.concatenate([some.correlation for some in trials]))
    choice = score.argmax(axis=0)[None]

    def select(arrays: list[Array]) -> Array:
        together = np.concatenate(arrays)
        return np.take_along_axis(together, choice[:, :, None] if together.ndim == 4 else choice, 0)

    return _Trials(
        select([some.codes for some in trials]),
        select([some.error for some in trials]),
        select([some.scale for some in trials]),
        select([some.zero_point for some in trials]),
        select([some.correlation for some in trials]),
    )


def _try(responses: Responses, scale: Array, zero_point: Array, levels: Levels) -> _Trials:
    """Error feedback on the grids of scales and zero points (t, g, r)."""
    scale, zero_point = np.broadcast_arrays(scale, zero_point)
    trials = len(scale)
    # As t r rows in one sweep: until there are many rows, its time is that of the Python loop over inputs.
    weights = np.tile(responses.weights, trials)
    grids = np.concatenate(scale, axis=1), np.concatenate(zero_point, axis=1)
    codes, error = feedback(weights, responses.factor, *grids, levels)
    errors = np.stack(np.split(error, trials, axis=2))
    correlation = np.stack([responses.correlation(one) for one in errors])
    return _Trials(np.stack(np.split(codes, trials, axis=2)), errors, scale, zero_point, correlation)


def feedback(
    weights: Array, factor: CholeskyFactor, scale: Array, zero_point: Array, levels: Levels
) -> tuple[Array, Array]:
    """Error feedback of weights (g, n, r) on grids (g, r): codes, and the error L e of the responses."""
    codes = (weights / scale[:, None] + zero_point[:, None]).astype(WORKING)
    residual = np.zeros_like(codes)  # of M d: nothing has been rounded yet
    sweep(factor.unit, codes, residual, levels, forward_only=True)
    residual *= factor.diagonal[..., None] * scale[:, None]
    return codes, residual


def descend(
    weights: Array, unit: Swept, codes: Array, scale: Array, zero_point: Array, levels: Levels, sweeps: int
) -> Array:
    """Coordinate descent of e'He from codes (g, n, r), in at most ``sweeps``, fewer if one moves nothing."""
    codes = codes.astype(WORKING)
    residual = _times(unit, codes - (weights / scale[:, None] + zero_point[:, None]))
    # Nobody reads the residual of the last sweep, which keeps it up to date only ahead of itself.
    for sweeps_left in reversed(range(sweeps)):
        if not sweep(unit, codes, residual, levels, forward_only=sweeps_left == 0):
            break
    return codes


def _times(unit: Swept, columns: Array) -> Array:
    """M times columns (g, n, m)."""
    if isinstance(unit, Unit):
        return multiply(unit, columns)
    every = slice(0, unit.inputs)
    return unit.part(every, every, columns)


def sweep(unit: Swept, values: Array, residual: Array, levels: Levels, *, forward_only: bool = False) -> bool:
    """Move each weight in turn to its best code given the others, in place; whether any moved.

    ``values`` (g, n, r) are codes, or weights in units of codes, and become codes. ``residual`` is
    M d of them, before and after. With ``forward_only`` it is brought up to date only for the inputs that are
    still to come: all that a lower triangular M has, and all that the last sweep needs.
    """
    steps = np.empty_like(values)
    if isinstance(unit, Unit):
        return _sweep_directions(unit, values, residual, steps, levels, forward_only)
    return _sweep_part(unit, values, residual, steps, levels, slice(0, unit.inputs), forward_only)


def _sweep_directions(
    unit: Unit, values: Array, residual: Array, steps: Array, levels: Levels, forward_only: bool
) -> bool:
    """`sweep` where M is a product of a few directions: what the steps so far do is known in these."""
    moved, dtype = False, values.dtype
    leaves = [slice(start, min(start + LEAF, unit.inputs)) for start in range(0, unit.inputs, LEAF)]
    for order in (leaves,) if forward_only else (leaves, leaves[::-1]):
        inner = np.zeros((len(values), unit.left.shape[2], values.shape[2]), dtype)
        for leaf in order:
            residual[:, leaf] += product(unit.left[:, leaf], inner, dtype)
            if order is leaves:
                block = unit.block(leaf.start, leaf.stop)
                moved |= _sweep_leaf(block, values[:, leaf], residual[:, leaf], steps[:, leaf], levels)
            inner += product(unit.right[:, leaf].transpose(0, 2, 1), steps[:, leaf], dtype)
    return moved


def _sweep_part(
    unit: Dense | Kronecker,
    values: Array,
    residual: Array,
    steps: Array,
    levels: Levels,
    part: slice,
    forward_only: bool,
) -> bool:
    """`sweep` over a range of inputs, by halves; ``steps`` receives how far each moved.

    A step changes the residual of all inputs: one at a time, that is n rank-one updates of the whole array.
    Here the steps of one half reach the other in one matrix product, and only leaves go one by one.
    """
    grains = (part.stop - part.start) // unit.grain
    if part.stop - part.start <= LEAF or grains == 1:
        # A view of a few columns: what is outside of the leaf gets its steps from the products above it.
        block = unit.block(part.start, part.stop)
        return _sweep_leaf(block, values[:, part], residual[:, part], steps[:, part], levels)
    middle = part.start + grains // 2 * unit.grain
    first, second = slice(part.start, middle), slice(middle, part.stop)
    first_moved = _sweep_part(unit, values, residual, steps, levels, first, forward_only)
    if first_moved:
        residual[:, second] += unit.part(second, first, steps[:, first])
    second_moved = _sweep_part(unit, values, residual, steps, levels, second, forward_only)
    if second_moved and not forward_only:
        residual[:, first] += unit.part(first, second, steps[:, second])
    return first_moved or second_moved


def _sweep_leaf(block: Array, values: Array, residual: Array, steps: Array, levels: Levels) -> bool:
    """`sweep` over a few inputs, one after the other: the residual of each is that from outside of the leaf,
    and what the steps before it in the leaf add.
    """
    for j in range(values.shape[1]):
        code = values[:, j] - residual[:, j]
        if j:
            code -= (block[:, j, None, :j] @ steps[:, :j])[:, 0]
        levels.round(code)
        np.subtract(code, values[:, j], out=steps[:, j])
        values[:, j] = code
    if not steps.any():
        return False
    residual += block @ steps
    return True

"""One pass over the inputs of a layer, in which every weight moves to its best level given those that moved
before it.

With the error d = codes - W/scale in units of the scale, and M a matrix with ones on its diagonal, the best
level of weight j is

    codes_j - (M d)_j  rounded                                           (M d)_j <- (M d)_j + M_jk * move of k, for all k

That is one loop for two methods (see ``covariance``). The inputs are cut in halves again and again: what the
moves in one half do to the other is a matrix product, and only a few inputs at a time are visited one by one.
"""

from __future__ import annotations

import numpy as np

from onnx_dfmpc.linalg.matrices import Matrix
from onnx_dfmpc.spec import Array

LEAF = 8
"""Inputs that are visited one by one, unless the grain of the matrix is coarser."""


def sweep(
    matrix: Matrix, values: Array, effect: Array, low: int, high: int, *, forward_only: bool = False
) -> bool:
    """Move every weight to a level, in place.

    Parameters
    ----------
    matrix : Matrix
        M, (g, n, n).
    values : float64 array, shape (g, n, m)
        Codes, or weights in units of their codes: an input of all rows at a time is contiguous. Become codes.
    effect : float64 array, shape (g, n, m)
        M d. Becomes that of the codes.
    low, high : int
        BitBounds of a code.
    forward_only : bool
        Only ``effect`` behind a move matters: because nobody will read the rest, or because M is lower
        triangular, and it is all there is.

    Returns
    -------
    bool
        Whether anything moved.
    """
    moves = np.empty_like(values)
    return _visit(matrix, values, effect, moves, low, high, slice(0, matrix.inputs), forward_only)


def _visit(
    matrix: Matrix,
    values: Array,
    effect: Array,
    moves: Array,
    low: int,
    high: int,
    inputs: slice,
    forward_only: bool,
) -> bool:
    """Sweep over some of the inputs, and note their moves."""
    grains = (inputs.stop - inputs.start) // matrix.grain
    if inputs.stop - inputs.start <= LEAF or grains == 1:
        block = matrix.block(inputs.start, inputs.stop).astype(np.float64)
        return _leaf(block, values[:, inputs], effect[:, inputs], moves[:, inputs], low, high)
    middle = inputs.start + grains // 2 * matrix.grain
    before, behind = slice(inputs.start, middle), slice(middle, inputs.stop)
    first = _visit(matrix, values, effect, moves, low, high, before, forward_only)
    if first:
        effect[:, behind] += matrix.part(behind, before, moves[:, before])
    second = _visit(matrix, values, effect, moves, low, high, behind, forward_only)
    if second and not forward_only:
        effect[:, before] += matrix.part(before, behind, moves[:, behind])
    return first or second


def _leaf(block: Array, values: Array, effect: Array, moves: Array, low: int, high: int) -> bool:
    for j in range(values.shape[1]):
        level = np.rint(values[:, j] - effect[:, j])
        np.minimum(np.maximum(level, low, out=level), high, out=level)
        move = np.subtract(level, values[:, j], out=moves[:, j])
        values[:, j] = level
        effect += block[:, :, j, None] * move[:, None]
    return bool(moves.any())

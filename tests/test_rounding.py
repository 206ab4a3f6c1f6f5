"""Grids and the roundings: what each promises, against loops and exhaustive search."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.linalg.matrices import Dense, Kronecker, matrix
from onnx_dfmpc.rounding import gptq
from onnx_dfmpc.rounding.gptq import CholeskyFactor, Responses, sketch
from onnx_dfmpc.rounding.grids import Codes, GridSpec, dequantize, min_max, nearest, ternary
from onnx_dfmpc.rounding.levels import ScalarLevels
from onnx_dfmpc.rounding.rounding import ROUNDINGS, quantize_rows
from onnx_dfmpc.rounding.squant import squant
from tests.arrays import covariance, seeds

bits = st.integers(2, 8)
uniform_grids = st.sampled_from(["asymmetric", "symmetric"])
kernels = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3, 9]))


def rows_of(shape: tuple[int, int, int], seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:2], 1))) + offset).astype(
        np.float32
    )


def output_error(
    rows: np.ndarray, codes: Codes | np.ndarray, second: np.ndarray, *grid: np.ndarray
) -> np.ndarray:
    """e' H e per row, in float64."""
    levels = (
        dequantize(codes) if isinstance(codes, Codes) else (codes - grid[1][..., None]) * grid[0][..., None]
    )
    e = levels.astype(np.float64) - rows
    return np.einsum("grn,gnm,grm->gr", e, second.astype(np.float64), e)


# Grids


@given(kernels, seeds, bits, uniform_grids, st.booleans(), st.sampled_from([-2.0, 0.0, 2.0]))
def test_round_trip_is_within_half_a_level(kernel, seed, b, grid, per_channel, offset):
    g, r, i, k = kernel
    rows = rows_of((g, r, i * k), seed, offset)
    found = quantize_rows(rows, GridSpec(grid, b, per_channel), "nearest")
    low, high = found.limits
    assert found.limits == GridSpec(grid, b).limits
    assert found.codes.shape == rows.shape
    assert found.scale.shape == found.zero_point.shape == (g, r)
    assert (found.scale > 0).all()
    assert (found.codes == np.rint(found.codes)).all()
    assert found.codes.min() >= low
    assert found.codes.max() <= high
    assert (np.abs(dequantize(found) - rows) <= found.scale[..., None] * (0.5 + 1e-4)).all()
    if not per_channel:
        assert len(np.unique(found.scale)) == len(np.unique(found.zero_point)) == 1


@given(kernels, seeds, bits, st.sampled_from([-2.0, 0.0, 2.0]))
def test_zero_is_a_level_and_only_asymmetric_grids_have_a_zero_point(kernel, seed, b, offset):
    g, r, i, k = kernel
    rows = rows_of((g, r, i * k), seed, offset)
    for grid in ("asymmetric", "symmetric"):
        scale, zero_point = min_max(rows, GridSpec(grid, b))
        limits = low, high = GridSpec(grid, b).limits
        assert (zero_point == np.rint(zero_point)).all()
        assert ((low <= zero_point) & (zero_point <= high)).all()
        zeros = Codes(nearest(np.zeros_like(rows), scale, zero_point, limits), scale, zero_point, limits)
        assert not dequantize(zeros).any()
        assert grid == "asymmetric" or not zero_point.any()


def test_grids_by_hand():
    rows = np.array([[[-1.0, 0.0, 2.0], [3.0, 6.0, 0.5]]], np.float32)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    np.testing.assert_allclose(scale, [[1, 2]])
    np.testing.assert_array_equal(zero_point, [[1, 0]])
    scale, _ = min_max(rows, GridSpec("symmetric", 3))
    np.testing.assert_allclose(scale, [[2 / 3, 2]])
    scale, _ = min_max(rows, GridSpec("symmetric", 3, per_channel=False))
    np.testing.assert_allclose(scale, [[2, 2]])
    scale, _ = min_max(rows, GridSpec("asymmetric", 2, per_channel=False))
    np.testing.assert_allclose(scale, 7 / 3)


@pytest.mark.parametrize("grid", ["asymmetric", "symmetric", "ternary"])
@pytest.mark.parametrize("method", ROUNDINGS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_rows_of_zeros_stay_zero(grid, method, per_channel):
    rows = np.zeros((2, 3, 8), np.float32)
    white = np.broadcast_to(np.eye(8, dtype=np.float32), (2, 8, 8))
    found = quantize_rows(rows, GridSpec(grid, 2, per_channel), method, taps=4, covariance=white)
    assert not dequantize(found).any()
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()


@given(kernels, seeds, st.booleans())
def test_ternary_equals_the_naive_loop(kernel, seed, per_channel):
    g, r, i, k = kernel
    rows = rows_of((g, r, i * k), seed)
    found = ternary(rows, per_channel=per_channel)
    assert not found.zero_point.any()
    for where in [(a, b) for a in range(g) for b in range(r)] if per_channel else [slice(None)]:
        values = rows[where].astype(np.float64).ravel()
        threshold = 0.7 * sum(abs(w) for w in values) / len(values)
        kept = [abs(w) for w in values if abs(w) > threshold]
        expected = [0 if abs(w) <= threshold else (1 if w > 0 else -1) for w in values]
        np.testing.assert_array_equal(found.codes[where].ravel(), expected)
        np.testing.assert_allclose(found.scale[where], sum(kept) / len(kept), rtol=1e-5)


def test_ternary_ignores_the_rounding_and_gptq_needs_a_covariance():
    rows = rows_of((1, 2, 6), 0)
    plain = quantize_rows(rows, GridSpec("ternary", 2), "nearest")
    other = quantize_rows(rows, GridSpec("ternary", 2), "gptq")
    np.testing.assert_array_equal(dequantize(plain), dequantize(other))
    with pytest.raises(ValueError, match="covariance"):
        quantize_rows(rows, GridSpec("symmetric", 2), "gptq")


# SQuant


@given(kernels, seeds, st.booleans())
def test_squant_keeps_sums_and_moves_no_weight_further_than_a_level(kernel, seed, crowded):
    g, r, i, k = kernel
    rows = rows_of((g, r, i * k), seed)
    low, high = (0, 3) if crowded else (-10_000, 10_000)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    codes = squant(rows, scale, zero_point, (low, high), k)
    assert (codes == np.rint(codes)).all()
    assert low <= codes.min() <= codes.max() <= high
    error = (codes - (rows / scale[..., None] + zero_point[..., None])).astype(np.float64)
    assert (np.abs(error) <= 1 + 1e-4).all()
    if not crowded:
        # A kernel may have given one flip of its own to its channel, which leaves it between 1/2 and 1.
        assert (np.abs(error.reshape(g, r, i, k).sum(axis=3)) <= 1 + 1e-3).all()
        assert (np.abs(error.sum(axis=2)) <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("taps", [1, 3, 9])
def test_squant_stays_within_a_level_where_most_codes_are_at_their_limits(taps):
    rows = np.clip(rows_of((40, 4, 5 * taps), 0), -1, 1)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    codes = squant(rows, scale, zero_point, (0, 3), taps)
    assert (np.abs(codes - (rows / scale[..., None] + zero_point[..., None])) <= 1 + 1e-4).all()


@given(kernels, seeds)
def test_squant_equals_the_naive_loop(kernel, seed):
    g, r, i, k = kernel
    rows = rows_of((g, r, i * k), seed).astype(np.float64)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 3))
    codes = squant(rows, scale, zero_point, (-10_000, 10_000), k)
    for where in np.ndindex(g, r):
        np.testing.assert_array_equal(
            codes[where], naive_squant(rows[where] / scale[where] + zero_point[where], k)
        )


def naive_squant(target: np.ndarray, taps: int) -> np.ndarray:
    """One output channel, flip by flip, no limits."""
    codes = [round(t) for t in target]
    error = [c - t for c, t in zip(codes, target, strict=True)]
    spans = [range(start, start + taps) for start in range(0, len(codes), taps)]

    def flip(at: int, direction: int) -> None:
        codes[at] -= direction
        error[at] -= direction

    for span in spans:
        total = sum(error[at] for at in span)
        direction = 1 if total > 0 else -1
        for _ in range(round(abs(total))):
            flip(max(span, key=lambda at: error[at] * direction), direction)
    total = sum(error)
    direction = 1 if total > 0 else -1
    ready = sorted(spans, key=lambda span: -direction * sum(error[at] for at in span))
    for span in ready[: round(abs(total))]:
        flip(max(span, key=lambda at: error[at] * direction), direction)
    return np.array(codes)


# GPTQ


def feedback(rows: np.ndarray, second: np.ndarray | Kronecker, *grid) -> np.ndarray:
    """Codes (g, r, n) for rows (g, r, n)."""
    *grid, limits = grid
    factor, columns = CholeskyFactor.of(second), rows.transpose(0, 2, 1)
    return gptq.feedback(columns, factor, *grid, ScalarLevels(limits))[0].transpose(0, 2, 1)


def descend(
    rows: np.ndarray, second: np.ndarray | Kronecker, codes: np.ndarray, *grid, sweeps: int
) -> np.ndarray:
    """Codes (g, r, n) for rows (g, r, n)."""
    unit = matrix(second).unit_diagonal()
    *grid, limits = grid
    return gptq.descend(
        rows.transpose(0, 2, 1), unit, codes.transpose(0, 2, 1), *grid, ScalarLevels(limits), sweeps=sweeps
    ).transpose(0, 2, 1)


@given(kernels, seeds, st.integers(2, 4), st.integers(1, 4))
def test_each_sweep_of_descent_lowers_the_output_error_or_leaves_it(kernel, seed, b, sweeps):
    g, r, i, k = kernel
    n = i * k
    rng = np.random.default_rng(seed)
    rows, second = rows_of((g, r, n), seed).astype(np.float64), covariance(g, n, rng)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", b))
    start = nearest(rows, scale, zero_point, (0, 2**b - 1))
    kept = start.copy()
    steps = [
        descend(rows, second, start, scale, zero_point, (0, 2**b - 1), sweeps=s) for s in range(sweeps + 1)
    ]
    np.testing.assert_array_equal(start, kept)
    np.testing.assert_array_equal(steps[0], start)
    errors = [output_error(rows, codes, second, scale, zero_point) for codes in steps]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert all(codes.min() >= 0 and codes.max() <= 2**b - 1 for codes in steps)


@pytest.mark.parametrize("seed", range(5))
def test_descent_equals_the_loop_over_single_moves(seed):
    rng = np.random.default_rng(seed)
    n = 30
    rows, second = rows_of((1, 3, n), seed).astype(np.float64), covariance(1, n, rng)
    scale, zero_point = rng.uniform(0.2, 0.6, (1, 3)), np.full((1, 3), 1.0)
    start = nearest(rows, scale, zero_point, (0, 3))
    found = descend(rows, second, start, scale, zero_point, (0, 3), sweeps=2)
    for row in range(3):
        codes, s, z = start[0, row].copy(), scale[0, row], zero_point[0, row]
        for _ in range(2):
            for j in range(n):
                gradient = second[0, j] @ ((codes - z) * s - rows[0, row])
                codes[j] = min(max(round(codes[j] - gradient / (second[0, j, j] * s)), 0), 3)
        np.testing.assert_array_equal(found[0, row], codes)
    assert (found != start).any()


@pytest.mark.parametrize("seed", range(5))
def test_descent_ends_where_no_single_move_helps(seed):
    rng = np.random.default_rng(seed)
    rows, second = rows_of((1, 2, 6), seed).astype(np.float64), covariance(1, 6, rng)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    found = descend(
        rows, second, nearest(rows, scale, zero_point, (0, 3)), scale, zero_point, (0, 3), sweeps=100
    )
    best = output_error(rows, found, second, scale, zero_point)
    for j, level in product(range(6), range(4)):
        moved = found.copy()
        moved[..., j] = level
        assert (output_error(rows, moved, second, scale, zero_point) >= best * (1 - 1e-9)).all()
    every = np.array(list(product(range(4), repeat=6)), float)  # the optimum, by looking at all 4096
    for row in range(2):
        e = (every - zero_point[0, row]) * scale[0, row] - rows[0, row]
        assert np.einsum("sn,nm,sm->s", e, second[0], e).min() <= best[0, row] * (1 + 1e-9)


@given(kernels, seeds, bits)
def test_white_inputs_leave_nothing_to_descend(kernel, seed, b):
    g, r, i, k = kernel
    rows = rows_of((g, r, i * k), seed).astype(np.float64)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", b))
    start = nearest(rows, scale, zero_point, (0, 2**b - 1))
    white = np.broadcast_to(np.eye(i * k) * 3.0, (g, i * k, i * k))
    np.testing.assert_array_equal(
        descend(rows, white, start, scale, zero_point, (0, 2**b - 1), sweeps=2), start
    )


@given(kernels, seeds, bits)
def test_uncorrelated_inputs_pass_no_error_on(kernel, seed, b):
    g, r, i, k = kernel
    rng = np.random.default_rng(seed)
    rows = rows_of((g, r, i * k), seed).astype(np.float64)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", b))
    second = np.stack([np.diag(rng.uniform(0.1, 5, i * k)) for _ in range(g)])
    found = feedback(rows, second, scale, zero_point, (0, 2**b - 1))
    np.testing.assert_array_equal(found, nearest(rows, scale, zero_point, (0, 2**b - 1)))


@pytest.mark.parametrize("seed", range(3))
def test_feedback_equals_the_loop_that_solves_each_step(seed):
    """Round one weight, then move those after it to where they are best given its error: least squares, by
    definition.
    """
    rng = np.random.default_rng(seed)
    n = 20
    rows, second = rows_of((1, 3, n), seed).astype(np.float64), covariance(1, n, rng)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    found = feedback(rows, second, scale, zero_point, (0, 3))
    damped = second[0] + gptq.DAMPING * np.trace(second[0]) / n * np.eye(n)
    for row in range(3):
        w, s, z = rows[0, row].copy(), scale[0, row], zero_point[0, row]
        for j in range(n):
            code = min(max(round(w[j] / s + z), 0), 3)
            assert found[0, row, j] == code
            error = (code - z) * s - w[j]
            if j + 1 < n:
                w[j + 1 :] -= np.linalg.solve(damped[j + 1 :, j + 1 :], damped[j + 1 :, j] * error)


@given(kernels, seeds, st.integers(2, 5))
def test_responses_are_those_of_the_damped_covariance(kernel, seed, b):
    g, r, i, k = kernel
    n = i * k
    rows, second = rows_of((g, r, n), seed).astype(np.float64), covariance(g, n, np.random.default_rng(seed))
    scale, zero_point = min_max(rows, GridSpec("asymmetric", b))
    factor, columns = CholeskyFactor.of(second), rows.transpose(0, 2, 1)
    codes, error = gptq.feedback(columns, factor, scale, zero_point, ScalarLevels((0, 2**b - 1)))
    responses = Responses.of(columns, factor)
    damped = second + gptq.DAMPING * np.einsum("gnn->g", second)[:, None, None] / n * np.eye(n)
    quantized = (codes.transpose(0, 2, 1) - zero_point[..., None]) * scale[..., None]
    expected = [
        np.einsum("grn,gnm,grm->gr", u, damped, v)
        for u, v in ((rows, rows), (rows, quantized), (quantized, quantized))
    ]
    for found, true in zip((responses.norm, *responses.products(error)), expected, strict=True):
        # The sweeps are in float32.
        np.testing.assert_allclose(found, true, rtol=1e-4, atol=1e-5 * np.abs(expected[0]).max())
    factor = responses.best_scale(error)
    assert ((factor > 0) & (factor < 10)).all()
    better = (quantized * factor[..., None] - rows)[..., None]
    worse = [(quantized * (factor * f)[..., None] - rows)[..., None] for f in (0.99, 1.01)]
    cost = [np.einsum("grnx,gnm,grmx->gr", e, damped, e) for e in (better, *worse)]
    helped = factor != 1
    assert all((cost[0][helped] <= other[helped] * (1 + 1e-4) + 1e-9).all() for other in cost[1:])


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 7), st.sampled_from([1, 2, 3, 9])),
    seeds,
    st.integers(2, 4),
)
def test_a_product_of_factors_rounds_as_the_matrix_that_it_is(kernel, seed, b):
    g, r, i, k = kernel
    rng = np.random.default_rng(seed)
    rows = rows_of((g, r, i * k), seed).astype(np.float64)
    second = Kronecker(covariance(g, i, rng), covariance(g, k, rng))
    scale, zero_point = rng.uniform(0.2, 0.6, (g, r)), rng.integers(0, 2**b, (g, r)).astype(float)
    grid = scale, zero_point, (0, 2**b - 1)
    factor = matrix(second).damped(gptq.DAMPING).cholesky()
    whole = Dense(factor.dense())
    columns, levels = rows.transpose(0, 2, 1), (scale, zero_point, ScalarLevels(grid[2]))
    fed = gptq.feedback(columns, CholeskyFactor(factor.unit_diagonal(), factor.diagonal()), *levels)
    again = gptq.feedback(columns, CholeskyFactor(whole.unit_diagonal(), whole.diagonal()), *levels)
    np.testing.assert_array_equal(fed[0], again[0])
    np.testing.assert_allclose(fed[1], again[1], rtol=1e-4, atol=1e-5 * np.abs(rows).max())
    start = nearest(rows, *grid)
    np.testing.assert_array_equal(
        descend(rows, second, start, *grid, sweeps=3), descend(rows, second.dense(), start, *grid, sweeps=3)
    )


@pytest.mark.parametrize("leaf", [1, 5, 7, 1000])
def test_how_many_inputs_are_visited_one_by_one_does_not_matter(monkeypatch, leaf):
    rng = np.random.default_rng(0)
    rows, second = rows_of((2, 5, 30), 0).astype(np.float64), covariance(2, 30, rng)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    grid = (scale, zero_point, (0, 3))
    start = nearest(rows, *grid)
    monkeypatch.setattr(gptq, "LEAF", 30)
    expected = feedback(rows, second, *grid), descend(rows, second, start, *grid, sweeps=3)
    monkeypatch.setattr(gptq, "LEAF", leaf)
    np.testing.assert_array_equal(feedback(rows, second, *grid), expected[0])
    np.testing.assert_array_equal(descend(rows, second, start, *grid, sweeps=3), expected[1])
    assert (expected[0] != start).any()
    assert (expected[1] != start).any()


@pytest.mark.parametrize("most", [1, 1000, 3000])
def test_how_many_rows_are_rounded_at_once_does_not_matter(monkeypatch, most):
    rng = np.random.default_rng(0)
    rows, second = rows_of((2, 13, 30), 0), covariance(2, 30, rng)
    together = quantize_rows(rows, GridSpec("asymmetric", 3), "gptq", covariance=second)
    monkeypatch.setattr(gptq, "MOST_WEIGHTS", most)
    apart = quantize_rows(rows, GridSpec("asymmetric", 3), "gptq", covariance=second)
    for one, other in zip(
        (together.codes, together.scale, together.zero_point),
        (apart.codes, apart.scale, apart.zero_point),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@given(kernels, seeds, st.integers(2, 5))
def test_groups_and_rows_are_rounded_independently(kernel, seed, b):
    g, r, i, k = kernel
    rng = np.random.default_rng(seed)
    rows, second = rows_of((g, r, i * k), seed).astype(np.float64), covariance(g, i * k, rng)
    # Scales of no special value: on a min-max grid weights lie half way between levels, where the last digit
    # decides.
    scale, zero_point = rng.uniform(0.2, 0.6, (g, r)), rng.integers(0, 2**b, (g, r)).astype(float)
    limits = 0, 2**b - 1
    start = nearest(rows, scale, zero_point, limits)
    fed = feedback(rows, second, scale, zero_point, limits)
    descended = descend(rows, second, start, scale, zero_point, limits, sweeps=3)
    for a, row in product(range(g), range(r)):
        one, its = np.s_[a : a + 1, row : row + 1], second[a : a + 1]
        grid = scale[one], zero_point[one], limits
        np.testing.assert_array_equal(feedback(rows[one], its, *grid), fed[one])
        np.testing.assert_array_equal(descend(rows[one], its, start[one], *grid, sweeps=3), descended[one])


@given(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)), seeds)
def test_rounding_does_not_change_its_arguments(shape, seed):
    rng = np.random.default_rng(seed)
    rows, second = rows_of(shape, seed).astype(np.float64), covariance(shape[0], shape[2], rng)
    scale, zero_point = min_max(rows, GridSpec("asymmetric", 2))
    arguments = rows, second, scale, zero_point
    kept = [argument.copy() for argument in arguments]
    feedback(*arguments, (0, 3))
    descend(rows, second, nearest(rows, scale, zero_point, (0, 3)), scale, zero_point, (0, 3), sweeps=1)
    squant(rows, scale, zero_point, (0, 3), 1)
    for argument, before in zip(arguments, kept, strict=True):
        np.testing.assert_array_equal(argument, before)


@pytest.mark.parametrize("seed", range(3))
def test_a_layer_of_many_groups_is_as_good_as_many_layers(seed):
    rows, second = (
        rows_of((6, 4, 18), seed),
        covariance(6, 18, np.random.default_rng(seed)).astype(np.float32),
    )

    def error(groups: slice) -> np.ndarray:
        some, its = rows[groups], second[groups]
        return output_error(some, quantize_rows(some, GridSpec("asymmetric", 3), "gptq", covariance=its), its)

    together, alone = error(slice(None)), [error(slice(a, a + 1)) for a in range(6)]
    # Products of another shape round differently, which may tip one of two equal choices.
    np.testing.assert_allclose(np.mean(alone), np.mean(together), rtol=0.05)


@pytest.mark.parametrize("b", [2, 3, 4])
@pytest.mark.parametrize("grid", ["asymmetric", "symmetric"])
def test_gptq_beats_rounding_without_the_covariance(b, grid):
    rng = np.random.default_rng(b)
    rows, second = rows_of((2, 16, 45), b), covariance(2, 45, rng).astype(np.float32)
    errors = {
        method: output_error(
            rows, quantize_rows(rows, GridSpec(grid, b), method, taps=9, covariance=second), second
        ).mean()
        for method in ("nearest", "squant", "gptq")
    }
    assert errors["gptq"] < 0.5 * min(errors["nearest"], errors["squant"])


@given(kernels, seeds, st.integers(2, 8), st.booleans())
def test_gptq_stays_on_its_grid(kernel, seed, b, per_channel):
    g, r, i, k = kernel
    rows, second = (
        rows_of((g, r, i * k), seed),
        covariance(g, i * k, np.random.default_rng(seed)).astype(np.float32),
    )
    kept = rows.copy(), second.copy()
    found = quantize_rows(rows, GridSpec("asymmetric", b, per_channel), "gptq", covariance=second)
    np.testing.assert_array_equal(rows, kept[0])
    np.testing.assert_array_equal(second, kept[1])
    assert (found.codes == np.rint(found.codes)).all()
    assert 0 <= found.codes.min() <= found.codes.max() <= 2**b - 1
    assert (found.scale > 0).all()
    if not per_channel:
        assert len(np.unique(found.scale)) == 1


@pytest.mark.parametrize("b", [2, 3])
def test_zero_points_that_may_move_are_worth_it(b, monkeypatch):
    rng = np.random.default_rng(b)
    rows = (rng.exponential(size=(1, 64, 36)) - 0.5).astype(np.float32)
    second = covariance(1, 36, rng)

    def found(steps: dict[int, tuple[int, ...]]) -> tuple[float, np.ndarray]:
        monkeypatch.setattr(gptq, "ZERO_POINT_STEPS", steps)
        codes = quantize_rows(rows, GridSpec("asymmetric", b), "gptq", covariance=second)
        return float(output_error(rows, codes, second).sum()), codes.zero_point

    fixed, middle = found({})
    moving, moved = found({b: (-1, 1)})
    assert moving < fixed
    assert np.abs(moved - middle).max() == 1
    assert moved.min() >= 0
    assert moved.max() <= 2**b - 1


@pytest.mark.parametrize("grid", ["asymmetric", "symmetric"])
def test_a_sketch_is_nearly_as_good_as_the_search_and_no_better(grid):
    rng = np.random.default_rng(0)
    rows, second = rng.laplace(size=(2, 32, 45)), covariance(2, 45, rng)
    grids = [GridSpec(grid, b) for b in (2, 3, 4)]
    for spec, codes in zip(grids, sketch(rows, grids, second), strict=True):
        assert codes.limits == spec.limits
        assert (codes.codes == np.clip(np.rint(codes.codes), *spec.limits)).all()
        searched = quantize_rows(rows, spec, "gptq", covariance=second)
        quick, full = (output_error(rows, one, second).sum() for one in (codes, searched))
        assert full < quick < 2.5 * full

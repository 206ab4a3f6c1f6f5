"""The closed forms against loops, a numerical optimiser and simulated data."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from onnx_dfmpc.compensate import (
    MAX_GAIN,
    Response,
    affine,
    coefficients,
    mean_shift,
    reestimate,
    respond,
    signal_gain,
)
from onnx_dfmpc.spec import BatchNorm
from tests.arrays import batch_norm, covariance, seeds

lambdas = st.sampled_from([0.0, 0.1, 0.5, 3.0])
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12))


def problem(
    shape: tuple[int, int, int], seed: int, noise: float = 0.4
) -> tuple[np.ndarray, np.ndarray, BatchNorm, BatchNorm]:
    """Rows, their quantized form, the batch norm and that of the quantized layer, all arbitrary."""
    rng = np.random.default_rng(seed)
    g, r, _ = shape
    rows = rng.standard_normal(shape)
    norm = batch_norm(g * r, rng)
    norm_q = replace(
        norm, mean=norm.mean + noise * rng.standard_normal(g * r), var=norm.var * rng.uniform(0.5, 2, g * r)
    )
    return rows, rows + noise * rng.standard_normal(shape), norm, norm_q


def naive_coefficients(rows, quantized, norm, norm_q, lambda1, lambda2):
    """The formula, one number at a time."""
    g, r, n = rows.shape
    c = []
    for group in range(g):
        for row in range(r):
            j = group * r + row
            a = norm.gamma[j] / (norm.var[j] + norm.epsilon) ** 0.5
            aq = norm_q.gamma[j] / (norm_q.var[j] + norm_q.epsilon) ** 0.5
            b, bq = norm.beta[j] - a * norm.mean[j], norm_q.beta[j] - aq * norm_q.mean[j]
            numerator, denominator = lambda1 * b * bq, lambda1 * bq * bq + lambda2
            for k in range(n):
                numerator += a * aq * rows[group, row, k] * quantized[group, row, k]
                denominator += aq * aq * quantized[group, row, k] ** 2
            c.append(max(numerator / denominator, 0) if denominator > 0 else 1.0)
    return np.array(c)


def naive_objective(c, rows, quantized, norm, norm_q, lambda1, lambda2):
    total = 0.0
    flat, flat_q = rows.reshape(-1, rows.shape[2]), quantized.reshape(-1, rows.shape[2])
    for j, cj in enumerate(c):
        a, aq = norm.gamma[j] / norm.sigma[j], norm_q.gamma[j] / norm_q.sigma[j]
        b, bq = norm.beta[j] - a * norm.mean[j], norm_q.beta[j] - aq * norm_q.mean[j]
        for w, wq in zip(flat[j], flat_q[j], strict=True):
            total += (a * w - cj * aq * wq) ** 2
        total += lambda1 * (b - cj * bq) ** 2 + lambda2 * cj**2
    return total


def objective(c, rows, quantized, norm, norm_q, lambda1, lambda2):
    """L(c) per output channel; its terms are separate, so that c may hold any other value in each."""
    a, b, aq, bq = *affine(norm), *affine(norm_q)
    n = rows.shape[2]
    difference = a[:, None] * rows.reshape(-1, n) - (c * aq)[:, None] * quantized.reshape(-1, n)
    return (difference**2).sum(axis=1) + lambda1 * (b - c * bq) ** 2 + lambda2 * c**2


@given(shapes, seeds, lambdas, lambdas)
def test_coefficients_equal_the_naive_loop(shape, seed, lambda1, lambda2):
    given_ = problem(shape, seed)
    c = coefficients(*given_, lambda1, lambda2)
    np.testing.assert_allclose(c, naive_coefficients(*given_, lambda1, lambda2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        objective(c, *given_, lambda1, lambda2).sum(),
        naive_objective(c, *given_, lambda1, lambda2),
        rtol=1e-9,
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("lambda1", "lambda2"), [(0.5, 0.0), (0.0, 0.0), (2.0, 0.3)])
def test_coefficients_minimise_the_objective(seed, lambda1, lambda2):
    given_ = problem((2, 3, 7), seed, noise=2.0)  # so much noise that some c want to be negative
    c = coefficients(*given_, lambda1, lambda2)
    found = minimize(
        naive_objective,
        np.ones_like(c),
        args=(*given_, lambda1, lambda2),
        bounds=[(0, None)] * len(c),
        options={"ftol": 1e-14, "gtol": 1e-9},
    )
    assert found.success
    np.testing.assert_allclose(c, found.x, atol=1e-4)
    assert objective(c, *given_, lambda1, lambda2).sum() <= found.fun * (1 + 1e-9)


def test_some_of_those_minima_lie_on_the_bound():
    clipped = [coefficients(*problem((2, 3, 7), seed, noise=2.0), 0.5, 0.0) == 0 for seed in range(10)]
    assert 0 < np.mean(clipped) < 1


@given(shapes, seeds, lambdas, lambdas)
def test_coefficients_never_raise_the_objective_of_any_channel(shape, seed, lambda1, lambda2):
    given_ = problem(shape, seed, noise=1.0)
    c = coefficients(*given_, lambda1, lambda2)
    best = objective(c, *given_, lambda1, lambda2)
    for other in (0.0, 0.5, 1.0, 2.0):
        assert (
            best <= objective(np.full_like(c, other), *given_, lambda1, lambda2) * (1 + 1e-9) + 1e-12
        ).all()


@given(shapes, seeds, lambdas)
def test_no_quantization_error_needs_no_repair(shape, seed, lambda1):
    rows, _, norm, _ = problem(shape, seed)
    rng = np.random.default_rng(seed)
    mean, second = rng.standard_normal(shape[::2]), covariance(shape[0], shape[2], rng)
    response = respond(rows, rows, mean, second)
    again = reestimate(norm, response)
    np.testing.assert_allclose(signal_gain(response), 1, rtol=1e-12)
    np.testing.assert_array_equal(response.shift, 0)
    np.testing.assert_allclose(response.noise, 0, atol=1e-12 * response.own.max())
    np.testing.assert_array_equal(again.mean, norm.mean)
    np.testing.assert_allclose(again.var, norm.var, rtol=1e-9)
    np.testing.assert_allclose(coefficients(rows, rows, norm, again, lambda1, 0.0), 1, rtol=1e-9)


@given(shapes, seeds, lambdas)
def test_order_of_output_channels_does_not_matter(shape, seed, lambda1):
    rows, quantized, norm, norm_q = problem((1, shape[1], shape[2]), seed)
    order = np.random.default_rng(seed).permutation(shape[1])
    shuffled = coefficients(
        rows[:, order], quantized[:, order], permuted(norm, order), permuted(norm_q, order), lambda1, 0.1
    )
    np.testing.assert_allclose(
        shuffled, coefficients(rows, quantized, norm, norm_q, lambda1, 0.1)[order], rtol=1e-12
    )


@given(shapes, seeds)
def test_order_of_input_channels_does_not_matter(shape, seed):
    rows, quantized, norm, norm_q = problem(shape, seed)
    rng = np.random.default_rng(seed)
    mean, second = rng.standard_normal(shape[::2]), covariance(shape[0], shape[2], rng)
    order = rng.permutation(shape[2])
    response = respond(rows, quantized, mean, second)
    shuffled = respond(rows[..., order], quantized[..., order], mean[:, order], second[:, order][:, :, order])
    for field in ("own", "across", "quantized", "shift", "noise"):
        np.testing.assert_allclose(getattr(shuffled, field), getattr(response, field), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        coefficients(rows[..., order], quantized[..., order], norm, norm_q, 0.5, 0.0),
        coefficients(rows, quantized, norm, norm_q, 0.5, 0.0),
        rtol=1e-9,
    )


@given(shapes, seeds, st.floats(0.1, 10))
def test_scaling_gamma_and_beta_leaves_c_and_scales_the_output(shape, seed, factor):
    """L is homogeneous in (gamma, beta): the next layer's units are no business of c, as long as lambda2 is
    0.
    """
    rows, quantized, norm, norm_q = problem(shape, seed)
    scaled, scaled_q = (replace(x, gamma=factor * x.gamma, beta=factor * x.beta) for x in (norm, norm_q))
    c = coefficients(rows, quantized, norm, norm_q, 0.5, 0.0)
    np.testing.assert_allclose(coefficients(rows, quantized, scaled, scaled_q, 0.5, 0.0), c, rtol=1e-9)
    np.testing.assert_allclose(
        objective(c, rows, quantized, scaled, scaled_q, 0.5, 0.0),
        factor**2 * objective(c, rows, quantized, norm, norm_q, 0.5, 0.0),
        rtol=1e-9,
    )


@given(shapes, seeds, st.floats(0.1, 10))
def test_scaling_the_quantized_rows_scales_c_back(shape, seed, factor):
    rows, quantized, norm, norm_q = problem(shape, seed)
    plain = coefficients(rows, quantized, norm, norm_q, 0.0, 0.0)
    np.testing.assert_allclose(
        coefficients(rows, factor * quantized, norm, norm_q, 0.0, 0.0), plain / factor, rtol=1e-9
    )


def test_channels_that_c_cannot_change_stay_as_they_are():
    rows, quantized, norm, norm_q = problem((1, 3, 5), 0)
    quantized[:, 1] = 0
    norm_q = replace(
        norm_q, beta=np.where(np.arange(3) == 1, norm_q.gamma / norm_q.sigma * norm_q.mean, norm_q.beta)
    )
    dead = (
        replace(norm, gamma=np.array([1.0, 1.0, 0.0])),
        replace(norm_q, gamma=np.array([1.0, norm_q.gamma[1], 0.0])),
    )
    c = coefficients(rows, quantized, *dead, 0.0, 0.0)
    assert c[1] == c[2] == 1
    assert np.isfinite(c).all()


# What the moments mean: simulated inputs

SAMPLES = 200_000


@pytest.fixture(scope="module")
def simulation():
    """Normal inputs in two groups, responses of rows and of their crude rounding, moments in closed form."""
    rng = np.random.default_rng(0)
    g, r, n = 2, 4, 6
    mean, second = rng.standard_normal((g, n)), covariance(g, n, rng)
    rows = rng.standard_normal((g, r, n))
    quantized = np.clip(np.round(rows / 0.9), -1, 1)
    x = np.stack([rng.multivariate_normal(mean[k], second[k], SAMPLES) for k in range(g)])  # (g, s, n)
    y, yq = (np.einsum("grn,gsn->grs", w, x).reshape(g * r, SAMPLES) for w in (rows, quantized))
    return rows, quantized, respond(rows, quantized, mean, second), y, yq


def test_moments_are_those_of_the_responses(simulation):
    _, _, response, y, yq = simulation
    np.testing.assert_allclose(response.own, y.var(axis=1), rtol=0.02)
    np.testing.assert_allclose(response.quantized, yq.var(axis=1), rtol=0.02)
    np.testing.assert_allclose(response.noise, (yq - y).var(axis=1), rtol=0.02)
    np.testing.assert_allclose(response.shift, (yq - y).mean(axis=1), atol=0.03)
    np.testing.assert_allclose(
        response.across, [np.cov(a, b)[0, 1] for a, b in zip(y, yq, strict=True)], rtol=0.03, atol=0.03
    )


def test_signal_gain_makes_the_regression_slope_one(simulation):
    _, _, response, y, yq = simulation
    gain = signal_gain(response)
    assert (np.abs(gain - 1) > 0.02).any()
    assert (gain < MAX_GAIN).all()  # else the bound is what the test would see
    slopes = [np.polyfit(a, c * b, 1)[0] for a, b, c in zip(y, yq, gain, strict=True)]
    np.testing.assert_allclose(slopes, 1, atol=0.02)


def test_the_least_squares_gain_shrinks_and_the_signal_gain_does_not(simulation):
    _, _, response, y, yq = simulation
    shrinking = np.array(
        [minimize_scalar(lambda c, a=a, b=b: (c * b - a).var()).x for a, b in zip(y, yq, strict=True)]
    )
    rho2 = response.across**2 / (response.own * response.quantized)
    np.testing.assert_allclose(shrinking / signal_gain(response), rho2, rtol=0.03)


def test_scaled_response_is_the_response_of_scaled_rows(simulation):
    rows, quantized, response, _, _ = simulation
    c = np.random.default_rng(1).uniform(0.5, 2, 8)
    rng = np.random.default_rng(0)
    mean, second = rng.standard_normal((2, 6)), covariance(2, 6, rng)
    direct = respond(rows, quantized * c.reshape(2, 4, 1), mean, second)
    for field in ("own", "across", "quantized", "noise"):
        np.testing.assert_allclose(
            getattr(response.scaled(c), field), getattr(direct, field), rtol=1e-9, atol=1e-9
        )


def test_reestimated_batch_norm_normalises_the_quantized_response(simulation):
    """Batch norm trained on the float response; with the new statistics the quantized one comes out with the
    same mean and variance.
    """
    _, _, response, y, yq = simulation
    rng = np.random.default_rng(3)
    norm = BatchNorm(
        "", "", rng.uniform(0.5, 2, 8), rng.standard_normal(8), y.mean(axis=1), y.var(axis=1), 1e-3
    )
    again = reestimate(norm, response)
    a, b = affine(again)
    out = a[:, None] * yq + b[:, None]
    np.testing.assert_allclose(out.mean(axis=1), norm.beta, atol=0.03)
    np.testing.assert_allclose(out.std(axis=1), norm.gamma, rtol=0.02)


@given(shapes, seeds)
def test_reestimated_sigma_scales_with_the_response(shape, seed):
    """sigma, epsilon included, scales by sqrt(<Wq,Wq>/<W,W>), as far as a variance of at least 0 allows."""
    rows, quantized, norm, _ = problem(shape, seed)
    rng = np.random.default_rng(seed)
    response = respond(rows, quantized, rng.standard_normal(shape[::2]), covariance(shape[0], shape[2], rng))
    wanted = norm.sigma * np.sqrt(response.quantized / response.own)
    np.testing.assert_allclose(
        reestimate(norm, response).sigma, np.maximum(wanted, np.sqrt(norm.epsilon)), rtol=1e-9
    )


def test_dead_responses_are_left_alone():
    silent = Response(
        np.array([0.0, 1.0, 1.0, 1.0]),
        np.array([0.0, 0.0, -1.0, 1e-6]),
        np.array([1.0, 0.0, 1.0, 1.0]),
        np.zeros(4),
    )
    np.testing.assert_array_equal(signal_gain(silent), [1, 1, 1, MAX_GAIN])
    norm = batch_norm(4, np.random.default_rng(0))
    np.testing.assert_allclose(reestimate(norm, silent).var[:2], norm.var[:2], rtol=1e-12)


@given(shapes, seeds)
def test_mean_shift_is_the_difference_of_two_products(shape, seed):
    rows, quantized, _, _ = problem(shape, seed)
    mean = np.random.default_rng(seed).standard_normal(shape[::2])
    expected = [
        quantized[g, r] @ mean[g] - rows[g, r] @ mean[g] for g in range(shape[0]) for r in range(shape[1])
    ]
    np.testing.assert_allclose(mean_shift(rows, quantized, mean), expected, rtol=1e-9, atol=1e-9)


def permuted(norm: BatchNorm, order: np.ndarray) -> BatchNorm:
    return replace(
        norm, gamma=norm.gamma[order], beta=norm.beta[order], mean=norm.mean[order], var=norm.var[order]
    )

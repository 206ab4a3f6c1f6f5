"""The covariance that rounding fits to: what is taken back of correlations, what is added for means that are not
known.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.linalg.matrices import Diagonal, Kronecker
from onnx_dfmpc.rounding import regularize as module
from onnx_dfmpc.rounding.gptq import CholeskyFactor
from onnx_dfmpc.rounding.regularize import regularize, with_mean_uncertainty
from tests.arrays import covariance, seeds

kernels = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3, 9]))


@given(kernels, seeds, st.sampled_from([0, 10, 1000, 10**6]), st.booleans())
def test_regularized_covariance_is_symmetric_and_positive_definite(kernel, seed, samples, dead):
    g, _, i, k = kernel
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((g, 5, i * k))  # rank at most 5
    if dead:
        patches[:, :, : i * k // 2] = 0
    second = patches.transpose(0, 2, 1) @ patches / 5
    found = regularize(second, k, samples)
    np.testing.assert_allclose(found, found.transpose(0, 2, 1), atol=1e-12)
    assert (np.linalg.eigvalsh(found) > 0).all()
    assert (np.einsum("gnn->gn", found) > 0).all()
    factor = CholeskyFactor.of(found)
    assert np.isfinite(factor.unit.dense()).all()
    assert np.isfinite(factor.diagonal).all()


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([4, 9]), seeds, st.sampled_from([0, 10, 10**6]))
def test_a_pattern_keeps_its_variances_and_loses_a_tenth_of_its_correlations(g, i, k, seed, samples):
    rng = np.random.default_rng(seed)
    deviation = np.sqrt(np.einsum("gnn->gn", spatial := covariance(g, k, rng)))
    second = np.stack(
        [
            np.kron(c, s)
            for c, s in zip(
                covariance(g, i, rng), spatial / deviation[:, :, None] / deviation[:, None], strict=True
            )
        ]
    )
    found = regularize(second, k, samples)
    np.testing.assert_allclose(np.einsum("gnn->gn", found), np.einsum("gnn->gn", second), rtol=1e-4)
    off = ~np.eye(i * k, dtype=bool)
    np.testing.assert_allclose(found[:, off], (1 - module.SHRINKAGE) * second[:, off], rtol=1e-4, atol=1e-6)


@given(st.integers(1, 3), st.integers(2, 9), st.floats(0, 1), seeds)
def test_what_chance_made_of_correlations_is_taken_back(g, n, chance, seed):
    second, every = covariance(g, n, np.random.default_rng(seed)), np.arange(n)
    expected = (1 - max(module.SHRINKAGE, chance)) * second
    expected[:, every, every] = second[:, every, every]
    np.testing.assert_allclose(regularize(second, 1, 0, chance), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 3), st.integers(2, 9), seeds)
def test_without_taps_few_samples_are_worth_little(g, n, seed):
    second = covariance(g, n, np.random.default_rng(seed))
    off = ~np.eye(n, dtype=bool)
    left = [regularize(second, 1, samples)[:, off] / second[:, off] for samples in (0, 10**6, n, 1)]
    for share in left:
        np.testing.assert_allclose(share, share.flat[0], rtol=1e-4)
    exact, many, as_many, one = (share.flat[0] for share in left)
    assert exact == pytest.approx(many) == pytest.approx(1 - module.SHRINKAGE)
    assert as_many == pytest.approx(0.5)
    assert one < 1 / n


@given(kernels, seeds, st.sampled_from([0, 10, 10**6]))
def test_every_channel_keeps_its_power(kernel, seed, samples):
    g, _, i, k = kernel
    second = covariance(g, i * k, np.random.default_rng(seed))
    power = np.einsum("gnn->gn", second).reshape(g, i, k).sum(axis=2)
    kept = np.einsum("gnn->gn", regularize(second, k, samples)).reshape(g, i, k).sum(axis=2)
    np.testing.assert_allclose(kept, power, rtol=1e-4)


@given(
    st.tuples(st.integers(1, 2), st.integers(2, 5), st.sampled_from([4, 9])),
    seeds,
    st.sampled_from([0, 10, 10**6]),
)
def test_factors_are_regularized_much_as_the_matrix_that_they_make(shape, seed, samples):
    g, i, k = shape
    rng = np.random.default_rng(seed)
    spatial = covariance(g, k, rng)
    deviation = np.sqrt(np.einsum("gnn->gn", spatial))
    pattern = Kronecker(covariance(g, i, rng), spatial / deviation[:, :, None] / deviation[:, None])
    found, expected = regularize(pattern, k, samples), regularize(pattern.dense(), k, samples)
    assert isinstance(found, Kronecker)
    np.testing.assert_allclose(found.diagonal(), np.einsum("gnn->gn", expected), rtol=1e-4)
    power = np.sqrt(found.diagonal())
    difference = (found.dense() - expected) / power[:, :, None] / power[:, None]
    assert (
        np.abs(difference).max() < module.SHRINKAGE
    )  # one factor shrinks by half as much, both together by nearly as much
    assert (np.linalg.eigvalsh(found.dense()) > 0).all()


def test_inputs_without_variance_get_one():
    assert (np.einsum("gnn->gn", regularize(np.zeros((2, 8, 8)), 4, 100)) > 0).all()
    assert (np.einsum("gnn->gn", regularize(np.zeros((2, 8, 8)), 1, 100)) > 0).all()


def test_more_samples_are_trusted_more():
    rng = np.random.default_rng(0)
    second = covariance(1, 36, rng)
    distance = [np.abs(regularize(second, 9, samples) - second).max() for samples in (10, 300, 3000)]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > distance[-1]


# Means


@given(kernels, seeds)
def test_mean_uncertainty_is_what_an_unknown_mean_adds_to_the_error(kernel, seed):
    """E (e'd)^2 over means that are wrong by a relative error, independent from channel to channel and the
    same for all taps of one.
    """
    g, _, i, k = kernel
    rng = np.random.default_rng(seed)
    second, mean, e = (
        covariance(g, i * k, rng),
        rng.standard_normal((g, i * k)),
        rng.standard_normal((g, i * k)),
    )
    added = np.einsum("gn,gnm,gm->g", e, with_mean_uncertainty(second, mean, k) - second, e)
    per_channel = (
        (e * mean).reshape(g, i, k).sum(axis=2)
    )  # what one of them moves the output by, for a relative error of 1
    np.testing.assert_allclose(
        added, module.MEAN_RELATIVE_VARIANCE * np.square(per_channel).sum(axis=1), rtol=1e-6, atol=1e-9
    )


@given(kernels, seeds)
def test_a_mean_of_zero_is_certain_and_nothing_is_changed_in_place(kernel, seed):
    g, _, i, k = kernel
    rng = np.random.default_rng(seed)
    second, mean = covariance(g, i * k, rng), rng.standard_normal((g, i * k))
    kept = second.copy()
    with_mean_uncertainty(second, mean, k)
    np.testing.assert_array_equal(second, kept)
    np.testing.assert_array_equal(with_mean_uncertainty(second, np.zeros_like(mean), k), second)


@given(st.tuples(st.integers(1, 2), st.integers(2, 5), st.sampled_from([4, 9])), seeds)
def test_a_pattern_has_the_mean_uncertainty_of_its_channels(shape, seed):
    """Where the taps of a channel agree completely, the pattern says the same as the matrix."""
    g, i, k = shape
    rng = np.random.default_rng(seed)
    pattern = Kronecker(covariance(g, i, rng), np.ones((g, k, k)))
    mean = np.repeat(rng.standard_normal((g, i)), k, axis=1)
    np.testing.assert_allclose(
        with_mean_uncertainty(pattern, mean, k).dense(),
        with_mean_uncertainty(pattern.dense(), mean, k),
        rtol=1e-9,
    )


def test_inputs_of_no_known_mean_stay_as_they_are():
    white = Diagonal(np.ones((1, 4)))
    assert with_mean_uncertainty(white, np.zeros((1, 4)), 2) is white
    assert regularize(white, 2, 100) is white

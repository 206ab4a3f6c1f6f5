"""Matrices in factors do what the matrices that they stand for do; products and factorisations against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.linalg import products
from onnx_dfmpc.linalg.matrices import Dense, Diagonal, Kronecker, matrix, rescaled, through
from onnx_dfmpc.linalg.products import cholesky, gram, inverse_lower, product
from tests.arrays import covariance, seeds

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 9]))


def pattern(shape: tuple[int, int, int], seed: int) -> Kronecker:
    g, i, t = shape
    rng = np.random.default_rng(seed)
    return Kronecker(covariance(g, i, rng), covariance(g, t, rng))


@given(shapes, seeds)
def test_a_product_of_factors_is_numpys(shape, seed):
    found = pattern(shape, seed)
    for channels, spatial, dense in zip(found.channels, found.spatial, found.dense(), strict=True):
        np.testing.assert_array_equal(dense, np.kron(channels, spatial))
    assert found.inputs == found.dense().shape[1]


@given(shapes, seeds, st.data())
def test_factors_act_as_the_matrix(shape, seed, data):
    found = pattern(shape, seed)
    dense, grain = Dense(found.dense()), found.grain
    cuts = st.integers(0, shape[1]).map(lambda i: i * grain)
    start, stop, source_start, source_stop = (data.draw(cuts) for _ in range(4))
    target, source = slice(*sorted((start, stop))), slice(*sorted((source_start, source_stop)))
    columns = np.random.default_rng(seed).standard_normal((shape[0], source.stop - source.start, 4))
    np.testing.assert_allclose(
        found.part(target, source, columns), dense.part(target, source, columns), atol=1e-10
    )
    np.testing.assert_allclose(found.block(target.start, target.stop), dense.block(target.start, target.stop))
    np.testing.assert_allclose(found.diagonal(), dense.diagonal())
    np.testing.assert_allclose(found.unit_diagonal().dense(), dense.unit_diagonal().dense())
    np.testing.assert_allclose(found.unit_diagonal().diagonal(), 1)
    np.testing.assert_allclose(found.cholesky().dense(), dense.cholesky().dense(), atol=1e-8)


@given(shapes, seeds)
def test_a_cholesky_factor_is_lower_triangular_and_its_product_with_itself_is_the_matrix(shape, seed):
    found = pattern(shape, seed)
    for form in (found, Dense(found.dense())):
        factor = form.cholesky().dense()
        np.testing.assert_array_equal(factor, np.tril(factor))
        np.testing.assert_allclose(factor.transpose(0, 2, 1) @ factor, found.dense(), atol=1e-8)


@given(shapes, seeds, st.floats(0.001, 0.5))
def test_damping_adds_to_the_diagonal(shape, seed, share):
    found = pattern(shape, seed)
    dense = Dense(found.dense())
    added = dense.damped(share).values - dense.values
    mean = dense.diagonal().mean(axis=1)
    np.testing.assert_allclose(added, share * mean[:, None, None] * np.eye(found.inputs), atol=1e-9)
    more = found.damped(share).dense() - dense.values
    np.testing.assert_allclose(
        np.einsum("gnn->g", more) / found.inputs, share * (1 + share / 4) * mean, rtol=1e-6
    )
    assert (np.linalg.eigvalsh(more) > -1e-9).all()


@given(shapes, seeds)
def test_rows_go_through_every_form_of_a_covariance(shape, seed):
    g, i, t = shape
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((g, 3, i * t)).astype(np.float32)
    found = pattern(shape, seed)
    np.testing.assert_allclose(through(rows, found), rows.astype(np.float64) @ found.dense(), atol=1e-9)
    np.testing.assert_allclose(
        through(rows, found.dense()), rows.astype(np.float64) @ found.dense(), atol=1e-9
    )
    white = Diagonal(rng.uniform(1, 2, (g, i * t)))
    np.testing.assert_allclose(
        through(rows, white), rows.astype(np.float64) @ matrix(white).dense(), atol=1e-9
    )
    assert all(through(rows, form).dtype == np.float64 for form in (found, found.dense(), white))


@given(shapes, seeds)
def test_channels_that_are_multiplied_by_a_factor(shape, seed):
    g, i, t = shape
    rng = np.random.default_rng(seed)
    factor, found = rng.uniform(0, 2, (g, i)), pattern(shape, seed)
    samples = rng.standard_normal((g, i * t, 50))
    each = np.repeat(factor, t, axis=1)
    expected = each[:, :, None] * found.dense() * each[:, None]
    np.testing.assert_allclose(matrix(rescaled(found, factor)).dense(), expected)
    np.testing.assert_allclose(rescaled(found.dense(), factor), expected)
    variances = samples.var(axis=2)
    changed = rescaled(Diagonal(variances), factor)
    assert isinstance(changed, Diagonal)
    np.testing.assert_allclose(changed.variances, (samples * each[..., None]).var(axis=2))


@pytest.mark.parametrize("n", [1, 31, 33, 129, 300])
def test_factorisations_against_numpy(n):
    rng = np.random.default_rng(n)
    second = covariance(2, n, rng)
    lower = cholesky(second)
    np.testing.assert_allclose(lower, np.linalg.cholesky(second), atol=1e-9)
    np.testing.assert_array_equal(lower, np.tril(lower))
    np.testing.assert_allclose(
        inverse_lower(lower) @ lower, np.broadcast_to(np.eye(n), second.shape), atol=1e-8
    )


def test_what_is_not_positive_definite_has_no_cholesky_factor():
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(-np.eye(200)[None])


@pytest.mark.parametrize("n", [3, 33, 128, 300])
@pytest.mark.parametrize("k", [1, 256, 700])
def test_products_against_numpy(n, k):
    rng = np.random.default_rng(n)
    a = rng.standard_normal((2, n, k)).astype(np.float32)
    exact = a.astype(np.float64)
    np.testing.assert_allclose(gram(exact), exact @ exact.transpose(0, 2, 1), atol=1e-10)
    # In the dtype of its input: within what rounding every term and every sum can do.
    bound = (k + 1) * 2.0**-24 * (np.abs(exact) @ np.abs(exact).transpose(0, 2, 1))
    assert (np.abs(gram(a) - exact @ exact.transpose(0, 2, 1)) <= bound).all()
    assert gram(a).dtype == np.float64
    np.testing.assert_array_equal(gram(a), gram(a).transpose(0, 2, 1))
    np.testing.assert_allclose(product(a, a[0].T), exact @ exact[0].T, atol=1e-10)


@pytest.mark.parametrize("name", ["INNER", "PANEL", "TILE"])
def test_how_products_are_cut_does_not_matter(monkeypatch, name):
    rng = np.random.default_rng(0)
    a, second = rng.standard_normal((2, 50, 90)), covariance(2, 90, rng)
    before = product(a, second), gram(a), cholesky(second)
    monkeypatch.setattr(products, name, 7)
    monkeypatch.setattr(products, "BASE", 5)
    for found, expected in zip((product(a, second), gram(a), cholesky(second)), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)

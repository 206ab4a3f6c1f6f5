"""Rows: an inverse, an order of channels, and what they are for: a row times a patch is an output."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from onnx import parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.spec.ops import (
    OPS,
    along_inputs,
    from_rows,
    input_channels,
    per_channel,
    shares_grid,
    spatial_rank,
    taps,
    to_rows,
)
from tests.arrays import FORMS, forms, layer, seeds


@given(forms, seeds)
def test_from_rows_inverts_to_rows(form, seed):
    at = layer(*form)
    weight = np.random.default_rng(seed).standard_normal(at.shape).astype(np.float32)
    rows = to_rows(weight, at)
    assert rows.shape == (at.group, at.channels // at.group, at.size // at.channels)
    assert rows.shape[2] % taps(at) == 0
    back = from_rows(rows, at)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, weight)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_weight_is_where_its_channel_and_tap_say(form):
    at = layer(*form)
    rows = to_rows(np.arange(at.size).reshape(at.shape), at)
    inputs = at.size // at.channels // taps(at)
    kernel = at.shape[2:]
    for j, i in product(range(at.channels), range(inputs)):
        g, r = divmod(j, rows.shape[1])
        for t, tap in enumerate(product(*map(range, kernel))):
            if at.op_type == "Conv":
                stored = (j, i, *tap)
            elif at.op_type == "ConvTranspose":
                stored = (g * inputs + i, r, *tap)
            else:
                stored = (j, i) if at.axis == 0 else (i, j)
            assert rows[g, r, i * taps(at) + t] == np.ravel_multi_index(stored, at.shape)


@pytest.mark.parametrize(
    ("weight", "group", "strides", "dilations"),
    [
        ((4, 3, 3, 3), 1, (1, 1), (1, 1)),
        ((6, 2, 3, 2), 3, (2, 1), (1, 2)),
        ((5, 1, 3, 3), 5, (1, 2), (1, 1)),
        ((6, 2, 3), 2, (2,), (1,)),
    ],
)
def test_rows_times_patches_are_the_convolution(weight, group, strides, dilations):
    rng = np.random.default_rng(0)
    at = layer("Conv", weight, group)
    w = rng.standard_normal(weight).astype(np.float32)
    x = rng.standard_normal((1, weight[1] * group, 9, 8)[: len(weight)]).astype(np.float32)
    expected = evaluate(
        "Conv", x, w, f"group = {group}, strides = {list(strides)}, dilations = {list(dilations)}"
    )[0]
    rows = to_rows(w, at)
    actual = np.empty_like(expected)
    for place in np.ndindex(*expected.shape[1:]):
        index = [
            slice(p * s, p * s + d * (k - 1) + 1, d)
            for p, s, d, k in zip(place, strides, dilations, weight[2:], strict=True)
        ]
        patch = x[(0, slice(None), *index)].reshape(group, -1)
        actual[(slice(None), *place)] = np.einsum("grn,gn->gr", rows, patch).ravel()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "group", "strides"),
    [((3, 4, 3, 3), 1, (1, 1)), ((6, 2, 2, 3), 3, (2, 1)), ((4, 3, 4), 2, (2,))],
)
def test_rows_times_patches_are_the_transposed_convolution(weight, group, strides):
    rng = np.random.default_rng(0)
    at = layer("ConvTranspose", weight, group, 1)
    w = rng.standard_normal(weight).astype(np.float32)
    x = rng.standard_normal((1, weight[0], 5, 4)[: len(weight)]).astype(np.float32)
    # onnx.reference knows no groups here: a group is a transposed convolution of its own.
    parts = zip(np.split(x, group, 1), np.split(w, group), strict=True)
    expected = np.concatenate(
        [evaluate("ConvTranspose", *part, f"strides = {list(strides)}")[0] for part in parts]
    )
    # A transposed convolution is a convolution of its input with zeros between, the kernel reversed.
    spread = np.zeros(
        (x.shape[1], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), np.float32
    )
    spread[(slice(None), *(slice(None, None, s) for s in strides))] = x[0]
    spread = np.pad(spread, [(0, 0), *((k - 1, k - 1) for k in weight[2:])])
    rows = to_rows(w, at)
    actual = np.empty_like(expected)
    for place in np.ndindex(*expected.shape[1:]):
        index = tuple(slice(p, p + k) for p, k in zip(place, weight[2:], strict=True))
        patch = np.flip(spread[(slice(None), *index)], axis=tuple(range(1, len(weight) - 1))).reshape(
            group, -1
        )
        actual[(slice(None), *place)] = np.einsum("grn,gn->gr", rows, patch).ravel()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_only_a_grouped_transposed_convolution_shares_its_grid():
    assert [shares_grid(layer(*form)) for form in FORMS] == [
        op == "ConvTranspose" and group > 1 for op, _, group, _ in FORMS
    ]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_channels_are_where_the_operator_has_them(form):
    at = layer(*form)
    attributes = {"group": at.group, "transB": int(at.axis == 0)}
    assert OPS[at.op_type].fits(at.shape)
    assert OPS[at.op_type].axis(attributes) == at.axis
    assert OPS[at.op_type].group(attributes) == at.group
    assert OPS[at.op_type].channels(at.shape, attributes) == (input_channels(at), at.channels)
    assert spatial_rank(at) == len(at.shape) - 2
    along = per_channel(np.arange(at.channels), at, ndim=4)
    assert along.shape == ((1, at.channels, 1, 1) if spatial_rank(at) else (1, 1, 1, at.channels))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_factors_of_inputs_scale_the_inputs_of_every_row(form):
    at = layer(*form)
    factor = np.arange(1.0, input_channels(at) + 1)
    rows = to_rows(along_inputs(factor, at), at)
    for j, i in product(range(at.channels), range(input_channels(at) // at.group)):
        g, r = divmod(j, rows.shape[1])
        expected = factor[g * (input_channels(at) // at.group) + i]
        assert set(rows[g, r, i * taps(at) : (i + 1) * taps(at)]) == {expected}


def evaluate(op: str, x: np.ndarray, w: np.ndarray, attributes: str) -> np.ndarray:
    x_shape, w_shape = (",".join(map(str, array.shape)) for array in (x, w))
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[{x_shape}] x, float[{w_shape}] w) => (float[] y) {{ y = {op} <{attributes}> (x, w) }}""")
    return ReferenceEvaluator(model).run(None, {"x": x, "w": w})[0]

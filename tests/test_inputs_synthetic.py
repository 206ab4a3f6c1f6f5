"""Synthetic inputs, and hypotheses on what the real ones are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import Hypothesis, Kind, draw, hypothetical, synthetic, synthetic_feeds
from onnx_dfmpc.spec import InputSpec
from tests.samples import IMAGE, SIGNAL, fed


def drawn(shape: tuple[int | str, ...], kind: Kind = "pictures", dtype: Any = np.float32, **how: Any) -> Any:
    return fed(synthetic([InputSpec("x", np.dtype(dtype), shape)], kind, **how))["x"]


@pytest.mark.parametrize(
    ("shape", "kind", "values"),
    [
        (("N", 3, 12, 10), "pictures", [0.54395, 2.7439, -0.25619, 0.36143, -0.40619, -1.45028]),
        (("N", 3, 12, 10), "spectrum", [-0.52598, 1.14427, 0.94383, 0.88719, 0.13502, 0.0282]),
        (("N", 6, 20), "pictures", [-2.28685, 0.72877, 1.30091, 0.55923, 1.40201, 0.27523]),
        (("N", 6, 20), "spectrum", [-0.80193, 1.1703, -1.28249, 0.42604, 0.63561, 0.23106]),
    ],
)
def test_synthetic_values_are_those_that_files_were_made_from(
    shape: tuple[int | str, ...], kind: Kind, values: list[float]
) -> None:
    x = drawn(shape, kind, samples=4, seed=5)[:2].reshape(2, -1)[:, [0, 40, 77]]
    np.testing.assert_allclose(x.ravel(), values, atol=2e-5)


TOKENS = """
<ir_version: 8, opset_import: ["": 17]>
g (int32[N, 6] tokens, int64[N, 6] places, int64[N] size) => (float[N, 6, 2] y)
<float[9, 2] words = {0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7}, float[4, 2] at = {0,1,2,3,4,5,6,7}, float[2, 5] shares = {0,1,2,3,4,5,6,7,8,9}> {
  wide = Cast <to = 7> (tokens)
  a = Gather (words, wide)
  b = Gather (at, places)
  c = Gather <axis = 1> (shares, places)
  y = Add (a, b)
}"""


@pytest.mark.parametrize("kind", ["pictures", "white", "spectrum"])
def test_indices_stay_within_their_table(kind: Kind) -> None:
    specs = model_inputs(parser.parse_model(TOKENS))
    assert [spec.rows for spec in specs] == [9, 4, None]
    drawn = fed(synthetic(specs, kind, samples=64))
    assert np.array_equal(np.unique(drawn["tokens"]), range(9))
    assert drawn["tokens"].dtype == np.int32
    assert np.array_equal(np.unique(drawn["places"]), range(4))
    some = fed(synthetic(specs, kind, samples=64, input_range=(2, 6)))
    assert np.array_equal(np.unique(some["tokens"]), range(2, 7))  # --input-range counts, within the table
    assert np.array_equal(np.unique(some["places"]), [2, 3])


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(
        [
            ("N", 3, 12, 10),
            (2, 3, 8, 8),
            ("N", 4, 20),
            (1, 5),
            ("N", 6, 6, 3),
            ("N", 1, 9, 9),
            ("N", 9, 9, 1),
            (),
        ]
    ),
    st.sampled_from([np.float32, np.float16, np.float64, np.uint8, np.int8, np.int64, np.bool_]),
    st.sampled_from(["pictures", "white", "spectrum"]),
    st.integers(0, 2**32 - 2),
)
def test_synthetic_inputs_fit_the_model(
    shape: tuple[int | str, ...], dtype: Any, kind: Kind, seed: int
) -> None:
    spec = InputSpec("x", np.dtype(dtype), shape)
    first, again, other = (synthetic([spec], kind, samples=8, seed=s) for s in (seed, seed, seed + 1))
    changed = False
    for one, same, another in zip(*(found.batches() for found in (first, again, other)), strict=True):
        x = one[2]["x"]
        assert x.dtype == dtype
        assert x.ndim == len(shape)
        sizes = zip(x.shape, shape, strict=True)
        assert all(size == wanted for size, wanted in sizes if isinstance(wanted, int))
        assert np.isfinite(x.astype(np.float64)).all()
        if x.dtype.kind in "iu":
            assert x.min() >= 0
        assert (x == same[2]["x"]).all()
        changed |= bool((x != another[2]["x"]).any())
    assert changed == bool(shape)


@pytest.mark.parametrize("kind", ["pictures", "white", "spectrum"])
@pytest.mark.parametrize("shape", [("N", 3, 8, 8), ("N", 6, 20)])
def test_a_sample_is_the_same_in_any_batch(shape: tuple[int | str, ...], kind: Kind) -> None:
    many = drawn(shape, kind, samples=12, batch=4)
    few = drawn(shape, kind, samples=6, batch=3)
    np.testing.assert_array_equal(few, many[:6])
    fixed = drawn((2, *shape[1:]), kind, samples=6)
    np.testing.assert_array_equal(fixed, few)


@pytest.mark.parametrize("shape", [("N", 3, 8, 8), ("N", 6, 20)])
def test_no_picture_is_there_twice(shape: tuple[int | str, ...]) -> None:
    x = drawn(shape, samples=16).reshape(16, -1)
    correlation = np.corrcoef(x) - np.eye(16)
    assert np.abs(correlation).max() < 0.99  # neither again nor as a negative


def test_pictures_fill_their_last_batch() -> None:
    assert len(drawn(("N", 3, 8, 8), samples=7, batch=3)) == 9
    assert len(drawn(("N", 3, 8, 8), "spectrum", samples=7, batch=3)) == 7
    assert len({len(feed["x"]) for feed in synthetic_feeds([InputSpec("x", np.dtype("f4"), ("N", 5))])}) == 1


def test_an_input_without_the_batch_axis_is_the_same_in_all_runs() -> None:
    specs = [
        InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8)),
        InputSpec("size", np.dtype(np.int64), (2,)),
        InputSpec("k", np.dtype(np.int64), ()),
    ]
    for kind in ("pictures", "spectrum"):
        feeds = [feed for _, _, feed in synthetic(specs, kind, samples=4, batch=2).batches()]
        assert [(len(feed["x"]), feed["size"].shape, int(feed["k"])) for feed in feeds] == [(2, (2,), 1)] * 2
        np.testing.assert_array_equal(feeds[0]["size"], feeds[1]["size"])


@pytest.mark.parametrize("kind", ["pictures", "spectrum"])
def test_flags_are_as_often_true_as_false(kind: Kind) -> None:
    flags = drawn(("N", 64), kind, np.bool_, samples=16)
    assert flags.dtype == np.bool_
    assert 0.3 < flags.mean() < 0.7


def test_synthetic_samples_say_what_they_are() -> None:
    specs = [IMAGE, SIGNAL]
    assert synthetic(specs, samples=4).description == "4 synthetic samples (1/f images, noise, seed 0)"
    found = synthetic(specs, "pictures", samples=4, input_range=(0, 1))
    assert found.description == "4 synthetic samples (pictures, smooth noise in 0 to 1, seed 0)"


@pytest.mark.parametrize("shape", [("N", 3, 16, 16), ("N", 6, 50), ("N", 20), ("N", 16, 16, 3)])
def test_synthetic_floats_have_mean_zero_and_variance_one(shape: tuple[int | str, ...]) -> None:
    values = drawn(shape)
    assert abs(values.mean()) < 0.2
    assert 0.7 < values.std() < 1.4
    assert values.reshape(len(values), -1).std(axis=0).min() > 0.5  # every input moves


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (10.0, 200.0)])
def test_input_range_is_respected_and_used(dtype: Any, interval: tuple[float, float]) -> None:
    values = drawn(("N", 3, 16, 16), dtype=dtype, samples=64, input_range=interval).astype(np.float64)
    assert values.min() >= interval[0]
    assert values.max() <= interval[1]
    assert values.max() - values.min() > 0.8 * (interval[1] - interval[0])


def test_pictures_are_smooth_and_their_colours_go_together() -> None:
    images = drawn(("N", 3, 32, 32))
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    far = np.corrcoef(images[..., 16:].ravel(), images[..., :-16].ravel())[0, 1]
    colours = np.corrcoef(images[:, 0].ravel(), images[:, 1].ravel())[0, 1]
    assert neighbours > 0.7
    assert neighbours > far + 0.2
    assert colours > 0.5


@pytest.mark.parametrize(("kind", "side"), [("pictures", 224), ("spectrum", 64)])
def test_dynamic_sizes_get_a_number(kind: Kind, side: int) -> None:
    assert drawn(("N", 3, "h", "w"), kind, samples=1).shape == (1, 3, 224, 224)
    assert drawn(("N", 2, "h", "w"), kind, samples=1).shape == (1, 2, side, side)
    assert drawn(("N", 2, "t"), kind, samples=1).shape == (1, 2, 64)


def test_white_noise_is_white() -> None:
    white = drawn(("N", 3, 16, 16), "white", samples=64)
    assert abs(white.mean()) < 0.03
    assert white.std() == pytest.approx(1, abs=0.03)
    for one, other in (
        (white[..., 1:], white[..., :-1]),
        (white[:, :, 1:], white[:, :, :-1]),
        (white[:, 0], white[:, 1]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("shape", [("N", 3, 12, 10), ("N", 6, 21), ("N", 4, 7, 20)])
@pytest.mark.parametrize("kind", ["pictures", "spectrum"])
def test_filtered_noise_keeps_its_variance(shape: tuple[int | str, ...], kind: Kind) -> None:
    """Of a real transform, the frequencies between the lowest and the highest stand for two: sides that are
    even and odd.
    """
    values = drawn(shape, kind, samples=400)
    assert np.square(values).mean(dtype=np.float64) == pytest.approx(1, abs=0.2)


# --------------------------------------------------------------------------------------------------------
# hypotheses on inputs


@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize("kind", ["pictures", "white", "spectrum"])
def test_a_hypothesis_is_a_range_four_deviations_wide(kind: Kind, picture: bool) -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, 16, 16))
    units = draw([spec], kind, 24, 5)
    plain = units.arrays["x"].astype(np.float64)
    feeds = hypothetical(units, Hypothesis(kind, 10.0, 50.0, picture))
    values = np.concatenate([feed["x"] for feed in feeds])
    assert values.dtype == np.float32
    expected = 30 + 10 * plain
    np.testing.assert_allclose(values, np.clip(expected, 10, 50) if picture else expected, atol=1e-5)
    assert bool(values.min() >= 10 and values.max() <= 50) is picture
    few = hypothetical(units, Hypothesis(kind, 10.0, 50.0, picture), 5)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in few]), values[:5])


def test_a_hypothesis_leaves_integers_and_what_all_samples_share() -> None:
    specs = [
        InputSpec("x", np.dtype(np.float32), (2, 3, 8, 8)),
        InputSpec("k", np.dtype(np.int64), (2,)),
        InputSpec("scale", np.dtype(np.float32), (1, 4)),
    ]
    units = draw(specs, "pictures", 5, 0)
    assert units.count == 6  # the model fixes its batch to 2
    feeds = hypothetical(units, Hypothesis("pictures", 0.0, 255.0), 3)
    assert [[feed[spec.name].shape for spec in specs] for feed in feeds] == [[(2, 3, 8, 8), (2,), (1, 4)]] * 2
    assert feeds[0]["k"].dtype == np.int64
    np.testing.assert_array_equal(feeds[0]["scale"], feeds[1]["scale"])
    np.testing.assert_array_equal(feeds[0]["k"], units.arrays["k"][:2])


@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [
        (Hypothesis("pictures", -2.0, 2.0), "pictures in -2 to 2"),
        (Hypothesis("pictures", -0.06, 0.06, False), "smooth noise in -0.06 to 0.06"),
        (Hypothesis("white", 0.0, 255.0), "white noise in 0 to 255"),
        (Hypothesis("spectrum", 0.0, 1.0), "1/f images in 0 to 1"),
    ],
)
def test_hypotheses_say_what_they_are(hypothesis: Hypothesis, words: str) -> None:
    assert str(hypothesis) == words

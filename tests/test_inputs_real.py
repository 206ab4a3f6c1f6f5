"""Real inputs for statistics: rows of the user, some of them held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_dfmpc.inputs.data import real_inputs
from onnx_dfmpc.recipe import Data
from tests.graphs import parse
from tests.samples import signals

SIGNALS = "g (float[N, 5] s) => (float[] y) { y = Relu(s) }"


def rows_of(feeds: Any) -> np.ndarray:
    return np.concatenate([feed["s"] for feed in feeds]) if feeds else np.zeros((0, 5), np.float32)


@pytest.mark.parametrize(
    ("count", "held_out"), [(1, 0), (2, 0), (15, 0), (16, 2), (30, 3), (128, 16), (400, 16)]
)
def test_real_inputs_are_the_users_rows_some_of_them_held_out(count: int, held_out: int) -> None:
    data = signals(count)
    found = real_inputs(parse(SIGNALS), Data(data={"s": data}))
    assert found.count == count - held_out
    np.testing.assert_array_equal(rows_of(found.feeds), data[: found.count])
    np.testing.assert_array_equal(rows_of(found.held_out), data[found.count :])


def test_real_inputs_are_not_more_than_a_few_hundred() -> None:
    data = signals(700)
    found = real_inputs(parse(SIGNALS), Data(data={"s": data}))
    many = np.concatenate([rows_of(found.feeds), rows_of(found.held_out)])
    assert (len(many), found.count) == (512, 496)
    assert len({row.tobytes() for row in many}) == 512  # none is on both sides
    assert {row.tobytes() for row in many} <= {row.tobytes() for row in data}
    loader = lambda: ({"s": data[start : start + 7]} for start in range(0, 14, 7))  # noqa: E731
    loaded = real_inputs(parse(SIGNALS), Data(data=loader, samples=3))
    np.testing.assert_array_equal(rows_of(loaded.feeds), data[:14])


def test_a_fixed_batch_is_held_out_as_a_whole_or_not_at_all() -> None:
    model = parse("g (float[4, 5] s) => (float[] y) { y = Relu(s) }")
    for count, held_out in ((16, 0), (32, 4), (64, 8)):
        found = real_inputs(model, Data(data={"s": signals(count)}))
        assert (found.count, len(rows_of(found.held_out))) == (count - held_out, held_out)
        assert {len(feed["s"]) for feed in [*found.feeds, *found.held_out]} == {4}


def test_the_span_of_real_inputs_is_four_deviations_about_their_mean() -> None:
    data = 3 * signals(40) + np.float32(1000)
    found = real_inputs(parse(SIGNALS), Data(data={"s": data}))
    mean, deviation = data[:35].mean(dtype=np.float64), data[:35].std(dtype=np.float64)
    assert found.span == pytest.approx((mean - 2 * deviation, mean + 2 * deviation), rel=1e-6)
    still = real_inputs(parse(SIGNALS), Data(data={"s": np.ones((3, 5), np.float32)}))
    assert still.span is None
    whole = parse("g (int64[N, 5] s) => (int64[] y) { y = Identity(s) }")
    assert real_inputs(whole, Data(data={"s": np.arange(10).reshape(2, 5)})).span is None

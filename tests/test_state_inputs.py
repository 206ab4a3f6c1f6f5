"""Inputs whose first dimension does not count samples, such as the state of a speech model."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_dfmpc import validate
from onnx_dfmpc.errors import RecipeError

RECURRENT = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4] x, float[2, 1, 4] state) => (float[N, 4] y, float[2, 1, 4] next)
    {{ zero = Constant<value = int64 {{0}}>()
       past = Gather<axis = 0>(state, zero)
       y = Add(x, past)
       factor = Constant<value = float {{{factor}}}>()
       next = Mul(state, factor) }}"""


def recurrent(factor: float) -> onnx.ModelProto:
    """A model whose outputs are its state, times a factor."""
    return parser.parse_model(RECURRENT.format(factor=factor))


def feeds(samples: int = 3, batch: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.normal(size=(batch, 4)).astype(np.float32),
            "state": np.full((2, 1, 4), 10.0**index, np.float32),
        }
        for index in range(samples)
    ]


def largest_difference(data: object) -> float:
    report = validate(recurrent(1.0), recurrent(1.5), data)
    return max(output.max_abs or 0 for output in report.outputs)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_feed_runs_with_its_own_state(batch):
    # Half of the largest state: with the first one for all it would be 0.5.
    assert largest_difference(lambda: feeds(batch=batch)) == pytest.approx(50)


def test_arrays_may_have_a_state_for_every_sample():
    data = {key: np.stack([feed[key] for feed in feeds()]) for key in ("x", "state")}
    data["x"] = data["x"][:, 0]
    assert largest_difference(data) == pytest.approx(50)


def test_one_state_serves_all_samples_where_there_is_one():
    data = {"x": np.ones((5, 4), np.float32), "state": np.full((2, 1, 4), 8, np.float32)}
    assert largest_difference(data) == pytest.approx(4)


def test_feeds_with_a_state_have_as_many_samples_each():
    uneven = [*feeds(1, batch=1), *feeds(2, batch=2)[1:]]
    with pytest.raises(RecipeError, match="has 2 samples") as caught:
        validate(recurrent(1.0), recurrent(1.0), lambda: uneven)
    assert "state changes from feed to feed" in caught.value.hint


def test_states_in_a_file(tmp_path: Path):
    data = {key: np.stack([feed[key] for feed in feeds()]) for key in ("x", "state")}
    np.savez(tmp_path / "data.npz", x=data["x"][:, 0], state=data["state"])
    assert largest_difference(tmp_path / "data.npz") == pytest.approx(50)

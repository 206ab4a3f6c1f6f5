"""What a quantized model is expected to do, against plain NumPy; and what is said about inputs that are not known."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnx_dfmpc.evaluate.expectation import Trial, expect
from onnx_dfmpc.inputs.synthetic import Hypothesis
from onnx_dfmpc.pipeline.doubts import doubts
from onnx_dfmpc.spec import Expectation, KindNoise
from onnx_dfmpc.statistics.belief import Belief
from tests.graphs import noise, parse

TWO = """g (float[N, 6] x) => (float[] y, float[] z, int64[] best) {
    y = MatMul(x, w)  z = MatMul(x, v)  best = ArgMax <axis = 1> (y)
}"""
W, V = noise(6, 4), noise(6, 3, seed=1)


def changed(model: ModelProto, **weights: np.ndarray) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return copy


def db(signal: np.ndarray, error: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal, dtype=float).sum() / np.square(error, dtype=float).sum()))


def trials(*weights: float) -> list[Trial]:
    """Inputs that turn to other directions, in two batches of different sizes."""
    return [
        Trial(
            f"kind {place}",
            weight,
            [
                {"x": noise(size, 6, seed=10 * place + size) * np.float32(np.arange(6) ** place)}
                for size in (3, 2)
            ],
        )
        for place, weight in enumerate(weights)
    ]


def test_the_point_is_the_mean_over_the_kinds_of_the_worst_output_and_the_interval_their_range() -> None:
    model = parse(TWO, w=W, v=V)
    off_w, off_v = 0.05 * noise(6, 4, seed=2), 0.05 * noise(6, 3, seed=3)
    weights = (0.2, 0.5, 0.3)
    given = trials(*weights)
    found = expect(model, changed(model, w=W + off_w, v=V + off_v), given)
    assert found is not None
    expected = []
    for trial in given:
        x = np.concatenate([feed["x"] for feed in trial.feeds]).astype(np.float64)
        expected.append(min(db(x @ W, x @ off_w), db(x @ V, x @ off_v)))
    assert len(set(np.round(expected, 1))) == 3
    assert [kind.sqnr_db for kind in found.kinds] == pytest.approx(expected, abs=1e-3)
    assert [(kind.name, kind.weight) for kind in found.kinds] == [(one.name, one.weight) for one in given]
    assert found.sqnr_db == pytest.approx(np.dot(weights, expected), abs=1e-3)
    assert (found.low_db, found.high_db) == pytest.approx((min(expected), max(expected)), abs=1e-3)


def test_a_kind_on_which_nothing_can_be_compared_is_left_out() -> None:
    model = parse(TWO, w=W, v=V)
    first, second = trials(0.2, 0.8)
    broken = Trial("broken", 0.5, [{"x": np.full((2, 6), np.nan, np.float32)}])
    other = changed(model, w=W * np.float32(1.1))
    # z is the same in both models: the worst output is y alone, whose error is a tenth of it.
    found = expect(model, other, [first, broken, second])
    assert found is not None
    assert [kind.name for kind in found.kinds] == ["kind 0", "kind 1"]
    assert found.sqnr_db == pytest.approx(20, abs=1e-3)
    assert expect(model, other, [broken]) is None
    assert expect(model, model, [first, second]) is None  # no noise at all has no finite number of dB


# ------------------------------------------------------------------------------------------------------
# what is said

RANGES = (
    Hypothesis("pictures", -2.0, 2.0),
    Hypothesis("pictures", 0.0, 255.0),
    Hypothesis("white", -2.0, 2.0),
)


def belief(*weights: float) -> Belief:
    return Belief(RANGES[: len(weights)], np.array(weights), False)


def test_of_what_is_sure_nothing_is_said() -> None:
    for nothing in (None, belief(1.0), belief(0.95, 0.03, 0.02)):
        assert doubts(nothing, None) == ()


def test_what_is_not_sure_is_named_with_what_knowing_it_would_buy() -> None:
    kinds = (
        KindNoise("pictures in -2 to 2", 0.3, 21.0),
        KindNoise("1/f images in -2 to 2", 0.3, 19.5),
        KindNoise("pictures in 0 to 255", 0.2, 16.0),
        KindNoise("1/f images in 0 to 255", 0.2, 15.0),
    )
    (line,) = doubts(belief(0.6, 0.38, 0.02), Expectation(18.0, 15.0, 21.0, kinds))
    # White noise counts for its range; without 0 to 255, the lower end is the lower of the first two.
    assert line == (
        "the inputs are not known: pictures in -2 to 2 (62%), or 0 to 255 (38%); --input-range -2 2, "
        "if it is right, raises the lower end of the prediction by 4.5 dB, to 19.5; "
        "an --images convention or one real sample in --calibration-data tells, too"
    )
    assert "\n" not in line


def test_a_doubt_without_a_prediction_names_the_flags_alone() -> None:
    (line,) = doubts(belief(0.5, 0.45, 0.05), None)
    assert line == (
        "the inputs are not known: pictures in -2 to 2 (55%), or 0 to 255 (45%); "
        "--input-range, an --images convention or one real sample in --calibration-data says better"
    )


def test_an_output_that_is_listed_twice_counts_once() -> None:
    model = parse(TWO, w=W, v=V)
    model.graph.output.append(model.graph.output[0])
    assert expect(model, changed(model, w=W * np.float32(1.1)), trials(1.0)) is not None

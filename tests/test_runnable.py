"""Inputs of models that do not run on what is usual: signals of a least length, states, lengths beside signals."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_dfmpc import Recipe, quantize, validate
from onnx_dfmpc.evaluate.probabilities import sigmoid_outputs
from onnx_dfmpc.evaluate.runnable import runnable_shapes
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.runtime.pieces import open_model
from tests.graphs import noise, parse

SPEECH = """speech (float[N, L] sound, float[2, N, 4] state, int64 sr) => (float[N, 4] y, float[2, N, 4] after) {
    axis = Constant<value = int64[1] {1}>()
    channels = Unsqueeze(sound, axis)
    window = Pad<mode = "reflect">(channels, pads)
    frames = Conv<strides = [128]>(window, w)
    live = Relu(frames)
    pooled = ReduceMean<axes = [2], keepdims = 0>(live)
    scores = MatMul(pooled, v)
    zero = Constant<value = int64 {0}>()
    last = Gather<axis = 0>(state, zero)
    y = Add(scores, last)
    rate = Cast<to = 1>(sr)
    after = Mul(state, rate)
}"""


def speech() -> onnx.ModelProto:
    """Takes no fewer than 97 numbers of sound, and one state for each."""
    return parse(SPEECH, pads=np.array([0, 0, 96, 0, 0, 96]), w=noise(16, 1, 256), v=noise(16, 4, seed=1))


def test_lengths_and_states_are_found_and_said() -> None:
    model = speech()
    session = open_model(model, "model")
    shapes, notes = runnable_shapes(session, model_inputs(model), Data())
    assert shapes == {"sound": (1, 512), "state": (2, 1, 4)}
    assert "sound (1, 512), state (2, 1, 4)" in notes[0]
    result = quantize(model, None, Recipe(bits=8, samples=2, rounding="nearest", repair="none"))
    assert result.validation
    assert (result.validation.sqnr_db or 0) > 20
    assert notes[0] in result.notes
    # Nobody told `validate`.
    assert validate(model, result.model, Data(samples=2))


def test_what_runs_is_left_alone() -> None:
    model = parse("g (float[N, C] x) => (float[N, C] y) { y = Relu(x) }")
    assert runnable_shapes(open_model(model, "model"), model_inputs(model), Data()) == ({}, ())
    given = Data(shapes={"x": (3, 5)})
    assert runnable_shapes(open_model(model, "model"), model_inputs(model), given) == (given.shapes, ())


def test_the_users_inputs_tell_shapes() -> None:
    data = {"sound": noise(3, 200), "state": np.zeros((2, 1, 4), np.float32), "sr": np.array(16000, np.int64)}
    result = quantize(speech(), None, Recipe(bits=8, data=data, rounding="nearest", repair="none"))
    assert result.validation
    assert not result.validation.synthetic


@pytest.mark.parametrize("name", ["length", "audio_lens", "len", "input_lengths"])
def test_masked_signals_are_as_long_as_they_are(name: str) -> None:
    masked = f"""g (float[N, 8, T] x, int64[N] {name}, int64[N, T] attention_mask, bool[N] valence)
        => (float[N, 8, T] y, int64[N] z, int64[N, T] m, bool[N] v) {{
        y = Identity(x)  z = Identity({name})  m = Identity(attention_mask)  v = Identity(valence) }}"""
    feeds = synthetic(model_inputs(parse(masked)), "pictures", samples=3, batch=3).make(0, 3)
    np.testing.assert_array_equal(feeds[name], np.full(3, feeds["x"].shape[2]))
    assert feeds["attention_mask"].all()
    assert feeds[name].dtype == np.int64


def test_nothing_is_claimed_of_outputs_that_are_zero() -> None:
    model = parse("g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { c = Conv(x, w) d = Mul(c, o) y = Relu(d) }",
                  w=noise(4, 3, 3, 3), o=np.zeros(1, np.float32))  # fmt: skip
    report = quantize(model, None, Recipe(bits=4, rounding="nearest", repair="none")).validation
    assert report is not None
    assert any(
        note.startswith("y: on synthetic inputs both models answer next to 0") for note in report.notes
    )


DETECTOR = """g (float[N, 3, 16, 16] x) => (float[N, 4, 14, 14] y) {{
    c = Conv(x, w, b)
    s = {last}(c)
    y = Identity(s) }}"""


def detector(last: str, level: float) -> onnx.ModelProto:
    """Whose scores are about that level."""
    return parse(DETECTOR.format(last=last), w=noise(4, 3, 3, 3) / 9, b=np.full(4, level, np.float32))


def test_probabilities_next_to_zero_neither_fail_nor_predict() -> None:
    float_model, other = detector("Sigmoid", -12), detector("Sigmoid", -9)
    report = validate(float_model, other)
    assert report.sqnr_db is not None
    assert report.sqnr_db < 0
    assert report
    assert any("y: on synthetic inputs both models answer next to 0" in note for note in report.notes)
    # The user's own limit is one, and so are the user's own inputs.
    assert not validate(float_model, other, gates={"min_sqnr_db": 6.0})
    # Probabilities that moved, and numbers of any other kind, fail.
    assert not validate(float_model, detector("Sigmoid", 0))
    assert not validate(detector("Sigmoid", 0), float_model)
    assert not validate(detector("Exp", -12), detector("Exp", -9))


def test_integer_weights_are_named() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["N", 4])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["N", 4])],
            [onnx.numpy_helper.from_array(np.ones((4, 4), np.int8), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(Exception, match="integers already: 1 MatMulInteger"):
        quantize(model, None, Recipe())


def test_long_chains_are_followed_to_their_sigmoid() -> None:
    links = "".join(f"x{i + 1} = Identity(x{i}) " for i in range(1500))
    model = parse(f"g (float[N] x) => (float[N] x1500) {{ x0 = Sigmoid(x) {links} }}")
    assert sigmoid_outputs(model) == {"x1500"}

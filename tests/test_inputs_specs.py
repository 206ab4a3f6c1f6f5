"""What a model declares of its inputs, and what is left open."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_dfmpc.errors import RecipeError, UnsupportedError
from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.samples import from_data
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.spec import InputSpec
from tests.graphs import parse
from tests.samples import SIGNAL, signals


def test_shapes_settle_what_a_model_leaves_open() -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, "h", "w"))
    found = samples_of([spec], Data(samples=4, shapes={"x": (2, 3, 8, 10)}))
    assert [feeds["x"].shape for _, _, feeds in found.batches()] == [(2, 3, 8, 10)] * 2
    with pytest.raises(RecipeError, match="expects"):
        samples_of([spec], Data(data=np.zeros((4, 3, 8, 8), np.float32), shapes={"x": (2, 3, 8, 10)}))
    with pytest.raises(RecipeError, match=r"\(1, 4, 8, 8\) does not fit the input x"):
        samples_of([spec], Data(shapes={"x": (1, 4, 8, 8)}))
    with pytest.raises(RecipeError, match="no input is named 'y'"):
        samples_of([spec], Data(shapes={"y": (1, 3, 8, 8)}))


def test_batch_size() -> None:
    assert [stop - start for start, stop, _ in from_data([SIGNAL], signals(7), batch=3).batches()] == [
        3,
        3,
        1,
    ]
    fixed = InputSpec("s", np.dtype(np.float32), (2, 5))
    assert from_data([fixed], signals(4), batch=2).batch == 2
    with pytest.raises(RecipeError, match="batch size 3: the model takes 2 at a time"):
        from_data([fixed], signals(4), batch=3)


def test_inputs_as_the_file_declares_them() -> None:
    model = parse(
        "g (float[N, 3, 8, 8] x, int64[2] size, float[?, 4] z, float[4] w) => (float[] y) { y = Identity(x) }",
        w=np.zeros(4, np.float32),
    )
    assert [(spec.name, spec.dtype, spec.shape) for spec in model_inputs(model, {"z": (2, 4)})] == [
        ("x", np.float32, ("N", 3, 8, 8)),
        ("size", np.int64, (2,)),
        ("z", np.float32, (2, 4)),
    ]


@pytest.mark.parametrize("kind", ["string[N]", "seq(float[N])", "bfloat16[N]"])
def test_inputs_that_cannot_be_drawn(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="'x'"):
        model_inputs(parse(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}"))

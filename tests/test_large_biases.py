"""New biases that no 16 bits hold, where inputs are large: sizes are predicted once more, and targets hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.storage.halves import MOST
from tests.graphs import noise, parse

TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 8] y) {
    [one] a = Conv(x, u)  r = Relu(a)  [two] b = Conv(r, v)  s = Relu(b)
    p = GlobalAveragePool(s)  f = Flatten(p)  [last] y = MatMul(f, w) }"""

CHEAP: dict[str, Any] = {"samples": 2, "input_range": (0, 255), "rounding": "nearest"}


def bright() -> ModelProto:
    """Positive weights on pictures of 0 to 255: rounding moves means by thousands, and no layer has a bias."""
    weights = {
        "u": 200 * np.abs(noise(64, 3, 3, 3)),
        "v": np.abs(noise(32, 64, 3, 3)) / 24,
        "w": noise(32, 8),
    }
    return parse(TEXT, **weights)


def is_large(model: ModelProto) -> bool:
    vectors = (numpy_helper.to_array(one) for one in model.graph.initializer if len(one.dims) == 1)
    return any(np.abs(one).max() > MOST for one in vectors if one.dtype == np.float32)


def test_no_file_is_larger_than_predicted_or_than_its_target() -> None:
    free = quantize(bright(), None, Recipe(slim=True, target_bits=2.5, **CHEAP), validated=False)
    assert is_large(free.model)
    size = len(free.model.SerializeToString())
    assert size <= (free.plan.predicted_bytes or 0)
    size -= 60  # as few as fewer bits for some layers save
    made = quantize(bright(), None, Recipe(target_size=size, **CHEAP), validated=False)
    assert is_large(made.model)
    assert len(made.model.SerializeToString()) <= (made.plan.predicted_bytes or 0) <= size

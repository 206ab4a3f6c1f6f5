"""Attributes that have their default go; what is computed stays."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.rewrite.attributes import drop_defaults
from onnx_dfmpc.runtime.session import Session
from tests.graphs import noise, parse

TEXT = """g (float[2, 4, 8, 8] x) => (float[2, 5] y) {
    a = Conv<auto_pad = "NOTSET", dilations = [1, 1], group = 2, kernel_shape = [3, 3], pads = [1, 1, 1, 1],
             strides = [1, 1]>(x, w)
    b = Conv<dilations = [2, 2], group = 1, kernel_shape = [3, 3], pads = [0, 0, 0, 0], strides = [2, 1]>(a, v)
    c = MaxPool<ceil_mode = 0, dilations = [1, 1], kernel_shape = [2, 2], pads = [0, 0, 0, 0],
                storage_order = 0, strides = [1, 1]>(b)
    d = AveragePool<count_include_pad = 1, kernel_shape = [1, 3], strides = [1, 1]>(c)
    e = LeakyRelu<alpha = 0.01>(d)
    f = Flatten<axis = 1>(e)
    y = Gemm<alpha = 1.0, beta = 1.0, transA = 0, transB = 1>(f, u, t)
}"""


def model() -> ModelProto:
    proto, rng = parse(TEXT), np.random.default_rng(0)
    for name, shape in {"w": (4, 2, 3, 3), "v": (6, 4, 3, 3), "u": (5, 6), "t": (5,)}.items():
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def test_only_what_says_something_is_left() -> None:
    proto = model()
    drop_defaults(proto)
    left = {node.op_type + node.output[0]: {one.name for one in node.attribute} for node in proto.graph.node}
    assert left == {
        "Conva": {"group", "pads"},
        "Convb": {"dilations", "strides"},
        "MaxPoolc": {"kernel_shape"},
        "AveragePoold": {"count_include_pad", "kernel_shape"},
        "LeakyRelue": set(),
        "Flattenf": {"axis"},
        "Gemmy": {"transB"},
    }


def test_outputs_are_the_same() -> None:
    before, after = model(), model()
    drop_defaults(after)
    feed = {"x": noise(2, 4, 8, 8)}
    for run in (lambda m: ReferenceEvaluator(m).run(None, feed)[0], lambda m: Session(m, "it").run(feed)[0]):
        np.testing.assert_array_equal(run(after), run(before))


def test_a_weight_of_unknown_shape_keeps_its_kernel_shape() -> None:
    proto = parse(
        "g (float[1, 4, 8, 8] x, float[A, B, C, D] w) => (float[E, F, G, H] y) "
        "{ y = Conv<kernel_shape = [3, 3]>(x, w) }"
    )
    drop_defaults(proto)
    assert [one.name for one in proto.graph.node[0].attribute] == ["kernel_shape"]

"""Inputs distilled from batch norm: the network in torch is that of ONNX Runtime, and the mismatch falls."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_dfmpc.errors import UnsupportedError

pytest.importorskip("torch", reason="needs torch (pip install onnx-dfmpc[train])")
from benchmarks import distilled

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N, 3, 8, 8] x) => (float[N, 5, 4, 4] y)
{
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
  an = BatchNormalization <epsilon = 0.001> (a, gamma, beta, mean, var)
  r = Relu (an)
  b = Conv <kernel_shape = [3, 3], pads = [0, 1, 1, 0], strides = [2, 2], group = 5> (r, d)
  shape = Shape (b)
  same = Reshape (b, shape)
  y = BatchNormalization <epsilon = 0.001> (same, gamma, beta, mean, var)
}
"""


def tiny():
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((5, 3, 3, 3)),
        "d": rng.standard_normal((5, 1, 3, 3)),
        "gamma": rng.uniform(0.5, 1.5, 5),
        "beta": rng.standard_normal(5),
        "mean": rng.standard_normal(5),
        "var": rng.uniform(1, 4, 5),
    }
    proto = parser.parse_model(MODEL)
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return proto, constants


def test_mismatch_is_what_onnxruntime_and_numpy_find() -> None:
    proto, constants = tiny()
    x = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)
    for name in ("a", "b"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    seen = ort.InferenceSession(proto.SerializeToString(), options).run(["a", "b"], {"x": x})
    deviation = np.sqrt(constants["var"])
    expected = np.mean(
        [
            ((one.mean((0, 2, 3)) - constants["mean"]) / deviation) ** 2
            + (one.std((0, 2, 3)) / deviation - 1) ** 2
            for one in seen
        ]
    )
    assert distilled.mismatch(tiny()[0], x) == pytest.approx(expected, rel=1e-3)


def test_distilling_lowers_the_mismatch_and_leaves_the_start_alone() -> None:
    proto, _ = tiny()
    start = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)
    before = start.copy()
    found = distilled.distil(proto, start, steps=30)
    assert found.after < 0.5 * found.before
    assert found.before == distilled.mismatch(proto, start)
    np.testing.assert_array_equal(start, before)


def test_an_operator_that_is_not_read_is_named() -> None:
    proto, _ = tiny()
    proto.graph.node[2].op_type = "Elu"
    with pytest.raises(UnsupportedError, match="Elu"):
        distilled.mismatch(proto, np.zeros((1, 3, 8, 8), np.float32))

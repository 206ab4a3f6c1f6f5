"""Small models, and one session of a whole model as the oracle of what runs piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, checker, helper, numpy_helper, parser


def parse(text: str, **initializers: np.ndarray) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()
    )
    return model


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(model: ModelProto, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """The oracle: one session on the whole model, with the tensors as extra outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [list(values) for values in zip(*(session.run(None, feed) for feed in feeds), strict=True)]


FORKED = """g (float[N, 3, 6, 6] x) => (float[] y, float[] z) {
    w_same = Identity(w)
    two = Constant <value = float {2.0}> ()
    [c1] a = Conv(x, w_same)
    r = Relu(a)
    [c2] b = Conv(r, v)
    t = Mul(b, two)
    parts_a, parts_b = Split <axis = 1> (t)
    s = Add(parts_a, parts_b)
    shape = Shape(x)
    zeros = ConstantOfShape(shape)
    p = GlobalAveragePool(r)
    y = Mul(s, p2)
    p1 = ReduceMean(p)
    p2 = Identity(p1)
    z = Add(zeros, x)
}"""


def forked() -> ModelProto:
    model = parse(FORKED, w=noise(4, 3, 3, 3), v=noise(6, 4, 2, 2, seed=1))
    # Nodes are sorted in a valid file: p1 and p2 come before y.
    nodes = {node.output[0]: node for node in model.graph.node}
    order = ["w_same", "two", "a", "r", "b", "t", "parts_a", "s", "shape", "zeros", "p", "p1", "p2", "y", "z"]
    sorted_nodes = [nodes[name] for name in order]
    del model.graph.node[:]
    model.graph.node.extend(sorted_nodes)
    return model


CHAIN = """<ir_version: 8, opset_import: ["" : 17], metadata_props: ["author" : "me"]>
g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    s1 = Relu(s)
    [one] a = Conv <pads = [1, 1, 1, 1]> (s1, w1)
    n = BatchNormalization(a, gamma, beta, mean, var)
    r = Relu(n)
    [two] b = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    m = BatchNormalization(b, gamma2, beta2, mean2, var2)
    q = Relu(m)
    [last] y = Conv(q, w3)
}"""


def chain(seed: int = 0, beta: float = 0.0, bn: bool = True) -> ModelProto:
    """A chain whose batch norms expect about what they get."""
    rng = np.random.default_rng(seed)
    model = parser.parse_model(CHAIN)
    shapes = {"w0": (6, 3, 3, 3), "w1": (8, 6, 3, 3), "w2": (8, 8, 3, 3), "w3": (4, 8, 1, 1)}
    arrays: dict[str, Any] = {
        name: rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()
    }
    arrays |= {"b0": rng.standard_normal(6) * 0.1, "b2": rng.standard_normal(8) * 0.1}
    for end in ("", "2"):
        arrays |= {f"gamma{end}": rng.uniform(0.5, 1.5, 8), f"beta{end}": rng.standard_normal(8) * 0.3 + beta}
        arrays |= {f"mean{end}": rng.standard_normal(8) * 0.1, f"var{end}": rng.uniform(0.3, 1, 8)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()
    )
    if not bn:
        for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
            for node in model.graph.node:
                node.input[:] = [norm.input[0] if name == norm.output[0] else name for name in node.input]
            model.graph.node.remove(norm)
    checker.check_model(model, full_check=True)
    return model


FAST = {"samples": 4, "input_range": (-2.0, 2.0)}  # what the chain was made for

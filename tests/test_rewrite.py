"""Editing the graph: what changes is what was asked for, and nothing else."""

import dataclasses
import functools

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, checker, helper, numpy_helper, parser

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError, UnsupportedError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load, save
from onnx_dfmpc.model.opset import opset_of, raise_opset
from onnx_dfmpc.rewrite import apply
from onnx_dfmpc.rewrite.apply import Rewritten
from onnx_dfmpc.spec import Layer, MatchReport, QuantizedLayer, QuantizedWeight, StorageFormat
from tests.conftest import networks

# One node and no tables: what is tested here is the graph around them.
rewrite = functools.partial(apply.rewrite, form=StorageFormat("native"))


def parse(text: str, **initializers: np.ndarray) -> ModelProto:
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()
    )
    checker.check_model(model, full_check=True)
    return model


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nearest(weight: np.ndarray, axis: int | None, bits: int = 4) -> QuantizedWeight:
    """Fake quantization: symmetric, to nearest."""
    others = tuple(d for d in range(weight.ndim) if d != axis) if axis is not None else None
    scale = np.asarray(np.abs(weight).max(axis=others) / (2 ** (bits - 1) - 1), np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    expand = tuple(-1 if d == axis else 1 for d in range(weight.ndim)) if axis is not None else ()
    codes = np.clip(
        np.round(weight / scale.reshape(expand)), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
    ).astype(np.int8)
    return QuantizedWeight(codes, scale, None, bits, True, axis)


def quantized(model: ModelProto, layer: Layer, bits: int = 4, **fields) -> QuantizedLayer:
    weight = np.asarray(ConstantTable(model)[layer.weight])
    return QuantizedLayer(layer.name, nearest(weight, layer.axis, bits), **fields)


def all_layers(model: ModelProto, bits: int = 4, **metadata: str) -> tuple[Rewritten, MatchReport]:
    report = match(model)
    before = model.SerializeToString()
    rewritten = rewrite(
        model, report, [quantized(model, layer, bits) for layer in report.layers], metadata=metadata
    )
    checker.check_model(rewritten.proto, full_check=True)
    assert model.SerializeToString() == before
    return rewritten, report


def run(model: ModelProto, outputs: list[str] | None = None, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, inputs)[0]


def names(model: ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def values(model: ModelProto, name: str) -> np.ndarray:
    return np.asarray(ConstantTable(model)[name])


def substitute(model: ModelProto, layers: dict[str, np.ndarray]) -> ModelProto:
    """The oracle: the float model with other numbers in its initializers."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in layers:
            tensor.CopyFrom(numpy_helper.from_array(layers[tensor.name].astype(np.float32), tensor.name))
    return copy


CONV = """<ir_version: 8, opset_import: ["" : 17], producer_name: "tests", metadata_props: ["author" : "me"],
doc_string: "about"> g (float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y) <float[N, 6, 3, 3] c> {
    [conv] c = Conv(x, w)
    [bn] b = BatchNormalization(c, gamma, beta, mean, var)
    [relu] y = Relu(b)
}"""


def conv() -> ModelProto:
    parameters = {
        "gamma": noise(6, seed=1),
        "beta": noise(6, seed=2),
        "mean": noise(6, seed=3),
        "var": noise(6, seed=4) ** 2 + 0.1,
    }
    return parse(CONV, w=noise(6, 4, 3, 3), **parameters)


X = noise(2, 4, 5, 5, seed=9)


def test_names_nodes_and_opset():
    rewritten, _ = all_layers(conv(), 2)
    graph = rewritten.proto.graph
    assert [node.op_type for node in graph.node] == ["DequantizeLinear", "Conv", "BatchNormalization", "Relu"]
    assert list(graph.node[0].input) == ["q0", "q0s"]
    assert list(graph.node[0].output) == [graph.node[1].input[1]] == ["w"]
    assert [node.name for node in graph.node[1:]] == ["conv", "bn", "relu"]
    assert [list(node.output) for node in graph.node[1:]] == [["c"], ["b"], ["y"]]
    assert names(rewritten.proto) == {"q0", "q0s", "gamma", "beta", "mean", "var"}
    assert (opset_of(rewritten.proto), rewritten.proto.ir_version) == (25, 13)
    assert rewritten.notes == ("opset 17 -> 25 because of INT2 weights",)
    assert rewritten.layers["conv"].storage == "INT2"


@pytest.mark.parametrize(
    ("bits", "opset", "ir"), [(2, 25, 13), (3, 21, 10), (4, 21, 10), (5, 17, 8), (8, 17, 8)]
)
def test_opset_is_raised_only_as_far_as_needed(bits, opset, ir):
    rewritten, _ = all_layers(conv(), bits)
    assert (opset_of(rewritten.proto), rewritten.proto.ir_version) == (opset, ir)
    assert bool(rewritten.notes) == (opset != 17)


def test_no_layers_is_a_copy():
    model = conv()
    rewritten = rewrite(model, match(model), [])
    assert rewritten.proto == model
    assert rewritten.proto is not model
    assert (rewritten.layers, rewritten.notes) == ({}, ())


def test_deterministic():
    assert all_layers(conv())[0].proto.SerializeToString() == all_layers(conv())[0].proto.SerializeToString()


def test_metadata_value_info_and_documentation_stay():
    model = conv()
    model.graph.node[0].doc_string = "the convolution"
    model.graph.node[0].metadata_props.add(key="layer", value="first")
    model.metadata_props.add(key="onnx_dfmpc.version", value="0")
    rewritten, _ = all_layers(model, 4, version="1", **{"onnx_dfmpc.bits": "{}"})
    proto = rewritten.proto
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    assert kept == {"author": "me", "onnx_dfmpc.version": "1", "onnx_dfmpc.bits": "{}"}
    assert (proto.producer_name, proto.doc_string) == ("tests", "about")
    assert proto.graph.value_info == model.graph.value_info
    assert proto.graph.node[1].doc_string == "the convolution"
    assert proto.graph.node[1].metadata_props == model.graph.node[0].metadata_props


def test_functions_stay():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y) { c = Conv(x, w)  y = my.activate(c) }
        <opset_import: ["" : 17], domain: "my"> activate (a) => (b) { b = Relu(a) }""",
        w=noise(6, 4, 3, 3),
    )
    rewritten, report = all_layers(model)
    assert [f.name for f in rewritten.proto.functions] == ["activate"]
    oracle = substitute(model, {"w": quantized(model, report.layers[0]).weight.dequantize()})
    np.testing.assert_allclose(run(rewritten.proto, x=X), run(oracle, x=X), rtol=1e-5, atol=1e-6)


def test_batch_norm_is_replaced_in_place():
    model = conv()
    report = match(model)
    layer = report.layers[0]
    new = dataclasses.replace(
        layer.batch_norm, gamma=noise(6, seed=5), mean=noise(6, seed=6), var=noise(6, seed=7) ** 2
    )
    rewritten = rewrite(model, report, [quantized(model, layer, batch_norm=new)])
    assert names(rewritten.proto) == {"q0", "q0s", "gamma", "beta", "mean", "var"}
    for name in ("gamma", "beta", "mean", "var"):
        np.testing.assert_array_equal(values(rewritten.proto, name), getattr(new, name).astype(np.float32))
    oracle = substitute(
        model,
        {
            "w": quantized(model, layer).weight.dequantize(),
            "gamma": new.gamma,
            "mean": new.mean,
            "var": new.var,
        },
    )
    np.testing.assert_allclose(run(rewritten.proto, x=X), run(oracle, x=X), rtol=1e-5, atol=1e-6)


def test_shared_batch_norm_parameters_are_not_edited():
    """As torch exports them: equal parameters of two batch norms are one initializer, through Identity."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 5, 5] x) => (float[N, 4, 1, 1] y) {
            one2 = Identity(one)
            zero2 = Identity(zero)
            [conv1] c = Conv(x, w)
            b = BatchNormalization(c, one, zero, zero, one)
            r = Relu(b)
            [conv2] d = Conv(r, v)
            y = BatchNormalization(d, one2, zero2, zero2, one2)
        }""",
        w=noise(4, 4, 3, 3),
        v=noise(4, 4, 3, 3, seed=1),
        one=np.ones(4, np.float32),
        zero=np.zeros(4, np.float32),
    )
    report = match(model)
    first, second = report.layers
    assert first.batch_norm is not None
    new = dataclasses.replace(first.batch_norm, gamma=np.arange(1.0, 5.0), mean=np.arange(4.0))
    rewritten = rewrite(
        model, report, [quantized(model, first, batch_norm=new), quantized(model, second)]
    ).proto
    checker.check_model(rewritten, full_check=True)
    nodes = {node.output[0]: node for node in rewritten.graph.node}
    np.testing.assert_array_equal(values(rewritten, nodes["b"].input[1]), [1, 2, 3, 4])
    np.testing.assert_array_equal(values(rewritten, nodes["b"].input[3]), [0, 1, 2, 3])
    assert [nodes["b"].input[2], nodes["b"].input[4]] == ["zero", "one"]
    assert list(nodes["y"].input) == ["d", "one2", "zero2", "zero2", "one2"]
    np.testing.assert_array_equal(values(rewritten, "one2"), np.ones(4))
    # Once both have their own, nothing of the shared ones is left, Identity nodes included.
    both = [
        quantized(
            model,
            layer,
            batch_norm=dataclasses.replace(layer.batch_norm, gamma=b + 1, beta=b, mean=b, var=b + 2),
        )
        for layer, b in ((first, np.arange(1.0, 5)), (second, np.arange(2.0, 6)))
    ]
    rewritten = rewrite(model, report, both).proto
    checker.check_model(rewritten, full_check=True)
    assert not {"one", "zero"} & names(rewritten)
    assert not [node for node in rewritten.graph.node if node.op_type == "Identity"]


BIAS = {
    "Conv": ("[layer] y = Conv(x, w)", "[layer] y = Conv(x, w, b)", (6, 4, 3, 3), X, (1, -1, 1, 1)),
    "ConvTranspose": (
        "[layer] y = ConvTranspose(x, w)",
        "[layer] y = ConvTranspose(x, w, b)",
        (4, 6, 2, 2),
        X,
        (1, -1, 1, 1),
    ),
    "Gemm": ("[layer] y = Gemm<beta = 2.0>(x, w)", "[layer] y = Gemm(x, w, b)", (5, 6), X[0, 0], (1, -1)),
    "MatMul": (
        "[layer] y = MatMul(x, w)",
        "[layer] m = MatMul(x, w)  [add] y = Add(m, b)",
        (5, 6),
        X[0],
        (1, 1, -1),
    ),
    "MatMul, bias first": (
        "[layer] y = MatMul(x, w)",
        "[layer] m = MatMul(x, w)  [add] y = Add(b, m)",
        (5, 6),
        X[0],
        (1, 1, -1),
    ),
}


@pytest.mark.parametrize("kind", BIAS)
@pytest.mark.parametrize("had_bias", [False, True])
def test_bias(kind, had_bias):
    without, with_bias, shape, x, broadcast = BIAS[kind]
    dims = ", ".join(map(str, x.shape))
    rank = ", ".join(f"D{i}" for i in range(x.ndim))
    parameters = {"w": noise(*shape), "b": noise(6, seed=3)} if had_bias else {"w": noise(*shape)}
    model = parse(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{dims}] x) => (float[{rank}] y) {{ {with_bias if had_bias else without} }}',
        **parameters,
    )
    report = match(model)
    layer = report.layers[0]
    assert (layer.bias is not None) == had_bias
    new = noise(6, seed=4)
    rewritten = rewrite(model, report, [quantized(model, layer, bias=new)]).proto
    checker.check_model(rewritten, full_check=True)
    plain = parse(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{dims}] x) => (float[{rank}] y) {{ {without} }}',
        w=noise(*shape),
    )
    expected = run(substitute(plain, {"w": quantized(model, layer).weight.dequantize()}), x=x) + new.reshape(
        broadcast
    )
    np.testing.assert_allclose(run(rewritten, x=x), expected, rtol=1e-5, atol=1e-5)
    assert "layer" in {node.name for node in rewritten.graph.node}
    assert {"b"} & names(rewritten) == ({"b"} if had_bias else set())
    assert rewritten.graph.output == model.graph.output


def test_shared_bias_is_not_edited():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 5, 5] x) => (float[N, 4, 1, 1] y, float[4] b) { [one] c = Conv(x, w, b)  [two] y = Conv(c, v, b) }""",
        w=noise(4, 4, 3, 3),
        v=noise(4, 4, 3, 3, seed=1),
        b=noise(4, seed=2),
    )
    report = match(model)
    rewritten = rewrite(
        model,
        report,
        [quantized(model, layer, bias=noise(4, seed=5 + i)) for i, layer in enumerate(report.layers)],
    ).proto
    checker.check_model(rewritten, full_check=True)
    np.testing.assert_array_equal(values(rewritten, "b"), noise(4, seed=2))
    nodes = {node.name: node for node in rewritten.graph.node}
    np.testing.assert_array_equal(values(rewritten, nodes["one"].input[2]), noise(4, seed=5))
    np.testing.assert_array_equal(values(rewritten, nodes["two"].input[2]), noise(4, seed=6))


def test_computed_bias_gets_company():
    """A third input that is there but not constant stays; the new bias goes behind, under the old output
    name.
    """
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 5, 5] x, float[6] b) => (float[N, 6, 3, 3] y) { [layer] y = Conv(x, w, b) }""",
        w=noise(6, 4, 3, 3),
    )
    layer = Layer("layer", "Conv", "w", (6, 4, 3, 3), 0, 1, None, "", "x", "y", 6)
    new = noise(6, seed=4)
    rewritten = rewrite(model, MatchReport((layer,), (), (), 1), [quantized(model, layer, bias=new)]).proto
    checker.check_model(rewritten, full_check=True)
    given = noise(6, seed=5)
    oracle = substitute(model, {"w": quantized(model, layer).weight.dequantize()})
    expected = run(oracle, x=X, b=given) + new.reshape(-1, 1, 1)
    np.testing.assert_allclose(run(rewritten, x=X, b=given), expected, rtol=1e-5, atol=1e-5)


def test_weight_from_constant_node_through_identity():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) {
            k = Constant<value = float[2, 1, 1, 1] {1, -2}>()
            i = Identity(k)
            j = Identity(i)
            [one] c = Conv(x, j)
            [two] y = Conv(c, v)
        }""",
        v=noise(1, 2, 1, 1),
    )
    rewritten, report = all_layers(model)
    assert report.layers[0].weight == "k"
    assert [node.op_type for node in rewritten.proto.graph.node] == [
        "DequantizeLinear",
        "Conv",
        "DequantizeLinear",
        "Conv",
    ]
    assert rewritten.proto.graph.node[0].output[0] == "j"


def test_shared_weight_is_copied_and_stays_while_somebody_reads_it():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 5, 5] x) => (float[N, 4, 1, 1] y) {{ [one] c = Conv(x, w)  r = Relu(c)  [two] y = Conv(r, {weight}) {more} }}"""
    model = parse(text.format(weight="w", more=""), w=noise(4, 4, 3, 3))
    report = match(model)
    one, two = report.layers
    both = rewrite(model, report, [quantized(model, one, 2), quantized(model, two, 8)])
    checker.check_model(both.proto, full_check=True)
    assert names(both.proto) == {"q0", "q0s", "q1", "q1s"}
    assert [both.layers[name].storage for name in ("one", "two")] == ["INT2", "INT8"]
    only_one = rewrite(model, report, [quantized(model, one, 2)]).proto
    assert "w" in names(only_one)
    assert [node.input[1] for node in only_one.graph.node if node.op_type == "Conv"] == ["q0w", "w"]


@pytest.mark.parametrize("reader", ["graph output", "subgraph"])
def test_weight_with_another_reader_stays(reader):
    output, more = {
        "graph output": (", float[4, 4, 3, 3] w", ""),
        "subgraph": (
            ", float[4, 4, 3, 3] z",
            "z = If(flag) <then_branch = t () => (float[4, 4, 3, 3] p) { p = Neg(w) }, "
            "else_branch = e () => (float[4, 4, 3, 3] q) { q = Abs(w) }>",
        ),
    }[reader]
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 5, 5] x, bool flag) => (float[N, 4, 3, 3] y{output}) {{ [one] y = Conv(x, w) {more}
        }}""",
        w=noise(4, 4, 3, 3),
    )
    layer = Layer("one", "Conv", "w", (4, 4, 3, 3), 0, 1, None, "", "x", "y", 4)
    rewritten = rewrite(model, MatchReport((layer,), (), (), 1), [quantized(model, layer)]).proto
    checker.check_model(rewritten, full_check=True)
    np.testing.assert_array_equal(values(rewritten, "w"), noise(4, 4, 3, 3))


@pytest.mark.parametrize(
    ("tensor", "node", "prefix"),
    [
        ("qs", "relu", "q"),
        ("q7", "relu", "q_"),
        ("q_", "relu", "q_"),
        ("r", "q0s", "q_"),
        ("q_4", "relu", "q__"),
    ],
)
def test_new_names_avoid_old_ones(tensor, node, prefix):
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y) {{ [conv] {tensor} = Conv(x, w)  [{node}] y = Relu({tensor}) }}""",
        w=noise(6, 4, 3, 3),
    )
    rewritten, _ = all_layers(model)
    assert names(rewritten.proto) == {f"{prefix}0", f"{prefix}0s"}
    assert [node.name for node in rewritten.proto.graph.node] == ["", "conv", node]


@pytest.mark.parametrize("ir", [3, 4])
def test_initializers_listed_as_inputs(ir):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 9]>
        g (float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y) { [conv] c = Conv(x, w, b)  y = Add(c, d) }""",
        w=noise(6, 4, 3, 3),
        b=noise(6),
        d=noise(1),
    )
    model.ir_version = ir
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    report = match(model)
    rewritten = rewrite(model, report, [quantized(model, report.layers[0], bias=noise(6, seed=2))]).proto
    checker.check_model(rewritten, full_check=True)
    assert [value.name for value in rewritten.graph.input] == (["x"] if ir == 3 else ["x", "d"])
    assert names(rewritten) == {"q0", "q0s", "b", "d"}


def test_float16_parameters():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (float16[N, 4, 5, 5] x) => (float16[N, 6, 3, 3] y) {
        [conv] y = Conv(x, w) }""",
        w=noise(6, 4, 3, 3).astype(np.float16),
    )
    report = match(model)
    layer = quantized(model, report.layers[0], 8, bias=noise(6))
    rewritten = rewrite(model, report, [layer])
    checker.check_model(rewritten.proto, full_check=True)
    assert {values(rewritten.proto, name).dtype for name in ("q0s", "q0b")} == {np.dtype(np.float16)}
    assert rewritten.notes == ("opset 17 -> 19 because of float16 scales",)
    with pytest.raises(UnsupportedError, match="float16"):
        rewrite(model, report, [dataclasses.replace(layer, bias=np.full(6, 1e6, np.float32))])


def test_layers_that_do_not_belong_to_the_model():
    model = conv()
    report = match(model)
    good = quantized(model, report.layers[0])
    with pytest.raises(DfmpcError, match="not in the match report"):
        rewrite(model, report, [dataclasses.replace(good, name="other")])
    with pytest.raises(DfmpcError, match="codes of shape"):
        rewrite(model, report, [dataclasses.replace(good, weight=nearest(noise(6, 4, 1, 1), 0))])
    with pytest.raises(DfmpcError, match="bias of shape"):
        rewrite(model, report, [dataclasses.replace(good, bias=noise(5))])
    plain = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] c) { [conv] c = Conv(x, v) }',
        v=noise(6, 4, 3, 3),
    )
    with pytest.raises(DfmpcError, match="not a constant"):
        rewrite(plain, report, [good])


@pytest.mark.parametrize(
    ("changed", "batch_norm", "why"),
    [
        ({"output": "elsewhere"}, False, "no Conv with a constant weight makes 'elsewhere'"),
        ({"output": "y"}, False, "no Conv with a constant weight makes 'y'"),
        ({"bias": "gamma"}, False, "nothing adds the bias 'gamma'"),
        ({}, True, "has no batch norm to replace"),
    ],
)
def test_a_match_report_of_another_model(changed, batch_norm, why):
    model = conv()
    (layer,) = match(model).layers
    fields = {"batch_norm": layer.batch_norm} if batch_norm else {"bias": noise(6)}
    other = dataclasses.replace(layer, **{"batch_norm": None, **changed})
    with pytest.raises(DfmpcError, match=why):
        rewrite(model, MatchReport((other,), (), (), 1), [quantized(model, layer, **fields)])


def test_opset_28_comes_down_with_a_note():
    model = conv()
    model.opset_import[0].version, model.ir_version = 28, 14
    rewritten, _ = all_layers(model)
    assert opset_of(rewritten.proto) == 27
    assert rewritten.notes == ("opset 28 -> 27, the highest that ONNX Runtime runs with DequantizeLinear",)
    assert run(rewritten.proto, x=X).shape == (2, 6, 3, 3)


def test_bytes_add_up_to_the_growth_of_the_file():
    model = parse(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 16, 5, 5] x) => (float[N, 16, 1, 1] y) { [one] c = Conv(x, w)  [two] y = Conv(c, v) }""",
        w=noise(16, 16, 3, 3),
        v=noise(16, 16, 3, 3, seed=1),
    )
    rewritten, _ = all_layers(model)
    copy = ModelProto()
    copy.CopyFrom(rewritten.proto)
    own = [node for node in copy.graph.node if node.op_type == "Conv"]
    del copy.graph.initializer[:]
    del copy.graph.node[:]
    copy.graph.node.extend(own)
    added = sum(layer.bytes for layer in rewritten.layers.values())
    length_prefix = 2  # of the graph: two bytes more once it holds the weights
    assert abs(rewritten.proto.ByteSize() - copy.ByteSize() - added) <= length_prefix


@pytest.mark.parametrize("shared_model", networks("cifar10_shufflenetv2_x0_5_bn"), indirect=True)
def test_shared_networks(shared_model, tmp_path):
    """2 and 6 bits in turn."""
    model = load(shared_model).proto
    report, before = match(model), model.SerializeToString()
    layers = [quantized(model, layer, (2, 6)[number % 2]) for number, layer in enumerate(report.layers)]
    rewritten = rewrite(model, report, layers)
    checker.check_model(rewritten.proto, full_check=True)
    assert model.SerializeToString() == before
    assert len(rewritten.layers) == len(report.layers) > 0
    weights = [done.weight.dequantize() for done in layers]
    sources = {layer.weight: weight for layer, weight in zip(report.layers, weights, strict=True)}
    shape = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    shape = (
        [size if i < 2 or size > 1 else 64 for i, size in enumerate(shape)]
        if "dynamic" in shared_model.name
        else shape
    )
    inputs = {model.graph.input[0].name: noise(*shape)}
    oracle = run(substitute(raise_opset(model, opset_of(rewritten.proto)), sources), **inputs)
    size = save(rewritten.proto, tmp_path / "small.onnx")
    reloaded = load(tmp_path / "small.onnx")
    assert size == reloaded.size < shared_model.stat().st_size
    np.testing.assert_allclose(
        run(reloaded.proto, **inputs), oracle, rtol=1e-4, atol=1e-5 * np.abs(oracle).max()
    )


def test_who_asks_for_the_shape_of_a_weight_does_not_keep_it():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y, int64[2] s, int64 n)
        <float[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}> {
            s = Shape<start = 1, end = 3>(w)
            n = Size(w)
            y = Conv(x, w)
        }""")
    result = quantize(model, recipe=Recipe(bits=8, samples=1))
    assert "w" not in {tensor.name for tensor in result.model.graph.initializer}
    session = onnxruntime.InferenceSession(
        result.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    _, shape, size = session.run(None, {"x": np.zeros((1, 2, 4, 4), np.float32)})
    assert shape.tolist() == [2, 1]
    assert size == 6

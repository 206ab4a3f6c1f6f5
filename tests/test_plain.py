"""Weights of which nobody knows the inputs: rounded to nearest, wherever the model has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import Recipe, apply, inspect, load_plan, plan, quantize, save_plan
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.runtime.session import optimized_nodes

Run = Callable[..., tuple[int, str, str]]
Weights = dict[str, np.ndarray]
PLAIN = Recipe(bits=8, rounding="nearest", repair="none")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])
    return values.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model as text, with its weights: those that it names in braces are in bodies."""

    text: str
    weights: Weights
    axes: dict[str, int]  # of the scales of the weights that are rounded
    feeds: Weights
    names: tuple[str, ...]  # of these weights in a report
    excluded: tuple[str, ...] = ()  # layers that are left float
    functions: str = ""
    reference: bool = True  # whether onnx.reference runs it
    opsets: str = field(default="")

    def model(self, weights: Weights | None = None) -> ModelProto:
        weights = weights or self.weights
        inside = {name: literal(name, value) for name, value in weights.items() if f"{{{name}}}" in self.text}
        text = self.text
        for name, value in inside.items():
            text = text.replace(f"{{{name}}}", value)
        header = f'<ir_version: 8, opset_import: ["" : 17{self.opsets}]>'
        model = parser.parse_model(f"{header} {text} {self.functions}")
        outside = [name for name in weights if name not in inside]
        model.graph.initializer.extend(numpy_helper.from_array(weights[name], name) for name in outside)
        return model


def literal(name: str, value: np.ndarray) -> str:
    numbers = ", ".join(f"{number:.9g}" for number in value.ravel())
    return f"float[{','.join(map(str, value.shape))}] {name} = {{{numbers}}}"


def recurrent(operator: str, gates: int, directions: int = 1) -> Case:
    how = ' direction = "bidirectional",' if directions == 2 else ""
    return Case(
        f"""g (float[T, 3, 16] x) => (float[T, {directions}, 3, 16] y) {{
            [rnn] y = {operator} <{how} hidden_size = 16> (x, W, R, B) }}""",
        {
            "W": noise(directions, 16 * gates, 16, seed=1),
            "R": noise(directions, 16 * gates, 16, seed=2),
            "B": noise(directions, 32 * gates, seed=3),
        },
        {"W": 1, "R": 1},
        {"x": noise(5, 3, 16)},
        ("rnn.W", "rnn.R"),
        reference=directions == 1,
    )


X = {"x": noise(4, 16)}
W = noise(16, 16, seed=1)
IDS = {"x": np.array([[3, 0, 39, 7], [1, 1, 2, 38]])}
CASES = {
    "If": Case(
        """g (float[4, 16] x, bool c) => (float[4, 16] y) { y = If (c) <
            then_branch = t () => (float[4, 16] a) <{w}> { a = MatMul(x, w) },
            else_branch = e () => (float[4, 16] b) <{v}> { [dense] p = Gemm <transB = 1> (x, v) b = Relu(p) }> }""",
        {"w": W, "v": noise(16, 16, seed=2)},
        {"w": 1, "v": 0},
        X | {"c": np.array(True)},
        ("a", "dense"),
    ),
    "Conv in an If": Case(
        """g (float[1, 4, 6, 6] x, bool c) => (float[1, 8, 4, 4] y) { y = If (c) <
            then_branch = t () => (float[1, 8, 4, 4] a) <{w}> { [conv] a = Conv(x, w) },
            else_branch = e () => (float[1, 8, 4, 4] b) { n = Neg(x) [other] b = Conv(n, v) }> }""",
        {"w": noise(8, 4, 3, 3), "v": noise(8, 4, 3, 3, seed=2)},
        {"w": 0, "v": 0},
        {"x": noise(1, 4, 6, 6), "c": np.array(False)},
        ("conv", "other"),
    ),
    "Loop": Case(
        """g (float[4, 16] x, int64 n) => (float[4, 16] y) { yes = Constant <value = bool {1}> ()
            y = Loop(n, yes, x) <body = b (int64 i, bool go, float[4, 16] v) => (bool on, float[4, 16] a) <{w}> {
                on = Identity(go) [step] u = MatMul(v, w) a = Tanh(u) }> }""",
        {"w": W},
        {"w": 1},
        X | {"n": np.array(3)},
        ("step",),
    ),
    "Scan": Case(
        """g (float[4, 16] x, float[T, 4, 16] z) => (float[4, 16] y, float[T, 4, 16] q) {
            y, q = Scan <num_scan_inputs = 1, body = b (float[4, 16] v, float[4, 16] s) => (float[4, 16] a, float[4, 16] o) <{w}> {
                k = Add(v, s) [step] u = MatMul(k, w) a = Tanh(u) o = Identity(u) }> (x, z) }""",
        {"w": W},
        {"w": 1},
        X | {"z": noise(5, 4, 16)},
        ("step",),
    ),
    "If in a Loop": Case(
        """g (float[4, 16] x, int64 n, bool c) => (float[4, 16] y) { yes = Constant <value = bool {1}> ()
            y = Loop(n, yes, x) <body = b (int64 i, bool go, float[4, 16] v) => (bool on, float[4, 16] a) {
                on = Identity(go) u = If (c) <
                    then_branch = t () => (float[4, 16] p) <{w}> { [deep] p = MatMul(v, w) },
                    else_branch = e () => (float[4, 16] q) { q = Identity(v) }> a = Tanh(u) }> }""",
        {"w": W},
        {"w": 1},
        X | {"n": np.array(2), "c": np.array(True)},
        ("deep",),
    ),
    "LSTM": recurrent("LSTM", 4),
    "LSTM, both directions": recurrent("LSTM", 4, directions=2),
    "GRU": recurrent("GRU", 3),
    "RNN": recurrent("RNN", 1),
    "Gather": Case(
        "g (int64[2, 4] x) => (float[2, 4, 8] y) { [table] y = Gather(w, x) }",
        {"w": noise(40, 8)},
        {"w": 0},
        IDS,
        ("table",),
    ),
    "a table that is also the last layer": Case(
        """g (int64[2, 4] x) => (float[2, 4, 40] y) { same = Identity(w) [table] e = Gather(same, x)
            t = Transpose <perm = [1, 0]> (w) [last] y = MatMul(e, t) }""",
        {"w": noise(40, 8)},
        {"w": 0},
        IDS,
        ("table",),
    ),
    "a table that is also the last Gemm": Case(
        """g (int64[N] x) => (float[N, 40] y) { [table] e = Gather(w, x) [mid] h = MatMul(e, m)
            [last] y = Gemm <transB = 1> (h, w) }""",
        {"w": noise(40, 8), "m": noise(8, 8, seed=1)},
        {"w": 0},
        {"x": IDS["x"][0]},
        ("table",),
        excluded=("mid",),
    ),
}  # fmt: skip


def rounded(weight: np.ndarray, axis: int, levels: int = 127) -> np.ndarray:
    """The nearest of 2 * levels + 1 values, as one would write it down."""
    result = np.empty_like(weight)
    for index in range(weight.shape[axis]):
        place = (slice(None),) * axis + (index,)
        scale = np.float32(np.abs(weight[place]).max() / levels)
        result[place] = np.rint(weight[place] / scale) * scale
    return result


def run(model: ModelProto, feeds: Weights) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_rounded_to_nearest_wherever_it_is(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before = model.SerializeToString()
    result = quantize(model, None, replace(PLAIN, nodes_to_exclude=case.excluded), validated=False)
    assert model.SerializeToString() == before
    assert [layer.name for layer in result.layers] == list(case.names)
    assert {(layer.role, layer.bits, layer.source) for layer in result.layers} == {("plain", 8, "none")}
    assert [skipped.name for skipped in result.skipped] == list(case.excluded)
    assert result.plan.predicted_bytes == result.size == result.model.ByteSize()
    assert result.size < result.source.size
    assert result.model.opset_import[0].version == 17  # no new operator, so no new opset
    weights = {
        key: rounded(value, case.axes[key]) if key in case.axes else value
        for key, value in case.weights.items()
    }
    expected = run(case.model(weights), case.feeds)
    for one, other in zip(run(result.model, case.feeds), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    if case.reference:
        session = ReferenceEvaluator(result.model)
        for one, other in zip(session.run(None, case.feeds), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    # The codes are floats once the model is loaded.
    assert not {"Cast", "Mul", "DequantizeLinear"} & {node.op_type for node in optimized_nodes(result.model)}


@pytest.mark.parametrize(
    "options", [{"slim": True}, {"storage": "native"}, {"unpack": "int8"}, {"target": "ort-1.16"}]
)
def test_bytes_are_predicted_in_every_form(options: dict[str, object]) -> None:
    for case in (CASES["If"], CASES["GRU"], CASES["a table that is also the last Gemm"]):
        result = quantize(case.model(), None, replace(PLAIN, **options), validated=False)
        assert result.plan.predicted_bytes == result.size == result.model.ByteSize()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_a_rule_gives_other_bits(bits: int) -> None:
    case = CASES["GRU"]
    result = quantize(case.model(), None, Recipe(bits=3, set={r"\.W$": bits}), validated=False)
    assert [layer.bits for layer in result.layers] == [bits, 8]
    assert result.plan.predicted_bytes == result.size
    levels = {2: 1, 3: 3, 4: 7, 6: 31}[bits]
    weights = case.weights | {"W": rounded(case.weights["W"], 1, levels), "R": rounded(case.weights["R"], 1)}
    for one, other in zip(run(result.model, case.feeds), run(case.model(weights), case.feeds), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_left_out_is_told_with_its_bytes() -> None:
    case = CASES["LSTM"]
    result = quantize(case.model(), None, replace(PLAIN, nodes_to_exclude=("rnn.R",)), validated=False)
    assert [layer.name for layer in result.layers] == ["rnn.W"]
    assert [(one.name, one.op_type) for one in result.skipped] == [("rnn.R", "LSTM")]
    left = 4 * case.weights["R"].size, 4 * case.weights["B"].size
    assert any(
        f"{left[0]:,} weights of LSTM (left out" in note and f"{left[1]:,} biases" in note
        for note in result.notes
    )


REASONS = {
    "columns": ("y = Gather <axis = 1> (w, x)", {"w": noise(8, 40)}, "columns are gathered"),
    "few numbers": ("y = Gather(w, x)", {"w": noise(8, 8)}, "64 numbers"),
    "short rows": ("y = Gather(w, x)", {"w": noise(100, 4)}, "4 numbers to a scale"),
    "other uses": ("e = Gather(w, x) y = Add(e, w)", {"w": noise(40, 8)}, "also used by Add 'y', not as a weight"),
    "an output": ("e = Gather(w, x) y = Identity(w)", {"w": noise(40, 8)}, "a graph output"),
    "infinity": ("y = Gather(w, x)", {"w": np.full((40, 8), np.inf, np.float32)}, "holds infinity"),
}  # fmt: skip


@pytest.mark.parametrize("what", REASONS)
def test_what_stays_float_says_why(what: str) -> None:
    body, weights, reason = REASONS[what]
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (int64[40] x) => (float[40, D] y) {{ {body} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    matched = match(model)
    assert matched.plain == ()
    assert reason in matched.left["w"]


def test_a_plan_has_them_and_may_be_edited(tmp_path: Path) -> None:
    case = CASES["a table that is also the last Gemm"]
    made = plan(case.model(), Recipe(target_size=1300))
    assert [one.name for one in made.layers] == ["mid"]
    assert [(one.name, one.bits) for one in made.plain] == [("table", 8)]
    save_plan(made, tmp_path / "plan.json")
    read = load_plan(tmp_path / "plan.json")
    assert read == made
    assert apply(case.model(), read, validated=False).size == made.predicted_bytes
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(
        text.replace('"bits": 8,\n      "proposed_bits": 8', '"bits": 4,\n      "proposed_bits": 8')
    )
    edited = apply(case.model(), load_plan(tmp_path / "plan.json"), validated=False)
    assert {layer.name: layer.bits for layer in edited.layers}["table"] == 4


def test_a_target_counts_them() -> None:
    case = CASES["a table that is also the last Gemm"]
    model = case.model()
    size = quantize(model, None, Recipe(bits=4), validated=False).size
    result = quantize(model, None, Recipe(target_size=size + 100), validated=False)
    assert result.size <= size + 100
    assert result.plan.predicted_bytes == result.size
    with pytest.raises(UnsupportedError, match="cannot be met") as error:
        quantize(model, None, Recipe(target_size=700), validated=False)
    assert "the 8 bits of weights such as 'table'" in str(error.value.hint)
    alone = CASES["GRU"].model()
    assert quantize(alone, None, Recipe(target_ratio=2), validated=False).plan.plain
    with pytest.raises(UnsupportedError, match="no layer to take bits from"):
        quantize(alone, None, Recipe(target_ratio=8), validated=False)
    with pytest.raises(UnsupportedError, match="needs layers"):
        quantize(alone, None, Recipe(bits=8, activations=8), validated=False)


def test_float16_and_scales_that_do_not_fit_it() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (int64[N] x) => (float16[N, 8] y) { [a] p = Gather(v, x) [b] q = Gather(w, x) y = Add(p, q) }'
    model = parser.parse_model(text)
    for name, value in (("v", noise(40, 8)), ("w", noise(40, 8) * 1e-5)):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float16), name))
    result = quantize(model, None, PLAIN, validated=False)
    assert [layer.name for layer in result.layers] == ["a"]
    assert [(one.name, "does not fit float16" in one.reason) for one in result.skipped] == [("b", True)]
    expected = run(model, {"x": IDS["x"][0]})[0].astype(np.float32)
    np.testing.assert_allclose(
        run(result.model, {"x": IDS["x"][0]})[0].astype(np.float32), expected, atol=0.02
    )


FUNCTIONS = """g (float[4, 16] x) => (float[4, 16] y) { a = own.dense(x, w) y = own.twice(a) }"""
DEFINED = """
<domain: "own", opset_import: ["" : 17]> dense (p, k) => (r) { s = MatMul(p, k) r = Relu(s) }
<domain: "own", opset_import: ["" : 17, "own" : 1]> twice (p) => (r) { o = Constant <value = float {2.0}> () q = own.dense(p, v) r = Mul(q, o) }
"""


def test_local_functions_with_weights_are_inlined() -> None:
    """Then their layers are layers as all others, with statistics."""
    text = FUNCTIONS.replace("own.twice(a)", "own.twice(a, v)")
    functions = DEFINED.replace("twice (p)", "twice (p, v)")
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "own" : 1], metadata_props: ["author" : "me"]> {text} {functions}'
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(noise(16, 16, seed=seed), name) for seed, name in enumerate("wv")
    )
    loaded = load(model).proto
    assert not loaded.functions
    assert loaded.metadata_props == model.metadata_props
    np.testing.assert_array_equal(run(loaded, X)[0], run(model, X)[0])
    result = quantize(model, None, Recipe(bits=8))
    assert [layer.op for layer in result.layers] == ["MatMul", "MatMul"]
    assert {layer.source for layer in result.layers} == {"probe"}
    assert result.passed
    assert result.plan.predicted_bytes == result.size


def test_a_function_of_another_opset_stays_and_is_listed() -> None:
    functions = DEFINED.replace("twice (p)", "twice (p, v)").replace('["" : 17]', '["" : 16]')
    text = FUNCTIONS.replace("own.twice(a)", "own.twice(a, v)")
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "own" : 1]> {text} {functions}')
    model.graph.initializer.extend(
        numpy_helper.from_array(noise(16, 16, seed=seed), name) for seed, name in enumerate("wv")
    )
    matched = inspect(model)
    assert matched.layers == ()
    assert all("local function" in skipped.reason for skipped in matched.skipped)


def test_weights_of_bodies_become_initializers_with_names_of_their_own() -> None:
    text = """<ir_version: {ir}, opset_import: ["" : 17]> g (float[4, 16] x, bool c) => (float[4, 16] y) { y = If (c) <
        then_branch = t () => (float[4, 16] a) <{w}, float[1] s = {2}> { m = Mul(x, s) a = MatMul(m, w) },
        else_branch = e () => (float[4, 16] b) <{w}, float[1] s = {3}> { m = Mul(x, s) b = MatMul(m, w) }> }"""
    text = text.replace("{w}", literal("w", W))
    model = parser.parse_model(text.replace("{ir}", "8"))
    loaded = load(model).proto
    assert sorted(tensor.name for tensor in loaded.graph.initializer) == ["w_1", "w_2"]
    for c in (True, False):
        np.testing.assert_array_equal(
            run(loaded, X | {"c": np.array(c)})[0], run(model, X | {"c": np.array(c)})[0]
        )
    result = quantize(model, None, PLAIN)
    assert result.validation is not None
    assert result.validation.sqnr_db is not None
    assert 35 < result.validation.sqnr_db < 60


def test_the_command_lists_them(run: Run, tmp_path: Path) -> None:
    onnx.save(CASES["LSTM"].model(), tmp_path / "in.onnx")
    code, out, err = run("inspect", tmp_path / "in.onnx")
    assert code == 0, err
    assert "0 layers and 2 other weights to quantize, 0 skipped" in " ".join(out.split())
    code, out, err = run("quantize", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--bits", 4)
    assert code == 0, err
    assert "rnn.W" in out
    assert "plain" in out

"""One layer that cannot be quantized stays float, with its reason, and useless outputs do not pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc import Recipe, apply, plan, quantize, validate

Run = Callable[..., tuple[int, str, str]]
RNG = np.random.default_rng(0)
FIRST = (RNG.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32)
SECOND = (RNG.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32)


def network(
    second: str, out: str = "N, 8, 8, 8", kind: str = "float", **weights: np.ndarray
) -> onnx.ModelProto:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({kind}[N, 3, 8, 8] x) => ({kind}[{out}] y) {{
            [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            {second}
        }}""")
    values = {"w1": FIRST} | weights
    dtype = np.float16 if kind == "float16" else np.float32
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(dtype), name) for name, value in values.items()
    )
    return model


CONV = "[second] y = Conv<pads = [1, 1, 1, 1]>(b, w2)"
MASKED = """p = GlobalAveragePool(b) f = Flatten(p) [second] z = Gemm(f, w2, mask) y = Softmax(z)"""
BAD = {
    "a mask": (network(MASKED, "N, 4", w2=SECOND[:, :4, 0, 0], mask=np.array([0, -np.inf, 0, 0])), "holds infinity"),
    "float16 scale": (network(CONV, kind="float16", w2=SECOND * 1e-6), "does not fit float16"),
    "no channel": (network("[second] e = Conv(x, w2) y = Concat<axis = 1>(b, e)", w2=np.zeros((0, 3, 1, 1))), "empty"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_layer_that_cannot_be_quantized_stays_float(run: Run, tmp_path: Path, what: str) -> None:
    model, reason = BAD[what]
    onnx.save(model, tmp_path / "in.onnx")
    for bits in (("--bits", "4"), ("--target-bits", "6")):
        typed = ("quantize", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--overwrite", *bits)
        code, out, err = run(*typed, "--json", "-")
        document = json.loads(out)
        assert code == 0, err
        assert [layer["name"] for layer in document["layers"]] == ["first"]
        (left,) = document["skipped"]
        assert left["name"] == "second"
        assert reason in left["reason"]


def test_a_plan_says_so_and_one_that_does_not_is_carried_out_all_the_same() -> None:
    model = BAD["float16 scale"][0]
    recipe = Recipe(bits=4)
    made = plan(model, recipe)
    assert [layer.name for layer in made.layers] == ["first"]
    assert made.predicted_bytes == quantize(model, None, recipe).size
    assert [layer.name for layer in apply(model, made).layers] == ["first"]


def test_a_model_of_which_nothing_is_left_says_why(run: Run, tmp_path: Path) -> None:
    model = network(CONV, kind="float16", w1=FIRST * 1e-6, w2=SECOND * 1e-6)
    onnx.save(model, tmp_path / "in.onnx")
    code, _, err = run("quantize", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--bits", 4)
    assert code == 3
    assert "nothing to quantize" in err
    assert "does not fit float16" in err


def huge() -> onnx.ModelProto:
    """A weight beside which all others of its layer are zero at 4 bits, on a channel that is always zero."""
    first = FIRST.copy()
    first[0] = 0
    second = SECOND.copy()
    second[:, 0] = 1e12
    return network(CONV, w1=first, w2=second)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # float32 overflows on purpose
def test_useless_outputs_do_not_pass(run: Run, tmp_path: Path) -> None:
    onnx.save(huge(), tmp_path / "in.onnx")
    typed = ("quantize", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--bits", 4, "--set", ".*=4")
    typed += ("--storage", "table")
    code, _, err = run(*typed)
    assert code == 1
    assert "output 'y'" in err
    assert "below 6 dB" in err
    assert "--per-layer" in err
    assert not (tmp_path / "out.onnx").exists()
    code, _, err = run(*typed, "--no-gate")
    assert (code, err) == (0, "")
    assert run("validate", tmp_path / "in.onnx", tmp_path / "out.onnx")[0] == 1
    assert run("validate", tmp_path / "in.onnx", tmp_path / "out.onnx", "--no-gate")[0] == 0
    # Who sets a limit has decided.
    assert run("validate", tmp_path / "in.onnx", tmp_path / "out.onnx", "--min-sqnr-db=-99")[0] == 0


def test_the_default_gate_is_for_inputs_of_our_own() -> None:
    model = network(CONV, w2=SECOND)
    other = network(CONV, w2=-SECOND)
    x = np.ones((2, 3, 8, 8), np.float32)
    assert not validate(model, other)
    assert validate(model, other, x)
    report = validate(model, other, gates={"no_gate": True})
    assert report
    assert report.command == ""


def test_outputs_that_are_not_finite_pass_where_asked() -> None:
    model = network("[second] c = Conv<pads = [1, 1, 1, 1]>(b, w2) y = Log(c)", w2=SECOND)
    report = validate(model, model)
    assert any("float model: NaN" in failure for failure in report.failures)
    report = validate(model, model, gates={"no_gate": True})
    assert report
    assert any("float model: NaN" in note for note in report.notes)

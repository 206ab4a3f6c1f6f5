"""What cannot be done within the limits is refused before the work, and nothing that fits is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import cli
from onnx_dfmpc.model.needs import BESIDE, NEW, needs
from tests.graphs import noise, parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
W = "float[8, 3, 3, 3] w"

HUGE = {
    "batch": f"""{HEAD} g (float[1000000, 3, 32, 32] x) => (float[1000000, 8, 30, 30] y)
        <{W} = {{{",".join(["1"] * 216)}}}> {{ y = Conv(x, w) }}""",
    "picture": f"""{HEAD} g (float[1, 3, 5000, 5000] x) => (float[1, 8, 4998, 4998] y)
        <{W} = {{{",".join(["1"] * 216)}}}> {{ y = Conv(x, w) }}""",
    "expand": f"""{HEAD} g (float[N, 3, 32, 32] x) => (float[a, b, c, d] y)
        <{W} = {{{",".join(["1"] * 216)}}}, int64[4] s = {{1000000, 8, 300, 300}}> {{
            c = Conv(x, w)  p = GlobalAveragePool(c)  y = Expand(p, s) }}""",
}


def run(folder: Path, model: ModelProto, *more: str) -> int:
    onnx.save(model, folder / "m.onnx")
    return cli.main(["quantize", str(folder / "m.onnx"), "-o", str(folder / "o.onnx"), "--bits", "8", *more])


@pytest.mark.parametrize("what", list(HUGE))
def test_what_cannot_fit_is_refused_before_the_work(tmp_path, capsys, monkeypatch, what):
    monkeypatch.setattr(cli, "quantize", lambda *_, **__: pytest.fail("the work began"))
    assert run(tmp_path, parser.parse_model(HUGE[what]), "--max-memory", "512MiB") == 3
    said, hint = capsys.readouterr().err.splitlines()
    assert "MiB of memory" in said
    assert "the limit is 512 MiB" in said
    assert "--max-memory" in hint
    assert not (tmp_path / "o.onnx").exists()


def test_what_takes_ages_is_refused(tmp_path, capsys):
    model = parser.parse_model(HUGE["batch"])
    assert run(tmp_path, model, "--max-memory", "none", "--timeout", "0.01") == 3
    assert "--timeout" in capsys.readouterr().err


def test_no_limit_refuses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "quantize", lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError))
    limits = "--max-memory", "none", "--timeout", "none"
    assert run(tmp_path, parser.parse_model(HUGE["picture"]), *limits) == 4  # the work began


def test_memory_is_that_of_a_node_as_it_is_run():
    """Oracle: the arrays of onnx.reference. Shapes of the input are given, those after a Shape inferred."""
    model = parse(
        """g (float[N, 3, H, W] x) => (float[N, 4, H2, W2] y) {
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1)
            b = Relu(a)
            c = MaxPool <kernel_shape = [2, 2]> (b)
            d = Concat <axis = 1> (c, c)
            y = ConvTranspose <strides = [3, 3]> (d, w2)
        }""",
        w1=noise(6, 3, 3, 3),
        w2=noise(12, 4, 3, 3),
    )
    x = noise(2, 3, 20, 24)
    names = [name for node in model.graph.node for name in node.output]
    every = ModelProto()
    every.CopyFrom(model)
    del every.graph.output[:]
    every.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    arrays = dict(zip(names, ReferenceEvaluator(every).run(None, {"x": x}), strict=True)) | {"x": x}
    sizes = [
        arrays[node.output[0]].nbytes + (arrays[node.input[0]].nbytes if node.op_type in BESIDE else 0)
        for node in model.graph.node
        if node.op_type in NEW
    ]
    found = needs(model, {"x": (2, 3, 20, 24)})
    assert found.memory == max(sizes)
    a, d = arrays["a"], arrays["d"]
    assert found.products == a.size * 3 * 9 + d.size * 4 * 9
    assert 0 < needs(model).memory < found.memory  # open dimensions count as 1


def test_what_nobody_computes_counts_nothing():
    """A tensor that no output depends on, or of which only the shape is read."""
    model = parse(
        """g (float[2, 3] x) => (int64[2] y) {
            big = Expand(x, s)
            y = Shape(big)
        }""",
        s=np.array([100, 2, 3], np.int64),
    )
    assert needs(model).memory == 0


def test_a_broken_model_passes():
    assert (
        needs(parse("g (float[2, 3] x) => (float[2, 9] y) { y = MatMul(x, w) }", w=noise(4, 9))).products >= 0
    )

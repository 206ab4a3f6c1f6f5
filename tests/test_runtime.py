"""Models run piece by piece, against one run of the whole model; values in memory and in temporary files."""

from __future__ import annotations

import gc
import tempfile

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnx_dfmpc.errors import DfmpcError, ModelError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime import batches
from onnx_dfmpc.runtime import partial as partial_module
from onnx_dfmpc.runtime.batches import Batches, Stored
from onnx_dfmpc.runtime.partial import PartialRun
from tests.graphs import FORKED, forked, noise, parse, whole

# ------------------------------------------------------------------------------------------------------
# PartialRun

BRANCHED = """g (float[N, 2, 4, 4] x, bool[] yes) => (float[] y) {
    [c1] a = Conv(x, w)
    r = Relu(a)
    b = If (yes) <
        then_branch = g1 () => (float[] t) { [inner] c = Conv(r, w)  t = Add(c, bias) },
        else_branch = g2 () => (float[] e) { e = Neg(a) }
    >
    [c2] y = Conv(b, w)
}"""


def partial(model: ModelProto, feeds: list[dict[str, np.ndarray]]) -> PartialRun:
    return PartialRun(model, ConstantTable(model), feeds)


@pytest.mark.parametrize(
    "wanted",
    [["a", "r", "b", "t", "parts_b", "s", "p2", "y", "z"], ["r", "y"], ["b"], ["y"], ["x", "a", "z"]],
)
def test_a_partial_run_computes_what_the_whole_model_computes(wanted):
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2, 3)]
    tested = partial(model, feeds)
    computed = [tested.value(name) for name in wanted]
    names = [name for name in wanted if name != "x"]
    for name, expected in zip(names, whole(model, names, feeds), strict=True):
        actual = computed[wanted.index(name)]
        assert len(actual) == len(feeds)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_large_weights_are_fed(monkeypatch):
    """Those that are cast or moved in every run, too."""
    monkeypatch.setattr(partial_module, "FED", 16)
    model = parse(
        """g (float[N, 4] x) => (float[N, 5] y) {
            t = Transpose(w)  a = MatMul(x, t)  h = Cast <to = 1> (v)  y = MatMul(a, h) }""",
        w=noise(6, 4),
        v=noise(6, 5).astype(np.float16),
    )
    feeds = [{"x": noise(3, 4, seed=s)} for s in (1, 2)]
    for mine, other in zip(partial(model, feeds).value("y"), *whole(model, ["y"], feeds), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


@pytest.mark.parametrize("fed", [1, partial_module.FED])
@pytest.mark.parametrize("yes", [True, False])
def test_a_partial_run_gives_branches_the_tensors_that_they_capture(yes, fed, monkeypatch):
    monkeypatch.setattr(partial_module, "FED", fed)
    model = parse(BRANCHED, w=noise(2, 2, 1, 1), bias=np.float32(0.5))
    feeds = [{"x": noise(2, 2, 4, 4, seed=s), "yes": np.array(yes)} for s in (1, 2)]
    tested = partial(model, feeds)
    names = ["a", "b", "y"]
    computed = [
        tested.value(name) for name in names
    ]  # a and r are captured, and must live until the branch has run
    for actual, expected in zip(computed, whole(model, names, feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_partial_run_forgets_what_nobody_reads_any_more():
    steps = "".join(f"t{i + 1} = Relu(t{i}) " for i in range(20))
    model = parse(f"g (float[N, 4] t0) => (float[] y) {{ {steps} y = Neg(t20) }}")
    tested = partial(model, [{"t0": noise(3, 4)}])
    for i in range(1, 21):
        tested.value(f"t{i}")
        assert set(tested._live) == {f"t{i}"}


def test_a_partial_run_keeps_a_shortcut_until_it_is_added():
    model = parse("""g (float[N, 4] x) => (float[] y) {
        a = Neg(x)  b = Relu(a)  c = Neg(b)  y = Add(c, a) }""")
    feeds = [{"x": noise(3, 4)}]
    tested = partial(model, feeds)
    for name in ("a", "b", "c"):
        tested.value(name)
    assert set(tested._live) == {"a", "c"}
    np.testing.assert_allclose(tested.value("y"), whole(model, ["y"], feeds)[0])


@pytest.mark.parametrize("asked", [["x", "a"], ["a", "b"], ["b", "a"], ["y", "r", "z"], ["r", "r"], []])
def test_several_values_are_those_of_the_whole_model(asked: list[str]) -> None:
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    tested = partial(model, feeds)
    for _ in range(2 if asked == ["x", "a"] else 1):
        found = tested.values(asked)
        assert len(found) == len(asked)
        for name, actual in zip(asked, found, strict=True):
            expected = [feed["x"] for feed in feeds] if name == "x" else whole(model, [name], feeds)[0]
            for one, other in zip(actual, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_of_several_values_those_are_remembered_that_are_still_read_and_the_last() -> None:
    model = parse("""g (float[N, 4] x) => (float[] y) {
        a = Neg(x)  b = Relu(a)  c = Neg(b)  d = Relu(c)  y = Add(d, a) }""")
    feeds = [{"x": noise(3, 4)}]
    tested = partial(model, feeds)
    found = tested.values(["b", "c", "d"])
    # b and c have been read by whoever reads them; a waits to be added; d was asked for last, and is read.
    assert set(tested._live) == {"a", "d"}
    for actual, expected in zip(found, whole(model, ["b", "c", "d"], feeds), strict=True):
        np.testing.assert_allclose(actual, expected)
    tested.put("d", [np.ones((3, 4), np.float32)])
    (y,) = tested.values(["y"])
    np.testing.assert_allclose(y[0], 1 - feeds[0]["x"])
    assert set(tested._live) == {"y"}


def test_several_values_take_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = forked()
    tested = partial(model, [{"x": noise(2, 3, 6, 6)}])
    ran, segment = [], PartialRun._segment
    monkeypatch.setattr(
        PartialRun, "_segment", lambda self, *args: ran.append(len(args[0])) or segment(self, *args)
    )
    tested.values(["a", "r", "b"])
    assert ran == [3]
    tested.values(["r", "b"])  # what is there is not run again
    assert ran == [3]


def test_what_is_put_is_what_the_nodes_after_it_see():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6)}]
    tested = partial(model, feeds)
    halved = [0.5 * value for value in tested.value("a")]
    tested.put("a", halved)
    np.testing.assert_allclose(tested.value("r")[0], np.maximum(halved[0], 0))


def test_a_partial_run_respects_a_fixed_batch():
    model = parse(
        "g (float[1, 2, 5] x) => (float[] y) { f = Reshape(x, s)  y = MatMul(f, w) }",
        s=np.array([1, 10]),
        w=noise(10, 3),
    )
    feeds = [{"x": noise(1, 2, 5, seed=s)} for s in (1, 2, 3)]
    assert [value.shape for value in partial(model, feeds).value("y")] == [(1, 3)] * len(feeds)


def test_a_partial_run_uses_local_functions():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x) => (float[] y) { t = local.twice(x)  y = Relu(t) }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (b) { b = Add(a, a) }""")
    x = noise(2, 4)
    np.testing.assert_allclose(partial(model, [{"x": x}]).value("y")[0], np.maximum(2 * x, 0))


def test_a_model_that_cannot_run_is_a_model_error():
    shapes = parse("g (float[N, 4] x) => (float[] y) { y = MatMul(x, w) }", w=noise(5, 3))
    with pytest.raises(ModelError, match="'y'"):
        partial(shapes, [{"x": noise(2, 4)}]).value("y")
    unknown = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[N, 4] x) => (float[] y) { y = other.Mystery(x) }""")
    with pytest.raises(ModelError, match="'y'"):
        partial(unknown, [{"x": noise(2, 4)}]).value("y")


def test_large_values_wait_in_files_and_change_nothing(monkeypatch):
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    expected = [partial(model, feeds).value(name) for name in ("b", "y")]
    monkeypatch.setattr(batches, "IN_MEMORY", 0)
    for actual, values in zip(
        [partial(model, feeds).value(name) for name in ("b", "y")], expected, strict=True
    ):
        np.testing.assert_array_equal(actual, values)


# ------------------------------------------------------------------------------------------------------
# what comes after a tensor


def test_downstream_of_values():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    run = partial(model, feeds)
    run.value("r")
    rest = run.downstream("r", ["a", "r", "y", "z"])
    assert rest.outputs == ("r", "y")
    halved = [0.5 * value for value in run.value("r")]
    copy = parse(
        FORKED.replace(
            "r = Relu(a)", "half = Constant <value = float {0.5}> ()  r_ = Relu(a)  r = Mul(r_, half)"
        )
    )
    copy.graph.initializer.extend(model.graph.initializer)
    order = {name: position for position, node in enumerate(model.graph.node) for name in node.output}
    nodes = sorted(copy.graph.node, key=lambda node: order.get(node.output[0], order["r"] - 0.5))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    for _ in range(2):  # it may be run again
        values = rest(halved)
        assert values["r"] == halved
        for actual, expected in zip(values["y"], whole(copy, ["y"], feeds)[0], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(run.value("y"), whole(model, ["y"], feeds)[0], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_downstream_of_an_open_weight():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    run = partial(model, feeds)
    run.value("r")
    rest = run.downstream("b", ["a", "b", "y", "z"], open_weight=True)
    assert rest.outputs == ("b", "y")
    weight, shift = noise(6, 4, 2, 2, seed=7), noise(6, 1, 1, seed=8)
    copy = ModelProto()
    copy.CopyFrom(model)
    next(node for node in copy.graph.node if node.output[0] == "b").input.append("bias")
    copy.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "v"))
    copy.graph.initializer.append(numpy_helper.from_array(-shift.ravel(), "bias"))
    values = rest.with_weight(weight, shift)
    for name, expected in zip(("b", "y"), whole(copy, ["b", "y"], feeds), strict=True):
        for one, other in zip(values[name], expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_nothing_depends_on_a_dead_end():
    run = partial(forked(), [{"x": noise(2, 3, 6, 6)}])
    run.value("zeros")
    assert run.downstream("p2", ["a", "z"]).outputs == ()
    assert run.downstream("b", ["z"], open_weight=True).with_weight(noise(6, 4, 2, 2), noise(6, 1, 1)) == {}


# ------------------------------------------------------------------------------------------------------
# values


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_what_is_stored_is_read_back_as_often_as_wanted(dtype):
    value = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype).transpose(2, 0, 1)
    values = Batches([Stored(value), value])
    for batch in (values[0], values[1], *values, *values[:1]):
        assert batch.dtype == dtype
        np.testing.assert_array_equal(batch, value)
    assert len(values) == 2


def test_only_large_tensors_leave_memory(monkeypatch):
    monkeypatch.setattr(batches, "IN_MEMORY", 1000)
    value = np.zeros(100, np.uint8)
    assert batches.stored(value, 10) is value
    assert isinstance(batches.stored(value, 11), Stored)


@pytest.mark.filterwarnings("error")
def test_the_file_goes_with_the_value(monkeypatch):
    files = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(make()) or files[-1])
    kept = Stored(np.zeros(3))
    assert not files[0].closed
    del kept
    gc.collect()
    assert files[0].closed


def test_a_full_disk_is_said(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(DfmpcError, match="No space left on device") as caught:
        Stored(np.zeros(3))
    assert "TMPDIR" in caught.value.hint

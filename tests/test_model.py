"""Loading and saving, every refusal one by one, and opset conversion that loses nothing."""

import hashlib
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnx_dfmpc.errors import ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load, save
from onnx_dfmpc.model.opset import opset_of, raise_opset


def parse(text: str, **initializers: np.ndarray) -> ModelProto:
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in initializers.items()
    )
    return model


def network(opset: int = 17, ir: int = 8) -> ModelProto:
    """Conv (2304 weights, so data rather than a shape) and batch norm."""
    rng = np.random.default_rng(0)
    return parse(
        f"""<ir_version: {ir}, opset_import: ["" : {opset}], producer_name: "tests">
        g (float[N, 16, 6, 6] x) => (float[N, 16, 6, 6] y) {{
            [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w)
            [bn] b = BatchNormalization(c, gamma, beta, mean, var)
            [relu] y = Relu(b)
        }}""",
        w=rng.standard_normal((16, 16, 3, 3)).astype(np.float32),
        gamma=np.ones(16, np.float32),
        beta=np.zeros(16, np.float32),
        mean=np.zeros(16, np.float32),
        var=np.ones(16, np.float32),
    )


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def set_values(model: ModelProto, name: str, values: np.ndarray) -> None:
    initializer(model, name).CopyFrom(numpy_helper.from_array(values, name))


def run(model: ModelProto | Path, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(
        None, inputs
    )[0]


def refuse(model: object, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(model)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.hint
    for word in words:
        assert word in message, message
    return caught.value


# Loading


def test_load_from_path_and_from_memory_agree(tmp_path):
    model = network()
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    before, file_before = model.SerializeToString(), path.read_bytes()
    from_file, from_text, from_memory = load(path), load(str(path)), load(model)
    assert from_file.proto == from_text.proto == from_memory.proto == model
    assert from_file.sha256 == from_memory.sha256
    assert from_file.size == from_memory.size == path.stat().st_size
    assert (from_file.path, from_memory.path) == (path, None)
    assert (from_file.files, from_memory.files) == ((path,), ())
    assert from_file.opset == 17
    from_memory.proto.graph.node[0].name = "changed"
    assert model.SerializeToString() == before
    assert path.read_bytes() == file_before


def test_load_bytes(tmp_path):
    data = network().SerializeToString(deterministic=True)
    loaded = load(data)
    assert (loaded.proto, loaded.path, loaded.files, loaded.label) == (network(), None, (), "the given model")
    assert (loaded.sha256, loaded.size) == (load(network()).sha256, len(data))
    refuse(data[:-100], "the given model", "not an ONNX model")
    refuse(b"", "empty")


def test_load_graphsurgeon_graph_and_leave_it_alone():
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1], producer_name: "p">
        g (float[N, 16, 6, 6] x) => (float[N, 16, 6, 6] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w) y = own.f(c) }
        <domain: "own", opset_import: ["" : 17]> f (a) => (r) { r = Relu(a) }"""
    model = parse(text, w=np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32))
    graph = gs.import_onnx(model)
    for scope in (graph, *graph.functions):
        scope.import_domains = [entry for entry in scope.import_domains if entry.domain == ""]
    domains = [list(scope.import_domains) for scope in (graph, *graph.functions)]
    weight = graph.nodes[0].inputs[1]
    loaded = load(graph)
    assert (loaded.path, loaded.files, loaded.proto.producer_name) == (None, (), "p")
    x = np.random.default_rng(1).standard_normal((2, 16, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(loaded.proto, x=x), run(model, x=x))
    assert [scope.import_domains for scope in (graph, *graph.functions)] == domains
    assert graph.nodes[0].inputs[1] is weight
    graph.inputs[0].dtype = None
    refuse(graph, "the given model", "graphsurgeon refuses it")


@pytest.mark.parametrize("model", [None, 3, bytearray(b"x"), ["net.onnx"]], ids=str)
def test_refuses_what_is_no_model_at_all(model):
    assert "path" in refuse(model, type(model).__name__, "not a model").hint


def test_load_shared_networks(shared_model):
    loaded = load(shared_model)
    assert loaded.size == shared_model.stat().st_size
    assert loaded.proto == onnx.load(shared_model)


def test_external_data_is_loaded_and_counted(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    loaded = load(path)
    assert loaded.size == path.stat().st_size + (tmp_path / "net.bin").stat().st_size
    assert loaded.files == (path, tmp_path / "net.bin")
    assert loaded.proto.graph.initializer == network().graph.initializer


@pytest.mark.parametrize("op", ["Concat <axis = 1>", "Sum", "Max"])
def test_refuses_an_input_without_a_name_among_any_number(op):
    """ONNX Runtime loads it, and crashes when it runs."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 2] x) => (float[1, 2] y) {{ [joined] y = {op} (x, "") }}"""
    with pytest.raises(ModelError, match="node 'joined': an input has no name"):
        load(parser.parse_model(text))


def test_optional_inputs_may_be_left_out():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 2] x, float high) => (float[1, 2] y) { y = Clip (x, "", high) }"""
    assert load(parser.parse_model(text)).proto.graph.node[0].input[1] == ""


def test_refuses_missing_file(tmp_path):
    refuse(tmp_path / "no.onnx", "no.onnx", "no such file")


def test_refuses_directory(tmp_path):
    refuse(tmp_path, str(tmp_path), "Is a directory")


def test_refuses_path_that_no_system_has():
    refuse("a\0b", "cannot read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_refuses_unreadable_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"x")
    path.chmod(0)
    refuse(path, "net.onnx", "Permission denied")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty",)),
        (b"this is not a model\n" * 20, ("not an ONNX model",)),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ("not an ONNX model",)),
        (network().SerializeToString()[:-100], ("not an ONNX model",)),
        (ModelProto(ir_version=8).SerializeToString(), ("no graph",)),
        (helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), ("without nodes",)),
    ],
    ids=["empty", "text", "png", "truncated", "no graph", "no nodes"],
)
def test_refuses_what_is_not_a_model(tmp_path, content, words):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    refuse(path, "net.onnx", *words)
    assert path.read_bytes() == content


def external(tmp_path: Path, location: str | None = None) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    if location is not None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_refuses_missing_external_data(tmp_path):
    path = external(tmp_path)
    (tmp_path / "net.bin").unlink()
    refuse(path, "net.onnx", "net.bin", "'w'")


def test_refuses_short_external_data(tmp_path):
    path = external(tmp_path)
    os.truncate(tmp_path / "net.bin", 10)
    refuse(path, "net.onnx", "net.bin", "'w'")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_refuses_external_data_outside_of_the_directory(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(20000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    refuse(external(folder, location), "net.onnx", location)


def test_refuses_unloaded_external_data_in_memory(tmp_path):
    refuse(onnx.load(external(tmp_path), load_external_data=False), "'w'", "not loaded")


@pytest.mark.parametrize(
    ("name", "value"), [("w", np.nan), ("beta", np.nan), ("beta", np.inf), ("mean", -np.inf)]
)
def test_refuses_weights_that_are_not_finite(name, value):
    model = network()
    values = numpy_helper.to_array(initializer(model, name)).copy()
    values.flat[3] = value
    set_values(model, name, values)
    refuse(model, repr(name), "NaN or infinity")


def test_accepts_infinity_where_it_means_something():
    model = network()
    values = numpy_helper.to_array(initializer(model, "w")).copy()
    values.flat[3] = -np.inf
    set_values(model, "w", values)
    assert "'w' holds infinity" in match(load(model).proto).skipped[0].reason
    load(
        parse(
            """<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) <float low = {-inf}> {
            y = Clip(x, low) }
            """
        )
    )


def test_refuses_variance_that_is_not_positive():
    model = network()
    set_values(model, "var", np.full(16, -1e-4, np.float32))
    refuse(model, "'bn'", "'var'", "not positive")
    for harmless in (0, -5e-6):  # epsilon is 1e-5
        set_values(model, "var", np.full(16, harmless, np.float32))
        load(model)
    set_values(model, "var", np.zeros(16, np.float32))
    model.graph.node[1].attribute.append(helper.make_attribute("epsilon", 0.0))
    refuse(model, "'bn'", "not positive")


def test_training_mode_is_not_for_the_loader():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float[2] one = {1, 1}, float[2] zero = {0, 0}> {
            y, m, v = BatchNormalization<training_mode = 1>(x, one, zero, zero, one)
        }"""
    )
    load(model)


def test_refuses_batch_norm_parameters_of_different_lengths():
    model = network()
    set_values(model, "mean", np.zeros(8, np.float32))
    refuse(model, "bn", "8 and 16")


def test_refuses_weight_that_does_not_fit_its_input():
    model = network()
    set_values(model, "w", np.zeros((16, 8, 3, 3), np.float32))
    refuse(model, "'conv'", "'w'", "8 channels", "16")


def test_refuses_weight_without_the_data_of_its_shape():
    model = network()
    initializer(model, "w").raw_data = bytes(12)
    refuse(model, "'w'", "[16, 16, 3, 3]")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_refuses_narrow_weights_that_are_not_finite(dtype):
    name = {np.float16: "float16", ml_dtypes.bfloat16: "bfloat16"}[dtype]
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g ({name}[2, 2] x) => ({name}[2, 2] y) {{ [head] y =
    MatMul(x, w) }}"""
    load(parse(text, w=np.ones((2, 2), dtype)))
    refuse(parse(text, w=np.array([[1, np.nan], [1, 1]], dtype)), "'head'", "'w'", "NaN")


def test_refuses_duplicate_initializer():
    for name in ("beta", "w"):  # one that the checker sees as it is, and one that it sees as an input
        model = network()
        model.graph.initializer.append(initializer(model, name))
        refuse(model, name)


def test_refuses_duplicate_output():
    model = network()
    model.graph.node[1].output[0] = "c"
    refuse(model, "'c'", "multiple times")


def test_refuses_unknown_and_missing_opset():
    model = network()
    model.opset_import[0].version = 99
    refuse(model, "opset 99", "unknown")
    model.opset_import[0].version = -1
    refuse(model, "opset -1", "unknown")
    del model.opset_import[:]
    refuse(model, "no opset_import")


def test_refuses_newer_ir():
    refuse(network(ir=99), "IR version 99")


def test_opset_above_the_ceiling_is_fine_while_nothing_changed():
    assert load(network(28, 14)).opset == 28
    model = parse(
        """<ir_version: 14, opset_import: ["" : 28]> g (float[4] x) => (float[4] y) { y = Cast<to = 1>(x) }"""
    )
    error = refuse(model, "opset 28", "Cast")
    assert "27" in error.hint


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(nowhere)",
        "y = Relu(b)  b = Relu(y)",
        "y = Frobnicate(x)",
        "y = Relu<alpha = 1>(x)",
        "y = Reshape(x, x)",
    ],
)
def test_refuses_what_the_checker_refuses(body):
    refuse(parse(f"""<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) {{ {body} }}"""))


def test_custom_domains_are_not_the_loaders_business():
    load(
        parse(
            """<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[4] x) => (float[4] y) { a = my.Foo(x)  y = Relu(a) }"""
        )
    )


# Saving


def test_save_round_trip_is_deterministic(tmp_path):
    model = network()
    before = model.SerializeToString()
    size = save(model, tmp_path / "a.onnx")
    save(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert size == (tmp_path / "a.onnx").stat().st_size
    assert onnx.load(tmp_path / "a.onnx") == model
    assert model.SerializeToString() == before
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "b.onnx"]


def test_save_external_data(tmp_path):
    model = network()
    initializer(model, "w").doc_string = "the weight"
    before = model.SerializeToString()
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        size = save(model, tmp_path / folder / "net.onnx", external_data=True)
        found.append({file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()})
    assert found[0] == found[1]
    data, name = sorted(found[0])
    digest = hashlib.sha256(found[0][data]).hexdigest()[:16]
    assert (data, name) == (f"net.{digest}.onnx.data", "net.onnx")
    assert size == sum(map(len, found[0].values()))
    path = tmp_path / "a" / "net.onnx"
    assert path.stat().st_size < 1500
    assert model.SerializeToString() == before
    assert load(path).proto.graph.initializer == model.graph.initializer
    for stored, original in zip(onnx.load(path).graph.initializer, model.graph.initializer, strict=True):
        assert stored.raw_data == original.raw_data
    x = np.random.default_rng(0).standard_normal((2, 16, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(path, x=x), run(model, x=x))


def test_save_external_data_of_typed_fields(tmp_path):
    model = network()
    values = numpy_helper.to_array(initializer(model, "w"))
    initializer(model, "w").CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel()))
    save(model, tmp_path / "net.onnx", external_data=True)
    np.testing.assert_array_equal(
        numpy_helper.to_array(initializer(load(tmp_path / "net.onnx").proto, "w")), values
    )


@pytest.mark.parametrize("external_data", [False, True])
def test_save_refuses_an_existing_target_unless_told(tmp_path, external_data):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(RecipeError, match=r"net\.onnx: exists already") as caught:
        save(network(), path, external_data=external_data)
    assert "--overwrite" in caught.value.hint
    assert path.read_bytes() == b"precious"
    save(network(), path, external_data=external_data, overwrite=True)
    assert load(path).proto.graph.node == network().graph.node


# Constants


def test_constant_table():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool flag, float[2] listed) => (float[2] y, float[2] alias, float[2] z)
          <float[2] b = {1, 2}, float[2] listed = {5, 6}> {
            alias = Identity(b)
            far = Identity(alias)
            tensor = Constant<value = float[2] {3, 4}>()
            one = Constant<value_float = 1.5>()
            many = Constant<value_ints = [7, 8]>()
            a = Add(x, far)
            c = Add(a, tensor)
            d = Add(c, b)
            not_constant = Identity(x)
            z = If(flag) <then_branch = t () => (float[2] r) { r = Add(far, a) }, else_branch = e () =>
            (float[2] s) { s = Identity(b) }> y = Mul(d, not_constant)
        }"""
    )
    table = ConstantTable(model)
    np.testing.assert_array_equal(table["far"], [1, 2])
    np.testing.assert_array_equal(table["tensor"], [3, 4])
    assert table["one"] == np.float32(1.5)
    assert table["one"].dtype == np.float32
    np.testing.assert_array_equal(table["many"], np.array([7, 8], np.int64))
    assert set(table) == {"b", "listed", "alias", "far", "tensor", "one", "many"}
    assert table.source("far") == "b"
    assert table.source("tensor") == "tensor"
    assert table.uses("b") == table.uses("far") == 5  # two Adds, two branches, one output of the graph
    assert table.uses("many") == 0
    assert {name: table.shape(name) for name in ("far", "tensor", "one", "many")} == {
        "far": (2,),
        "tensor": (2,),
        "one": (),
        "many": (2,),
    }
    with pytest.raises(ValueError, match="read-only"):
        table["b"][0] = 9
    assert set(ConstantTable(model, without={"b"})) == {"listed", "tensor", "one", "many"}


# Opset


def test_raise_opset_only_upwards_and_only_the_number_where_nothing_changed():
    model = network(15)
    before = model.SerializeToString()
    assert opset_of(raise_opset(model, 13)) == 15
    raised = raise_opset(model, 21)
    assert (opset_of(raised), raised.ir_version) == (21, 10)
    assert raised.graph == model.graph
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("opset", "ir"), [(13, 7), (21, 10), (25, 13)])
def test_ir_version_follows(opset, ir):
    raised = raise_opset(network(11, 4), opset)
    assert (opset_of(raised), raised.ir_version) == (opset, ir)
    assert raise_opset(network(opset, 14), opset).ir_version == 14


def test_ir_is_raised_where_only_the_opset_was_there():
    assert raise_opset(network(25, 8), 25).ir_version == 13


def test_opset_28_is_renumbered():
    raised = raise_opset(network(28, 14), 21)
    assert opset_of(raised) == 27
    assert raised.graph == network(28, 14).graph


OLD = """
<ir_version: 6, opset_import: ["" : 11, "my" : 1], producer_name: "p", producer_version: "1", domain: "d",
model_version: 7,
 doc_string: "about the model", metadata_props: ["key" : "value"]>
g (float[N, 4, 5, 5] x) => (float[M, 5] y)
  <float[4] one = {1, 1, 1, 1}, float[4] zero = {0, 0, 0, 0}, float[N, 4, 5, 5] n, float[N, 4, 1, 1] p> {
    [bn] n = BatchNormalization(x, one, zero, zero, one)
    [pool] p = ReduceMean<axes = [2, 3], keepdims = 1>(n)
    [squeeze] s = Squeeze<axes = [2, 3]>(p)
    [softmax] m = Softmax<axis = 1>(s)
    [called] f = my.double(m)
    [pad] y = Pad(f, pads)
}
<opset_import: ["" : 11], domain: "my", doc_string: "twice">
double (a) => (b) { t = Softmax<axis = 0>(a)  b = Add(t, a) }
"""


def test_conversion_keeps_what_the_converter_drops():
    model = parse(OLD, pads=np.array([0, 0, 0, 1], np.int64))
    for node in model.graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="from", value=node.name)
    model.graph.doc_string = "about the graph"
    model.graph.metadata_props.add(key="graph", value="g")
    model.graph.value_info[0].doc_string = "about n"
    annotation = model.graph.quantization_annotation.add(tensor_name="n")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="one")
    raised = raise_opset(model, 25)
    for field in (
        "producer_name",
        "producer_version",
        "domain",
        "model_version",
        "doc_string",
        "metadata_props",
    ):
        assert getattr(raised, field) == getattr(model, field)
    for field in (
        "name",
        "doc_string",
        "metadata_props",
        "input",
        "output",
        "value_info",
        "quantization_annotation",
        "initializer",
    ):
        assert getattr(raised.graph, field) == getattr(model.graph, field), field
    kept = {node.name: node for node in raised.graph.node}
    for node in model.graph.node:
        if node.name != "softmax":  # becomes Flatten, Softmax, Reshape: the last of them makes the old output
            assert kept[node.name].output == node.output
        assert kept[node.name].doc_string == node.doc_string
        assert kept[node.name].metadata_props == node.metadata_props
    assert [(f.domain, f.name, f.doc_string) for f in raised.functions] == [("my", "double", "twice")]
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(run(raised, x=x), run(model, x=x), rtol=1e-6, atol=1e-7)


def test_conversion_of_bodies():
    model = parse(
        """<ir_version: 6, opset_import: ["" : 12]>
        g (float[1, 4] x, bool flag) => (float[4] y) {
            [branch] y = If(flag) <
                then_branch = t () => (float[4] a) { [inner] a = Squeeze<axes = [0]>(x) },
                else_branch = e () => (float[4] b) { c = Squeeze<axes = [0]>(x)  b = Neg(c) }>
        }"""
    )
    raised = raise_opset(model, 21)
    x = np.arange(4, dtype=np.float32)[None]
    for flag in (np.array(True), np.array(False)):
        np.testing.assert_array_equal(run(raised, x=x, flag=flag), run(model, x=x, flag=flag))
    assert raised.graph.node[0].attribute[0].g.node[-1].name == "inner"


def test_conversion_refuses_function_attribute_it_cannot_follow():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 12, "my" : 1]> g (float[2, 3] x) => (float[2, 3] y) { y =
        my.foo<ax = 0>(x) } <opset_import: ["" : 12], domain: "my"> foo <ax> (a) => (b) { b = Softmax<axis:
        int = @ax>(a) }
        """
    )
    with pytest.raises(UnsupportedError, match="Softmax") as caught:
        raise_opset(model, 13)
    assert "inline" in caught.value.hint


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [1.3, 2, 2.5])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 8), ("Upsample", 9), ("Resize", 10)])
def test_conversion_of_upsampling(op, opset, mode, scale):
    call = (
        f'Upsample<mode = "{mode}", scales = [1.0, 1.0, {scale:.1f}, {scale:.1f}]>(x)'
        if opset == 8
        else f'{op}<mode = "{mode}">(x, s)'
    )
    model = parse(
        f"""<ir_version: 4, opset_import: ["" : {opset}]>
        g (float[1, 1, 5, 5] x) => (float[1, 1, A, B] y) <float[4] s = {{1, 1, {scale}, {scale}}}> {{ y =
        {call} }}"""
    )
    x = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5) ** 2
    np.testing.assert_allclose(run(raise_opset(model, 13), x=x), run(model, x=x), rtol=1e-5)


def test_conversion_refuses_what_the_converter_cannot_do():
    model = parse("""<ir_version: 8, opset_import: ["" : 6]> g (float[2, 3] x, float[3] b) => (float[2, 3] y)
        { y = Add<broadcast = 1, axis = -5>(x, b)  z = Frobnicate(y) }""")
    with pytest.raises(UnsupportedError, match="opset 6") as caught:
        raise_opset(model, 13)
    assert "opset 13" in caught.value.hint


def test_ir_3_lists_its_initializers_and_later_versions_must_not():
    model = network(9, 3)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    raised = raise_opset(load(model).proto, 13)
    assert [value.name for value in raised.graph.input] == ["x"]
    model.ir_version = 4  # now the list means that callers may pass their own
    assert len(raise_opset(model, 13).graph.input) == len(model.graph.input)


def test_shared_networks_compute_the_same_at_opset_25(shared_model):
    model = load(shared_model).proto
    raised = raise_opset(model, 25)
    assert raised.graph.initializer[: len(model.graph.initializer)] == model.graph.initializer[:]
    shape = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    shape = (
        [size if i < 2 or size > 1 else 64 for i, size in enumerate(shape)]
        if "dynamic" in shared_model.name
        else shape
    )
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    name = model.graph.input[0].name
    np.testing.assert_array_equal(run(raised, **{name: x}), run(model, **{name: x}))

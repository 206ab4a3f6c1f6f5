"""Odd graphs, as edits of the network of `odd_models`: x, Conv, b, Relu, c, depthwise Conv, d, pooling, e,
Flatten, f, Gemm, y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference
from onnx.inliner import inline_local_functions

Edit = Callable[[ModelProto, int], None]
N = helper.make_node


def constant(model: ModelProto, name: str, values: object, kind: type = np.float32) -> str:
    """A new initializer."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
    return name


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def node_of(model: ModelProto, name: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def values_of(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == name))


def drop(model: ModelProto, name: str) -> None:
    """Remove an initializer."""
    model.graph.initializer.remove(next(one for one in model.graph.initializer if one.name == name))


def between(model: ModelProto, tensor: str, *nodes: NodeProto) -> None:
    """Put nodes that read ``tensor`` and write "new" in front of its reader."""
    at = next(i for i, node in enumerate(model.graph.node) if tensor in node.input)
    reader = model.graph.node[at]
    reader.input[list(reader.input).index(tensor)] = "new"
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)


def weight_from(model: ModelProto, name: str, stored: np.ndarray, *nodes: NodeProto) -> None:
    """Let nodes make a weight of ``stored``, an initializer that is called "stored"."""
    drop(model, name)
    model.graph.initializer.append(numpy_helper.from_array(stored, "stored"))
    for offset, node in enumerate(nodes):
        model.graph.node.insert(offset, node)


def add_input(
    model: ModelProto, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT
) -> None:
    model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))


def add_output(model: ModelProto, name: str, kind: int = TensorProto.FLOAT) -> None:
    model.graph.output.append(helper.make_tensor_value_info(name, kind, None))


def torch_detector(model: ModelProto, opset: int) -> None:
    """Upsampling as torch 1.7 exports it: `sizes` from shapes, and empty tensors for `roi` and `scales`."""
    empty = [numpy_helper.from_array(np.zeros(0, np.float32)) for _ in range(2)]
    constant(model, "zero", [0], np.int64), constant(model, "two", [2], np.int64)
    constant(model, "size", [12, 12], np.int64)
    between(
        model,
        "c",
        N("Shape", ["c"], ["shape"]),
        N("Slice", ["shape", "zero", "two"], ["outer"]),
        N("Concat", ["outer", "size"], ["sizes"], axis=0),
        N("Constant", [], ["roi"], value=empty[0]),
        N("Constant", [], ["scales"], value=empty[1]),
        N("Resize", ["c", "roi", "scales", "sizes"], ["new"], mode="nearest", nearest_mode="floor",
          coordinate_transformation_mode="asymmetric"),
    )  # fmt: skip
    model.graph.node.append(N("Sigmoid", ["y"], ["boxes"]))
    add_output(model, "boxes")


def speech(model: ModelProto, opset: int) -> None:
    """A state that is read and written, a sampling rate, and an If that picks the weights by it."""
    bodies = []
    for seed, name in enumerate(("then", "else")):
        dense = numpy_helper.from_array(rng(seed).normal(size=(10, 10)).astype(np.float32) / 3, f"{name}_w")
        out = helper.make_empty_tensor_value_info(f"{name}_out")
        bodies.append(
            helper.make_graph([N("MatMul", ["g", f"{name}_w"], [out.name])], name, [], [out], [dense])
        )
    add_input(model, "state", [1, 10])
    add_input(model, "sr", [], TensorProto.INT64)
    constant(model, "rate", 16000, np.int64)
    node_of(model, "last").output[0] = "g"
    model.graph.node.extend([
        N("Equal", ["sr", "rate"], ["fast"]),
        N("If", ["fast"], ["h"], then_branch=bodies[0], else_branch=bodies[1]),
        N("Add", ["h", "state"], ["y"]),
        N("Tanh", ["y"], ["new_state"]),
    ])  # fmt: skip
    add_output(model, "new_state")


def stored_as(kind: int) -> Edit:
    """A weight in another float type, cast where it is read."""

    def edit(model: ModelProto, opset: int) -> None:
        stored = values_of(model, "w1").astype(helper.tensor_dtype_to_np_dtype(kind))
        weight_from(model, "w1", stored, N("Cast", ["stored"], ["w1"], to=TensorProto.FLOAT))

    return edit


def transposed(model: ModelProto, opset: int) -> None:
    stored = np.ascontiguousarray(values_of(model, "w1").transpose(2, 3, 1, 0))
    weight_from(model, "w1", stored, N("Transpose", ["stored"], ["w1"], perm=[3, 2, 0, 1]))


def reshaped(model: ModelProto, opset: int) -> None:
    constant(model, "shape", [8, 3, 3, 3], np.int64)
    weight_from(model, "w1", values_of(model, "w1").ravel(), N("Reshape", ["stored", "shape"], ["w1"]))


def summed(model: ModelProto, opset: int) -> None:
    """A weight that is computed from two."""
    constant(model, "delta", rng(9).normal(size=(8, 3, 3, 3)) / 9)
    weight_from(model, "w1", values_of(model, "w1"), N("Add", ["stored", "delta"], ["w1"]))


def sparse_constant(model: ModelProto, opset: int) -> None:
    """A sparse weight in a Constant node, its indices by rows and columns."""
    dense = values_of(model, "w3").copy()
    dense[::2] = 0
    places = np.argwhere(dense)
    drop(model, "w3")
    values = numpy_helper.from_array(dense[tuple(places.T)], "values")
    indices = numpy_helper.from_array(places.astype(np.int64), "indices")
    sparse = helper.make_sparse_tensor(values, indices, list(dense.shape))
    model.graph.node.insert(0, N("Constant", [], ["w3"], sparse_value=sparse))


def norm_as_products(model: ModelProto, opset: int) -> None:
    """Batch norm as Keras and TensorFlow write it, a Mul and an Add."""
    norm = node_of(model, "norm")
    constant(model, "factor", rng(1).uniform(0.5, 2, (8, 1, 1))), constant(model, "shift", np.ones((8, 1, 1)))
    at = list(model.graph.node).index(norm)
    model.graph.node.remove(norm)
    model.graph.node.insert(at, N("Mul", ["a", "factor"], ["scaled"]))
    model.graph.node.insert(at + 1, N("Add", ["scaled", "shift"], ["b"]))
    for name in "somv":
        drop(model, name)


def expanded_bias(model: ModelProto, opset: int) -> None:
    """A bias by Shape and Expand, as torch's dynamo writes it."""
    constant(model, "one", [0.5])
    model.graph.node.insert(0, N("Constant", [], ["eight"], value=numpy_helper.from_array(np.array([8]))))
    model.graph.node.insert(1, N("Expand", ["one", "eight"], ["bias"]))
    node_of(model, "first").input.append("bias")


def dynamic_weight(model: ModelProto, opset: int) -> None:
    """A convolution whose weight is computed from the input."""
    constant(model, "shape1", [8, 1, 1, 1], np.int64)
    first = "c"
    between(
        model,
        first,
        N("ReduceMax", ["c"], ["largest"], keepdims=0),
        N("Expand", ["largest", "shape1"], ["w"]),
        N("Conv", ["c", "w"], ["new"], name="dynamic", group=8),
    )


def recurrent(operator: str, gates: int) -> Edit:
    """A recurrent layer at the end."""

    def edit(model: ModelProto, opset: int) -> None:
        constant(model, "rw", rng(1).normal(size=(1, gates * 10, 10)) / 4)
        constant(model, "rr", rng(2).normal(size=(1, gates * 10, 10)) / 4)
        constant(model, "rows", [1, -1, 10], np.int64), constant(model, "flat", [-1, 10], np.int64)
        node_of(model, "last").output[0] = "g"
        model.graph.node.extend([
            N("Reshape", ["g", "rows"], ["sequence"]),
            N(operator, ["sequence", "rw", "rr"], ["", "hidden"], hidden_size=10),
            N("Reshape", ["hidden", "flat"], ["y"]),
        ])  # fmt: skip

    return edit


def loop(model: ModelProto, opset: int) -> None:
    """Three turns through a matrix."""
    dense = numpy_helper.from_array(rng(3).normal(size=(10, 10)).astype(np.float32) / 4, "loop_w")
    body = helper.make_graph(
        [N("MatMul", ["s", "loop_w"], ["t"]), N("Identity", ["go"], ["goes"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, None),
        ],
        [dense],
    )
    constant(model, "turns", 3, np.int64), constant(model, "true", True, np.bool_)
    node_of(model, "last").output[0] = "g"
    model.graph.node.append(N("Loop", ["turns", "true", "g"], ["y"], body=body))


def local_function(model: ModelProto, opset: int) -> None:
    """An activation that is a function of the model."""
    nodes = [N("Sigmoid", ["a"], ["s"]), N("Mul", ["a", "s"], ["r"])]
    imports = [helper.make_opsetid("", opset)]
    model.functions.append(helper.make_function("local", "Swish", ["a"], ["r"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.ir_version = max(model.ir_version, 8)
    node = node_of(model, "relu")
    node.op_type, node.domain = "Swish", "local"


def inlined_function(model: ModelProto, opset: int) -> None:
    local_function(model, opset)
    model.CopyFrom(inline_local_functions(model))


def quantized_activations(model: ModelProto, opset: int) -> None:
    """Activations that somebody has quantized already, with a float weight behind them."""
    constant(model, "qs", 0.02), constant(model, "qz", 128, np.uint8)
    between(
        model,
        "c",
        N("QuantizeLinear", ["c", "qs", "qz"], ["q"]),
        N("DequantizeLinear", ["q", "qs", "qz"], ["new"]),
    )


def dynamic_integers(model: ModelProto, opset: int) -> None:
    """A layer as dynamic quantization leaves it."""
    codes = np.clip(np.rint(rng(4).normal(size=(8, 8)) * 40), -127, 127).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(codes, "codes"))
    constant(model, "cs", 0.01)
    between(
        model,
        "f",
        N("DynamicQuantizeLinear", ["f"], ["fq", "fs", "fz"]),
        N("MatMulInteger", ["fq", "codes", "fz"], ["product"]),
        N("Cast", ["product"], ["real"], to=TensorProto.FLOAT),
        N("Mul", ["fs", "cs"], ["scale"]),
        N("Mul", ["real", "scale"], ["new"]),
    )


def ids(model: ModelProto, opset: int) -> None:
    """A second input of class numbers, for a table of rows."""
    add_input(model, "ids", ["n"], TensorProto.INT64)
    constant(model, "table", rng(5).normal(size=(100, 8)))
    between(model, "f", N("Gather", ["table", "ids"], ["row"]), N("Add", ["f", "row"], ["new"]))


def mask(model: ModelProto, opset: int) -> None:
    """A second input of truth values."""
    add_input(model, "mask", ["n", 8], TensorProto.BOOL)
    constant(model, "nothing", 0)
    between(model, "f", N("Where", ["mask", "f", "nothing"], ["new"]))


def unread_input(model: ModelProto, opset: int) -> None:
    add_input(model, "unread", ["n", 4])


def passed_input(model: ModelProto, opset: int) -> None:
    """An output that is an input."""
    model.graph.node.append(N("Identity", ["x"], ["x_again"]))
    add_output(model, "x_again")


def same_output_twice(model: ModelProto, opset: int) -> None:
    model.graph.output.append(ValueInfoProto.FromString(model.graph.output[0].SerializeToString()))


def class_output(model: ModelProto, opset: int) -> None:
    """Only the number of the class comes out."""
    node_of(model, "last").output[0] = "g"
    model.graph.node.append(N("ArgMax", ["g"], ["y"], axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    add_output(model, "g")


def inner_outputs(model: ModelProto, opset: int) -> None:
    for name in "abcde":
        add_output(model, name)


def sequence_output(model: ModelProto, opset: int) -> None:
    model.graph.node.append(N("SequenceConstruct", ["y", "f"], ["all"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None))


def nhwc(model: ModelProto, opset: int) -> None:
    """Channels last, and a transposition in front."""
    node_of(model, "first").input[0] = "nchw"
    model.graph.node.insert(0, N("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8, 3]))


def bytes_in(model: ModelProto, opset: int) -> None:
    """Pictures come in as bytes."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    constant(model, "byte", 1 / 64)
    node_of(model, "first").input[0] = "scaled"
    model.graph.node.insert(0, N("Cast", ["x"], ["real"], to=TensorProto.FLOAT))
    model.graph.node.insert(1, N("Mul", ["real", "byte"], ["scaled"]))


def open_sizes(model: ModelProto, opset: int) -> None:
    """Height and width are open, with names or without."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_param = "height", ""


def no_batch(model: ModelProto, opset: int) -> None:
    """One picture, without an axis for a batch."""
    shape = constant(model, "one_more", [1, 3, 8, 8], np.int64)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8, 8]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10]))
    node_of(model, "first").input[0] = "batch"
    model.graph.node.insert(0, N("Reshape", ["x", shape], ["batch"]))


def microsoft(operator: str, **attributes: Any) -> Edit:
    """An activation of com.microsoft."""

    def edit(model: ModelProto, opset: int) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        at = list(model.graph.node).index(node_of(model, "relu"))
        del model.graph.node[at]
        new = N(operator, ["b"], ["c"], name="relu", domain="com.microsoft", **attributes)
        model.graph.node.insert(at, new)

    return edit


def fused_conv(model: ModelProto, opset: int) -> None:
    """A layer that ONNX Runtime has fused with its activation."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node = node_of(model, "depthwise")
    node.op_type, node.domain = "FusedConv", "com.microsoft"
    node.attribute.append(helper.make_attribute("activation", "Relu"))


def fused_matmul(model: ModelProto, opset: int) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    constant(model, "fused", rng(6).normal(size=(8, 8)) / 3)
    between(model, "f", N("FusedMatMul", ["f", "fused"], ["new"], domain="com.microsoft", alpha=0.5))


def wrong_shapes(model: ModelProto, opset: int) -> None:
    """Inferred shapes that are stale."""
    inferred = shape_inference.infer_shapes(model)
    model.graph.value_info.extend(inferred.graph.value_info)
    for value in model.graph.value_info:
        value.doc_string = "inferred"


def documented(model: ModelProto, opset: int) -> None:
    """Documentation, metadata and a domain everywhere."""
    model.doc_string, model.domain, model.model_version = "doc " * 50, "org.example", 7
    model.producer_name = "a \x1b[31mproducer"
    helper.set_model_props(model, {"class names": "a,b,c", "": "empty"})
    for node in model.graph.node:
        node.doc_string = "File model.py, line 1\n" * 5


def strange_names(model: ModelProto, opset: int) -> None:
    """Names of tensors with spaces, quotes, escapes, and other alphabets."""
    odd = {name: f'{name} "\x1b[1m\u202e<b>/模\n' for name in ("a", "b", "c", "d", "w1", "w2")}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = odd.get(name, name)
    for tensor in model.graph.initializer:
        tensor.name = odd.get(tensor.name, tensor.name)


def same_bits(model: ModelProto, opset: int) -> None:
    """Channels of zeros, equal channels, and a weight of one value."""
    for name, values in (("w1", np.ones((8, 3, 3, 3))), ("w2", np.zeros((8, 1, 3, 3)))):
        drop(model, name)
        constant(model, name, values)


def three_dimensions(model: ModelProto, opset: int) -> None:
    """A convolution over volumes in front."""
    constant(model, "w0", rng(7).normal(size=(1, 1, 3, 1, 1)) / 2)
    constant(model, "axes", [1], np.int64)
    unsqueeze = N("Unsqueeze", ["x", "axes"], ["volume"]) if opset >= 13 else None
    model.graph.node.insert(0, unsqueeze or N("Unsqueeze", ["x"], ["volume"], axes=[1]))
    model.graph.node.insert(1, N("Conv", ["volume", "w0"], ["moved"], pads=[1, 0, 0, 1, 0, 0], name="cube"))
    squeeze = N("Squeeze", ["moved", "axes"], ["picture"]) if opset >= 13 else None
    model.graph.node.insert(2, squeeze or N("Squeeze", ["moved"], ["picture"], axes=[1]))
    node_of(model, "first").input[0] = "picture"
    if opset < 13:
        drop(model, "axes")


def one_dimension(model: ModelProto, opset: int) -> None:
    """A convolution over a sequence in the middle."""
    constant(model, "wide", [0, 8, -1], np.int64), constant(model, "square", [0, 8, 8, 8], np.int64)
    constant(model, "w0", rng(8).normal(size=(8, 8, 3)) / 5)
    between(
        model,
        "c",
        N("Reshape", ["c", "wide"], ["sequence"]),
        N("Conv", ["sequence", "w0"], ["moved"], auto_pad="SAME_UPPER", name="line"),
        N("Reshape", ["moved", "square"], ["new"]),
    )


def layer_norm(model: ModelProto, opset: int) -> None:
    """Normalization that depends on the input, between two layers."""
    constant(model, "ls", np.ones(8)), constant(model, "lo", np.zeros(8))
    between(model, "c", N("InstanceNormalization", ["c", "ls", "lo"], ["new"]))


def optional_outputs(model: ModelProto, opset: int) -> None:
    """A Dropout with its mask, which nobody reads."""
    between(model, "c", N("Dropout", ["c"], ["new", "dropped"]))


def einsum(model: ModelProto, opset: int) -> None:
    constant(model, "ew", rng(9).normal(size=(8, 8)) / 3)
    between(model, "f", N("Einsum", ["f", "ew"], ["new"], equation="ni,io->no"))


def attention(model: ModelProto, opset: int) -> None:
    """Products of two activations, and softmax."""
    between(
        model,
        "c",
        N("Transpose", ["c"], ["turned"], perm=[0, 1, 3, 2]),
        N("MatMul", ["c", "turned"], ["scores"]),
        N("Softmax", ["scores"], ["shares"], axis=-1),
        N("MatMul", ["shares", "c"], ["new"]),
    )


def double_head(model: ModelProto, opset: int) -> None:
    """The last layers in double, behind convolutions in float."""
    for name in ("w3", "b3"):
        values = values_of(model, name)
        drop(model, name)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float64), name))
    between(model, "f", N("Cast", ["f"], ["new"], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def embeddings(kind: int) -> Edit:
    """Class numbers, for each of which a table has a row, in some float type."""

    def edit(model: ModelProto, opset: int) -> None:
        add_input(model, "ids", ["n"], TensorProto.INT64)
        rows = rng(11).normal(size=(40, 8)).astype(helper.tensor_dtype_to_np_dtype(kind))
        model.graph.initializer.append(numpy_helper.from_array(rows, "table"))
        constant(model, "forty", 40, np.int64)
        between(
            model,
            "f",
            N("Mod", ["ids", "forty"], ["row"]),
            N("Gather", ["table", "row"], ["embedding"]),
            N("Cast", ["embedding"], ["floats"], to=TensorProto.FLOAT),
            N("Add", ["f", "floats"], ["new"]),
        )

    return edit


MORE: dict[str, Edit] = {
    "a detector by torch 1.7: Resize with sizes and empty scales": torch_detector,
    "a speech model with a state and an If": speech,
    "a weight stored in float16": stored_as(TensorProto.FLOAT16),
    "a weight stored in bfloat16": stored_as(TensorProto.BFLOAT16),
    "a weight stored in double": stored_as(TensorProto.DOUBLE),
    "a head in double": double_head,
    "embeddings in bfloat16": embeddings(TensorProto.BFLOAT16),
    "embeddings in double": embeddings(TensorProto.DOUBLE),
    "a weight behind Transpose": transposed,
    "a weight behind Reshape": reshaped,
    "a weight that is a sum": summed,
    "a sparse weight in a Constant node": sparse_constant,
    "batch norm as Mul and Add": norm_as_products,
    "a bias by Expand": expanded_bias,
    "a weight computed from the input": dynamic_weight,
    "an LSTM at the end": recurrent("LSTM", 4),
    "a GRU at the end": recurrent("GRU", 3),
    "a Loop": loop,
    "a local function": local_function,
    "a local function, inlined": inlined_function,
    "activations that are quantized already": quantized_activations,
    "a layer that is quantized dynamically": dynamic_integers,
    "an input of class numbers": ids,
    "an input of truth values": mask,
    "an input that nobody reads": unread_input,
    "an output that is an input": passed_input,
    "an output that is named twice": same_output_twice,
    "an output of class numbers": class_output,
    "all inner tensors are outputs": inner_outputs,
    "an output that is a sequence": sequence_output,
    "channels last": nhwc,
    "an input of bytes": bytes_in,
    "open height and width": open_sizes,
    "no batch": no_batch,
    "Gelu of com.microsoft": microsoft("Gelu"),
    "FusedConv of com.microsoft": fused_conv,
    "FusedMatMul of com.microsoft": fused_matmul,
    "inferred shapes in the file": wrong_shapes,
    "documentation and metadata": documented,
    "strange names": strange_names,
    "channels of zeros, and equal ones": same_bits,
    "a 3-D convolution": three_dimensions,
    "a 1-D convolution": one_dimension,
    "InstanceNormalization": layer_norm,
    "an optional output": optional_outputs,
    "Einsum": einsum,
    "products of activations": attention,
}
"""As `odd_models.EDITS`."""

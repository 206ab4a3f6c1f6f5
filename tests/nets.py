"""Networks for matching as text, an account of what was matched, and factors that are moved in them."""

from collections.abc import Iterable

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import ModelProto, numpy_helper

from onnx_dfmpc.spec import Layer, MatchReport

VECTORS = "float[4, 4] x"
W = {"w": (4, 4, 1, 1)}
NORM = {"w": (4, 4, 1, 1), "g": (4,), "b": (4,), "m": (4,), "v": (4,)}
C = {
    "w": (4, 4, 1, 1),
    "v": (4, 4, 1, 1),
    "u": (4, 4, 1, 1),
    "d": (4, 1, 3, 3),
    "fc": (3, 4),
    "fc256": (3, 256),
    "g": (4,),
    "k": (4, 1, 1),
    "slope": (4, 1, 1),
}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def net(
    body: str,
    weights: dict[str, tuple[int, ...]] | None = None,
    *,
    x: str = "float[1, 4, 8, 8] x",
    z: str = "float[] z",
    opset: int = 17,
    ir: int = 8,
    functions: str = "",
    functions_opset: str = "",
) -> ModelProto:
    """A model from the body of its graph; ``weights`` become random initializers, positive so that they can
    be variances too.
    """
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}{functions_opset}]>\nnet ({x}) => ({z}) {{ {body} }}\n{functions}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (weights or {}).items():
        model.graph.initializer.append(
            numpy_helper.from_array(rng.uniform(0.1, 1, shape).astype(np.float32), name)
        )
    return model


def list_inputs(model: ModelProto, names: Iterable[str]) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in names:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return model


def set_initializer(model: ModelProto, name: str, array: np.ndarray) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(array, name)])


def naive_count(model: ModelProto) -> int:
    """Weighted nodes, counted without the code under test: every NodeProto anywhere in the message."""

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += node.op_type in WEIGHTED and node.domain in ("", "ai.onnx")
            for attribute in node.attribute:
                total += count(attribute.g.node) + sum(count(graph.node) for graph in attribute.graphs)
        return total

    return count(model.graph.node) + sum(count(function.node) for function in model.functions)


def check_accounts(model: ModelProto, matched: MatchReport) -> None:
    names = [layer.name for layer in matched.layers] + [skipped.name for skipped in matched.skipped]
    assert matched.weighted_nodes == naive_count(model) == len(names)
    assert len(set(names)) == len(names)
    assert len({layer.output for layer in matched.layers}) == len(matched.layers)
    nodes = {node.output[0]: i for i, node in enumerate(model.graph.node)}
    positions = [nodes[layer.output] for layer in matched.layers]
    assert positions == sorted(positions)
    assert all(skipped.reason for skipped in matched.skipped)
    known = {layer.name for layer in matched.layers}
    assert len({chain.producer for chain in matched.chains}) == len(matched.chains)
    for chain in matched.chains:
        assert chain.consumers
        assert known >= {chain.producer, *chain.consumers}
        assert len(set(chain.consumers)) == len(chain.consumers)
        assert chain.homogeneous == (chain.reason == "")
    for layer, position in zip(matched.layers, positions, strict=True):
        node = model.graph.node[position]
        assert (node.op_type, node.output[0], node.input[0]) == (layer.op_type, layer.output, layer.input)


def move_factors(model: ModelProto, matched: MatchReport) -> ModelProto:
    """Scale channel j of every homogeneous producer by a power of two and input channel j of its consumers by
    the inverse.
    """
    moved = ModelProto()
    moved.CopyFrom(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = {layer.name: layer for layer in matched.layers}
    rng = np.random.default_rng(0)
    for chain in matched.chains:
        if not chain.homogeneous:
            continue
        producer = layers[chain.producer]
        factor = 2.0 ** rng.integers(-2, 3, producer.channels).astype(np.float32)
        if producer.batch_norm is not None:
            norm = next(node for node in model.graph.node if producer.batch_norm.output in node.output)
            for name in norm.input[1:3]:
                arrays[name] = arrays[name] * factor
        else:
            arrays[producer.weight] = arrays[producer.weight] * per_output(producer, factor)
            if producer.bias is not None:
                arrays[producer.bias] = arrays[producer.bias] * factor
        for name in chain.consumers:
            consumer = layers[name]
            arrays[consumer.weight] = arrays[consumer.weight] / per_input(consumer, factor)
    del moved.graph.initializer[:]
    moved.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return moved


def per_output(layer: Layer, factor: np.ndarray) -> np.ndarray:
    """The factor of each weight's output channel, by a loop over the weights."""
    grid = np.ones(layer.shape, np.float32)
    for index in np.ndindex(*layer.shape[:2]):
        channel = index[layer.axis]
        if layer.op_type == "ConvTranspose":
            channel += index[0] // (layer.shape[0] // layer.group) * layer.shape[1]
        grid[index] = factor[channel]
    return grid


def per_input(layer: Layer, factor: np.ndarray) -> np.ndarray:
    """The factor of each weight's input channel, by a loop over the weights."""
    grid = np.ones(layer.shape, np.float32)
    for index in np.ndindex(*layer.shape[:2]):
        channel = index[1 - layer.axis]
        if layer.op_type == "Conv":
            channel += index[0] // (layer.shape[0] // layer.group) * layer.shape[1]
        grid[index] = factor[channel]
    return grid


def outputs_differ(one: ModelProto, two: ModelProto) -> float:
    """Largest relative difference of the outputs under ONNX Runtime, on one random input; open dimensions get
    1 or 64.
    """
    initializers = {tensor.name for tensor in one.graph.initializer}
    rng = np.random.default_rng(1)
    feeds = {}
    for value in one.graph.input:
        if value.name not in initializers:
            shape = [
                dim.dim_value or (64 if i > 1 else 1)
                for i, dim in enumerate(value.type.tensor_type.shape.dim)
            ]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    results = []
    for model in (one, two):
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, feeds))
    return max(
        float(np.max(np.abs(a - b)) / (np.max(np.abs(a)) + 1e-30)) for a, b in zip(*results, strict=True)
    )

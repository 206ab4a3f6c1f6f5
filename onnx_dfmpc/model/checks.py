"""What a model must be before anything else looks at it: the tests that onnx.load, the checker and runtimes
leave out.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, defs, numpy_helper, shape_inference

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.opset import DEFAULT_DOMAINS, MAX_OPSET, changed_operators, opset_of
from onnx_dfmpc.model.protobuf import graphs, is_large, skeleton

MAX_IR = 14
"""Highest IR version that ONNX Runtime reads."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def require_graph(proto: ModelProto, label: str) -> None:
    """Raise ModelError unless there is a graph with nodes in it: onnx.load is content with an empty file."""
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(
            f"{label}: there is no graph in it, or one without nodes",
            hint="pass the .onnx file of a float network",
        )


def verify(proto: ModelProto, label: str) -> None:
    """Raise ModelError unless the model, with its external data loaded, is sound in versions, names, shapes,
    types and weights.
    """
    _verify_versions(proto, label)
    _verify_names(proto, label)
    _verify_structure(proto, label)
    _verify_weights(proto, label)


def _verify_versions(proto: ModelProto, label: str) -> None:
    if proto.ir_version > MAX_IR:
        raise ModelError(
            f"{label}: IR version {proto.ir_version} is newer than {MAX_IR}",
            hint="export it with an older version of onnx",
        )
    opset, known = opset_of(proto), defs.onnx_opset_version()
    if opset == 0:
        raise ModelError(
            f"{label}: no opset_import for the standard operators", hint="export the model again"
        )
    if not 1 <= opset <= known:
        raise ModelError(
            f"{label}: opset {opset} is unknown (1 to {known} are known)",
            hint=f"export it with opset {MAX_OPSET} or lower",
        )
    if opset > MAX_OPSET and (changed := changed_operators(proto, MAX_OPSET)):
        raise ModelError(
            f"{label}: opset {opset} is above {MAX_OPSET}, the highest that ONNX Runtime runs with quantized weights, and "
            f"{', '.join(changed)} changed since",
            hint=f"export it with opset {MAX_OPSET} or lower",
        )


def _verify_names(proto: ModelProto, label: str) -> None:
    for graph in graphs(proto.graph):
        names = Counter(tensor.name for tensor in graph.initializer)
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        names.update(name for node in graph.node for name in node.output if name)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ModelError(
                f"{label}: tensor {twice[0]!r} is defined {names[twice[0]]} times",
                hint="export the model again",
            )


def _verify_structure(proto: ModelProto, label: str) -> None:
    try:
        for tensor in proto.graph.initializer:
            if is_large(tensor):
                _verify_size(tensor)
        outline = skeleton(proto)
        checker.check_model(outline)
        inferred = shape_inference.infer_shapes(outline, check_type=True, strict_mode=True)
    except (
        Exception
    ) as error:  # the checker raises ValidationError, InferenceError, RuntimeError, ValueError, TypeError ...
        raise ModelError(f"{label}: {' '.join(str(error).split())}", hint="export the model again") from error
    _verify_channels(inferred, label)


def _verify_size(tensor: TensorProto) -> None:
    try:
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"tensor {tensor.name!r} does not hold the data of its shape {list(tensor.dims)}: {error}"
        ) from error


def _verify_channels(inferred: ModelProto, label: str) -> None:
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    for node in inferred.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in DEFAULT_DOMAINS:
            continue
        x, w = (shapes.get(name, []) for name in node.input[:2])
        if len(x) < 2 or len(w) < 2 or not x[1] or not w[1]:
            continue
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        expected = w[1] * group if node.op_type == "Conv" else w[0]
        if x[1] != expected:
            raise ModelError(
                f"{label}: node {_called(node)}: weight {node.input[1]!r} of shape {w}, group {group}, takes "
                f"{expected} channels, but the input has {x[1]}",
                hint="export the model again",
            )


def _verify_weights(proto: ModelProto, label: str) -> None:
    table = ConstantTable(proto)
    for node in proto.graph.node:
        if node.domain not in DEFAULT_DOMAINS:
            continue
        if node.op_type == "BatchNormalization":
            _verify_batch_norm(node, table, label)
        if node.op_type in (*WEIGHTED, "BatchNormalization"):
            for name in node.input:
                if name in table:
                    _verify_values(
                        table[name], f"{label}: node {_called(node)}: tensor {table.source(name)!r}"
                    )


def _verify_values(array: NDArray[np.generic], what: str) -> None:
    if array.size == 0:
        raise ModelError(f"{what} of shape {list(array.shape)} is empty", hint="export the model again")
    if not np.all(np.isfinite(array)):
        raise ModelError(f"{what} holds NaN or infinity", hint="train or export the model again")


def _verify_batch_norm(node: NodeProto, table: ConstantTable, label: str) -> None:
    parameters = [table[name] for name in node.input[1:5] if name in table]
    if len({parameter.shape for parameter in parameters}) > 1:
        shapes = ", ".join(str(parameter.shape) for parameter in parameters)
        raise ModelError(
            f"{label}: node {_called(node)}: batch-norm parameters differ in shape: {shapes}",
            hint="export the model again",
        )
    if len(node.input) < 5 or node.input[4] not in table:
        return
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    variance = table[node.input[4]].astype(np.float64)
    if np.any(variance + epsilon <= 0):
        raise ModelError(
            f"{label}: node {_called(node)}: variance {variance.min():.3g} + epsilon {epsilon:.3g} in "
            f"{table.source(node.input[4])!r} is not positive",
            hint="train or export the model again",
        )


def _called(node: NodeProto) -> str:
    return repr(node.name or node.output[0])

"""The float numbers of a model that stay float, with their bytes and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnx_dfmpc.model.protobuf import graphs, subgraphs
from onnx_dfmpc.spec.ops import OPS, PLAIN, op_key

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def float_bytes(
    proto: ModelProto, quantized: Collection[str], skipped: Mapping[str, str], left: Mapping[str, str]
) -> dict[str, int]:
    """Bytes of the float constants of a model by reason, the most first.

    ``quantized`` are the weights that do not stay float, ``skipped`` why layers do, by name, ``left`` why
    other weights do, by the name of the initializer.
    """
    reads = dict(_reasons(proto, skipped, left))
    found: dict[str, int] = {}

    def count(tensor: TensorProto, reason: str) -> None:
        if tensor.data_type in FLOATS:
            size = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            found[reason] = found.get(reason, 0) + int(size)

    for name, tensor in _constants(proto.graph):
        if name not in quantized:
            count(tensor, reads.get(name, "read by no node"))
    for node in proto.graph.node:
        for body in subgraphs(node):
            for graph in graphs(body):
                for _, tensor in _constants(graph):
                    count(tensor, f"inside of {node.op_type}")
    for function in proto.functions:
        for node in function.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    count(attribute.t, "inside of local functions")
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def describe(found: Mapping[str, int], total: int) -> str:
    """One line of a report.

    >>> describe({"weights of LSTM": 3000, "biases": 24}, 4000)
    'float bytes left: 3,024 of 4,000 (76 %): 3,000 weights of LSTM; 24 biases'
    """
    left = sum(found.values())
    share = f" ({100 * left / total:.0f} %)" if total else ""
    reasons = "; ".join(f"{size:,} {reason}" for reason, size in found.items())
    return f"float bytes left: {left:,} of {total:,}{share}" + (f": {reasons}" if reasons else "")


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield node.output[0], attribute.t


def _reasons(
    proto: ModelProto, skipped: Mapping[str, str], left: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Why a constant that a node reads stays float, the last reader's reason last."""
    for node in proto.graph.node:
        for body in subgraphs(node):
            for inner in (inner for graph in graphs(body) for inner in graph.node):
                for name in inner.input:
                    yield name, f"read inside of {node.op_type}{_because(left.get(name, ''))}"
        for place, name in enumerate(node.input):
            if name:
                yield name, _reason(node, place, skipped, left.get(name, ""))


def _because(why: str) -> str:
    return f" ({why})" if why else ""


def _reason(node: NodeProto, place: int, skipped: Mapping[str, str], left: str) -> str:
    operator = op_key(node.op_type, node.domain)
    if operator in OPS:
        why = skipped.get(node.name) or skipped.get(node.output[0], "")
        if place < 2:
            return f"weights of {operator}{_because(why)}" if why else f"constants of {operator}"
        return "biases"
    if operator in PLAIN and place in PLAIN[operator]:
        what = "tables" if operator == "Gather" else "weights"
        return f"{what} of {operator}{_because(left)}"
    if operator in PLAIN and place == 3:
        return "biases"
    if operator == "BatchNormalization":
        return "parameters of BatchNormalization"
    return f"constants of {operator}"

"""Small tools on ONNX protobufs that loading, saving, opset conversion and rewriting share."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

LARGE = 1024
"""Elements above which an initializer is data, not a shape or axes that tools must read; a convention."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""Types of numbers that may be weights."""


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Bodies held directly by a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Walk a graph and everything nested in it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from graphs(body)


def value_names(graph: GraphProto) -> set[str]:
    """Every tensor name that a graph and everything nested in it defines or reads."""
    names: set[str] = set()
    for scope in graphs(graph):
        names.update(tensor.name for tensor in scope.initializer)
        names.update(sparse.values.name for sparse in scope.sparse_initializer)
        names.update(value.name for value in (*scope.input, *scope.output, *scope.value_info))
        for node in scope.node:
            names.update(node.input, node.output)
    return names - {""}


def defined_names(graph: GraphProto) -> Iterator[str]:
    """Names that a graph itself gives, each once, without those of its bodies."""
    yield from {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    yield from (name for node in graph.node for name in node.output if name)


def is_large(tensor: TensorProto) -> bool:
    """Whether a tensor has more elements than ``LARGE``."""
    return bool(prod(tensor.dims) > LARGE)


def framed(size: int) -> int:
    """Bytes that ``size`` bytes take as a field of a message: tag (of a field below 16), length, content."""
    return 1 + varint(size) + size


def varint(number: int) -> int:
    """Bytes of a number that is not negative, 7 bits to a byte."""
    return max(1, -(-number.bit_length() // 7))


def framed_size(message: Message) -> int:
    """Bytes that a message takes inside its parent."""
    return framed(message.ByteSize())


def copy_fields(source: Message, target: Message, *, without: tuple[str, ...] = ()) -> None:
    """Add every set field of ``source`` to ``target``, except those named in ``without``."""
    for descriptor, value in source.ListFields():
        if descriptor.name in without:
            continue
        if hasattr(value, "MergeFrom"):
            getattr(target, descriptor.name).MergeFrom(value)
        else:
            setattr(target, descriptor.name, value)


def without_initializers(proto: ModelProto) -> ModelProto:
    """Copy of a model without the initializers of the main graph, and so without nearly all of its bytes."""
    copy = ModelProto()
    copy_fields(proto, copy, without=("graph",))
    copy.graph.SetInParent()
    copy_fields(proto.graph, copy.graph, without=("initializer",))
    return copy


def skeleton(proto: ModelProto) -> ModelProto:
    """Copy of a model in which every large initializer is a typed graph input.

    Checker, shape inference and version converter only look at types, shapes and small constants: on the
    skeleton the weights cost nothing, and may exceed the 2 GB of a protobuf.
    """
    copy = without_initializers(proto)
    listed = {value.name for value in copy.graph.input}
    for tensor in proto.graph.initializer:
        if not is_large(tensor):
            copy.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in listed:
            copy.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return copy


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor of a model: initializers and attributes, in bodies and local functions too."""
    scopes = list(graphs(proto.graph))
    nodes = [node for function in proto.functions for node in function.node]
    scopes += [inner for node in nodes for body in subgraphs(node) for inner in graphs(body)]
    nodes += [node for scope in scopes for node in scope.node]
    for scope in scopes:
        yield from scope.initializer
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def undecodable(message: Message) -> str:
    """Name of a text field that is not UTF-8, somewhere in a message; "" where all are.

    Protobuf hands these out as bytes, which are no names for anybody else.
    """
    for descriptor, value in message.ListFields():
        if descriptor.type == FieldDescriptor.TYPE_STRING:
            if any(
                isinstance(text, bytes) for text in ([value] if isinstance(value, str | bytes) else value)
            ):
                return str(descriptor.name)
        elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                if found := undecodable(inner):
                    return found
    return ""

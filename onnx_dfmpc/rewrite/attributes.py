"""Attributes that say what holds without them."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import AttributeProto, ModelProto, NodeProto, defs

from onnx_dfmpc.model.opset import DEFAULT_DOMAINS, opset_of
from onnx_dfmpc.model.protobuf import graphs
from onnx_dfmpc.model.shapes import inferred_shapes

WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
"""Operators with a window that moves over their input."""

IN_WORDS = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
"""Their defaults that ONNX has in words only, one number for each dimension, since opset 11."""

OPERATORS = (*WINDOWS, "Gemm", "BatchNormalization", "LeakyRelu")
"""Those that were tried without, in every runtime. Of others some runtimes have defaults of their own: the
axis of a Split is 1 in OpenCV 5.0 where none is given.
"""


def drop_defaults(proto: ModelProto) -> None:
    """Remove attributes that have their default, in place.

    A convolution without ``kernel_shape`` has that of its weight; it goes where the weight's shape is known.
    Every runtime of docs/runtimes.md was tried without.
    """
    opset = opset_of(proto)
    shapes = inferred_shapes(proto) | {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for graph in graphs(proto.graph):
        for node in graph.node:
            if node.op_type in OPERATORS and node.domain in DEFAULT_DOMAINS:
                _drop(node, opset, shapes)


def _drop(node: NodeProto, opset: int, shapes: Mapping[str, tuple[object, ...]]) -> None:
    known = defs.get_schema(node.op_type, opset, "").attributes
    for index in reversed(range(len(node.attribute))):
        attribute = node.attribute[index]
        name = attribute.name
        if name not in known:
            continue
        if name == "kernel_shape" and node.op_type == "Conv":
            spatial = shapes.get(node.input[1], ())[2:]
            superfluous = list(spatial) == list(attribute.ints) != []
        elif node.op_type in WINDOWS and name in IN_WORDS:
            superfluous = opset >= 11 and all(number == IN_WORDS[name] for number in attribute.ints)
        else:
            superfluous = _content(attribute) == _content(known[name].default_value)
        if superfluous:
            del node.attribute[index]


def _content(attribute: AttributeProto) -> bytes:
    """All of an attribute but its name; that of no attribute is empty."""
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    return bytes(copy.SerializeToString(deterministic=True))

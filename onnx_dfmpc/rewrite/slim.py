"""Bytes that are not weights: arithmetic on known shapes, attributes that say nothing, numbers of 16 bits in
32, long names, what exporters leave.

`slim` changes nothing that is computed.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Collection, Iterator

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnx_dfmpc.model.protobuf import subgraphs, value_names
from onnx_dfmpc.model.shapes import SMALL, drop_dead, fold_shapes, read_names
from onnx_dfmpc.rewrite.attributes import drop_defaults
from onnx_dfmpc.rewrite.vectors import pack_vectors

SHORT = 4
"""Characters of a name that is short enough."""

OURS = "onnx_dfmpc."


def slim(proto: ModelProto, keep: Collection[str] = ()) -> dict[str, str]:
    """Make a model smaller, in place; returned are the new names of tensors with those they had.

    Tensors to ``keep`` are left as they are: those that quantized weights are made of are short already, and
    their bytes are counted layer by layer.
    """
    fold_shapes(proto)
    _share_constants(proto, keep)
    _strip(proto)
    drop_defaults(proto)
    pack_vectors(proto)
    return _shorten(proto, keep)


def _share_constants(proto: ModelProto, keep: Collection[str]) -> None:
    """Keep one of several equal constants: shapes, axes and other integers, bounds of Clip."""
    graph = proto.graph
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    inside = _inside(proto)
    fixed = {value.name for value in (*graph.input, *graph.output)} | inside | set(keep)
    bounds = _bounds(proto)
    for index in range(len(graph.initializer)):
        tensor = graph.initializer[index]
        # Not INT32, and not every float: of biases and scales a prediction of the size knows no numbers.
        shared = tensor.data_type == TensorProto.INT64 or tensor.name in bounds
        if not shared or tensor.name in fixed or np.prod(tensor.dims) > SMALL:
            continue
        key = tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()
        if kept.setdefault(key, tensor.name) != tensor.name:
            renamed[tensor.name] = kept[key]
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    drop_dead(proto)


def _bounds(proto: ModelProto) -> set[str]:
    """Constants that are only read as bounds of Clip."""
    read: set[str] = set()
    others: set[str] = set()
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            (read if node.op_type == "Clip" and position else others).add(name)
    return read - others


def _strip(proto: ModelProto) -> None:
    """Remove what only people and exporters read, and what can be inferred."""
    graph = proto.graph
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        proto.ClearField(field)
    for field in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    for index in reversed(range(len(proto.metadata_props))):
        if not proto.metadata_props[index].key.startswith(OURS):
            del proto.metadata_props[index]
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
        if not list(subgraphs(node)):
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")


def _inside(proto: ModelProto) -> set[str]:
    """Names that bodies of If, Loop and Scan know."""
    return {name for node in proto.graph.node for body in subgraphs(node) for name in value_names(body)}


def _shorten(proto: ModelProto, keep: Collection[str]) -> dict[str, str]:
    """Give long names of tensors inside of the graph short ones; the most read get the shortest."""
    graph = proto.graph
    fixed = {value.name for value in (*graph.input, *graph.output)} | _inside(proto) | set(keep)
    read = read_names(proto)
    long = [name for node in graph.node for name in node.output] + [t.name for t in graph.initializer]
    long = [name for name in dict.fromkeys(long) if len(name.encode()) > SHORT and name not in fixed]
    long.sort(key=lambda name: -read[name])  # stable: the order of the graph among equals
    fresh = _names(value_names(graph))
    new = {name: next(fresh) for name in long}
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name in new:
                    names[position] = new[name]
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    return {short: name for name, short in new.items()}


def _names(taken: Collection[str]) -> Iterator[str]:
    """Names from the shortest on that are not taken."""
    letters = string.ascii_letters
    rest = letters + string.digits
    for length in itertools.count(0):
        for first in letters:
            for others in itertools.product(rest, repeat=length):
                name = first + "".join(others)
                if name not in taken:
                    yield name

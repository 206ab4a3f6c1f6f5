"""A weight whose codes are those of another one: it has scales of its own, and the nodes that apply them.

the first layer    codes -> Cast -> Gather -> Reshape -> DequantizeLinear(scale) -> float weight
the next one                            from Reshape: -> DequantizeLinear(scale) -> float weight
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import NodeProto, TensorProto

from onnx_dfmpc.storage.types import SCALE_OPSETS, TensorSpec, WeightLayout


def with_codes_of(layout: WeightLayout, first: WeightLayout) -> WeightLayout:
    """Layout without what another one has as well, where both weights have the same codes and zero points:
    packed codes, and all that is computed from nothing else. The two may be unpacked in different ways.
    """
    if layout.storage != first.storage:
        return layout
    label, other = layout.spec.names.label, first.spec.names.label
    there = {_described(tensor, other): tensor.name for tensor in first.tensors if _is_integer(tensor)}
    there |= {_content(constant, other): constant.name for constant in first.constants}
    names: dict[str, str] = {}  # to those of the other layout
    tensors, constants = [], []
    for tensor in layout.tensors:
        if _is_integer(tensor) and (key := _described(tensor, label)) in there:
            names[tensor.name] = there[key]
        else:
            tensors.append(tensor)
    for constant in layout.constants:
        if (key := _content(constant, label)) in there:
            names[constant.name] = there[key]
        else:
            constants.append(constant)
    computed = {_computes(node, {}): node.output[0] for node in first.nodes}
    nodes = []
    for node in layout.nodes:
        if (key := _computes(node, names)) in computed:
            names[node.output[0]] = computed[key]
        else:
            nodes.append(_renamed(node, names))
    return replace(layout, tensors=tuple(tensors), constants=tuple(constants), nodes=tuple(nodes))


def _is_integer(tensor: TensorSpec) -> bool:
    """Whether it holds codes or zero points: scales are floats."""
    return tensor.data_type not in SCALE_OPSETS


def _described(tensor: TensorSpec, label: str) -> tuple[object, ...]:
    return tensor.name.removeprefix(label), tensor.data_type, tensor.dims


def _content(constant: TensorProto, label: str) -> tuple[object, ...]:
    content = TensorProto()
    content.CopyFrom(constant)
    content.name = constant.name.removeprefix(label)
    return (content.SerializeToString(deterministic=True),)


def _computes(node: NodeProto, names: Mapping[str, str]) -> tuple[object, ...]:
    """What a node computes of what; equal for nodes that give the same."""
    attributes = tuple(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.op_type, tuple(names.get(name, name) for name in node.input), attributes


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """The node, reading other tensors."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    return copy

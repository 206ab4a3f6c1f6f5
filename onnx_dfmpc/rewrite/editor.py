"""Edits on a model of our own: weights that come from codes, new biases and batch norms, and nothing left
over from what they replace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, UnsupportedError
from onnx_dfmpc.model.constants import ConstantTable, used_names
from onnx_dfmpc.model.protobuf import value_names
from onnx_dfmpc.rewrite.names import Names
from onnx_dfmpc.spec import BatchNorm, Layer
from onnx_dfmpc.spec.ops import OPS, spatial_rank
from onnx_dfmpc.storage.parts import StoredWeight, WeightLayout
from onnx_dfmpc.storage.planes import shared_parts


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to one layer: its weight, drawn and built, its new bias and batch norm, if any, and
    whether its batch norm goes.
    """

    layer: Layer
    layout: WeightLayout
    weight: StoredWeight
    bias: NDArray[np.float32] | None
    batch_norm: BatchNorm | None
    folded: bool


class Editor:
    """One pass of edits; nodes go in and out of the list at ``finish``, so that indices hold until then."""

    def __init__(self, proto: ModelProto, names: Names) -> None:
        self.graph, self.names = proto.graph, names
        self.nodes: list[NodeProto] = list(proto.graph.node)
        self.table = ConstantTable(proto)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.taken = value_names(self.graph) | {node.name for node in self.nodes}
        self.before: dict[int, list[NodeProto]] = {}
        self.after: dict[int, list[NodeProto]] = {}
        self.released: list[str] = []
        self.dropped: set[str] = set()
        self.bypassed: set[int] = set()
        self.hidden: set[str] = set()
        self.replaced: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """Make a name unique among all tensors and nodes of the model."""
        name, count = wanted, 0
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def apply(self, edit: Edit) -> None:
        """Put one layer in."""
        layer, weight = edit.layer, edit.weight
        index = self._node_of(layer)
        node = self.nodes[index]
        name = node.input[1]
        self.graph.initializer.extend(weight.initializers)
        self.before.setdefault(index, []).extend(weight.nodes)
        node.input[1] = weight.output
        if weight.output == name:
            self._drop(name)
        else:
            self.released.append(name)
        self._freeze_shape(layer, name)
        if edit.folded:
            self._bypass_batch_norm(layer)
        if edit.bias is not None:
            self._set_bias(layer, index, edit.bias)
        if edit.batch_norm is not None:
            self._set_batch_norm(layer, edit.batch_norm)

    def finish(self, shared: frozenset[str]) -> None:
        """Put the nodes in order, behind what the layers share, and remove what only the replaced constants
        needed.
        """
        _keep(self.graph.initializer, lambda tensor: tensor.name not in self.dropped)
        initializers, nodes = shared_parts(shared, self.names.prefix)
        self.graph.initializer.extend(initializers)
        for index, node in enumerate(self.nodes):
            kept = () if index in self.bypassed or self.dropped.intersection(node.output) else (node,)
            nodes += [*self.before.get(index, ()), *kept, *self.after.get(index, ())]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._remove_unused()

    def _drop(self, name: str) -> None:
        """Take away what makes a constant, whose name its quantized twin takes over."""
        self.dropped.add(name)
        if name in self.producer:
            self.released.extend(self.nodes[self.producer[name]].input)
        else:
            self.replaced.add(name)

    def _freeze_shape(self, layer: Layer, weight: str) -> None:
        """Turn nodes that only ask for the shape of a weight into constants, so that they do not keep its
        float values in the file.
        """
        shape = layer.shape
        for index, node in enumerate(self.nodes):
            if node.op_type in ("Shape", "Size") and self._same_constant(node.input[0], weight):
                cut = {attribute.name: attribute.i for attribute in node.attribute}
                asked = (
                    math.prod(shape)
                    if node.op_type == "Size"
                    else shape[cut.get("start", 0) : cut.get("end", len(shape))]
                )
                value = numpy_helper.from_array(np.array(asked, np.int64))
                self.nodes[index] = helper.make_node("Constant", [], node.output, node.name, value=value)

    def _node_of(self, layer: Layer) -> int:
        index = self.producer.get(layer.output)
        if (
            index is None
            or self.nodes[index].op_type != layer.op_type
            or self.nodes[index].input[1] not in self.table
        ):
            raise DfmpcError(
                f"layer {layer.name!r}: no {layer.op_type} with a constant weight makes {layer.output!r}"
            )
        return index

    def _bypass_batch_norm(self, layer: Layer) -> None:
        """Let the layer, or the Add behind it, make what its batch norm makes; Identity nodes in between go
        with the batch norm.
        """
        norm = self._batch_norm_of(layer)
        output, inner = self.nodes[norm].output[0], self.nodes[norm].input[0]
        self.released.extend(self.nodes[norm].input[1:])
        self.bypassed.add(norm)
        hidden = {inner}
        while self.nodes[self.producer[inner]].op_type == "Identity":
            self.bypassed.add(self.producer[inner])
            inner = self.nodes[self.producer[inner]].input[0]
            hidden.add(inner)
        end = self.nodes[self.producer[inner]]
        for node in self.nodes:  # those that only ask for the shape, which is the same
            for position, name in enumerate(node.input):
                if name in hidden:
                    node.input[position] = output
        end.output[0] = output
        self.hidden |= hidden

    def _batch_norm_of(self, layer: Layer) -> int:
        index = self.producer.get(layer.batch_norm.output) if layer.batch_norm else None
        if index is None:
            raise DfmpcError(f"layer {layer.name!r} has no batch norm to replace")
        return index

    def _set_bias(self, layer: Layer, index: int, bias: NDArray[np.float32]) -> None:
        if bias.shape != (layer.channels,):
            raise DfmpcError(
                f"layer {layer.name!r}: bias of shape {bias.shape} for {layer.channels} channels"
            )
        node = self.nodes[index]
        if layer.bias is not None:
            owner, position = self._bias_input(layer, index)
            self._replace(owner, position, bias)
        elif OPS[layer.op_type].bias_input is None or (len(node.input) > 2 and node.input[2]):
            self._add_behind(layer, index, bias)
        else:
            name = self._add(
                f"{self.names.layers[layer.name].label}b",
                self._cast(bias, self._dtype(layer.weight), layer.name),
            )
            del node.input[2:]
            node.input.append(name)
            for attribute in node.attribute:
                if attribute.name == "beta":  # meant nothing without a third input
                    attribute.f = 1.0

    def _bias_input(self, layer: Layer, index: int) -> tuple[NodeProto, int]:
        """Node and input position of the constant that ``layer.bias`` names: the layer's third input, or one
        side of the Add behind it.
        """
        own = self.nodes[index]
        if len(own.input) > 2 and self._same_constant(own.input[2], layer.bias):
            return own, 2
        for node in self.nodes:
            if node.op_type == "Add" and layer.output in node.input:
                position = 1 - list(node.input).index(layer.output)
                if self._same_constant(node.input[position], layer.bias):
                    return node, position
        raise DfmpcError(f"layer {layer.name!r}: nothing adds the bias {layer.bias!r}")

    def _same_constant(self, name: str, other: str | None) -> bool:
        return (
            name in self.table
            and other in self.table
            and self.table.source(name) == self.table.source(str(other))
        )

    def _add_behind(self, layer: Layer, index: int, bias: NDArray[np.float32]) -> None:
        """Add the bias in a node of its own, which takes over the name of the layer's output."""
        node = self.nodes[index]
        values = self._cast(bias, self._dtype(layer.weight), layer.name).reshape(
            -1, *[1] * spatial_rank(layer)
        )
        label = self.names.layers[layer.name].label
        name, output = self._add(f"{label}b", values), node.output[0]
        node.output[0] = self.fresh(f"{label}_without_bias")
        add = helper.make_node("Add", [node.output[0], name], [output], name=self.fresh(f"{label}_add"))
        self.after.setdefault(index, []).append(add)

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        return helper.tensor_dtype_to_np_dtype(self.table.data_type(name))

    def _set_batch_norm(self, layer: Layer, new: BatchNorm) -> None:
        """Replace the parameters, none of which the caller of the model may override any more: the others
        would not fit.
        """
        node = self.nodes[self._batch_norm_of(layer)]
        for position, values in enumerate((new.gamma, new.beta, new.mean, new.var), start=1):
            self._replace(node, position, values)
            self.replaced.add(node.input[position])

    def _replace(self, node: NodeProto, position: int, values: NDArray[np.floating]) -> None:
        """Give a node another constant: in place where it alone reads an initializer, else under a new name."""
        name = node.input[position]
        old = self.table[name]
        new = self._cast(values, old.dtype, node.name or node.output[0])
        if new.size == old.size:
            new = new.reshape(old.shape)
        if np.array_equal(new, old):
            return
        if self.table.is_initializer(name) and self.table.uses(name) == 1 and new.shape == old.shape:
            kept = self.initializers[name]
            fields = numpy_helper.from_array(new, name)
            fields.doc_string = kept.doc_string
            fields.metadata_props.extend(kept.metadata_props)
            kept.CopyFrom(fields)
            self.replaced.add(name)
        else:
            node.input[position] = self._add(f"{self.table.source(name)}_adjusted", new)
            self.released.append(name)

    def _add(self, wanted: str, values: NDArray[np.generic]) -> str:
        name = self.fresh(wanted)
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    @staticmethod
    def _cast(values: NDArray[np.floating], dtype: np.dtype[np.generic], where: str) -> NDArray[np.generic]:
        with np.errstate(over="ignore"):
            cast = np.asarray(values).astype(dtype)
        if not np.all(np.isfinite(cast.astype(np.float64))):
            raise UnsupportedError(
                f"{where}: new parameters do not fit {dtype}",
                hint="exclude the layer, or export the model in float32",
            )
        return cast

    def _remove_unused(self) -> None:
        """Remove released constants that nobody reads any more, and the Identity and Constant nodes that only
        they needed.
        """
        used = used_names(self.graph)
        producers = {name: node for node in self.graph.node for name in node.output}
        gone = []
        queue = list(dict.fromkeys(self.released))
        while queue:
            name = queue.pop()
            if used[name]:
                continue
            if name in self.initializers:
                self.replaced.add(name)
                gone.append(name)
            elif name in producers:
                node = producers.pop(name)
                gone.append(name)
                used.subtract(node.input)
                queue.extend(node.input)
        names = set(gone) | self.hidden
        annotated = names | self.dropped
        _keep(self.graph.node, lambda node: not names.intersection(node.output))
        _keep(self.graph.initializer, lambda tensor: tensor.name not in names)
        _keep(self.graph.value_info, lambda value: value.name not in names)
        _keep(self.graph.quantization_annotation, lambda annotation: annotation.tensor_name not in annotated)
        _keep(self.graph.input, lambda value: value.name not in self.replaced)


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    """Delete from a repeated field, in place, what is not wanted."""
    for index in reversed([i for i, item in enumerate(items) if not wanted(item)]):
        del items[index]

"""Edits on a copy of the model: weights that come from codes, new biases and batch norms, and nothing left of
what they replace. Names that a user can see stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, LayerError
from onnx_dfmpc.model.constants import ConstantTable, used_names
from onnx_dfmpc.model.protobuf import value_names
from onnx_dfmpc.model.scratch import release
from onnx_dfmpc.spec import BatchNorm, Layer, QuantizedWeight
from onnx_dfmpc.spec.ops import OPS, op_key, spatial_rank
from onnx_dfmpc.storage.tables import shared_parts
from onnx_dfmpc.storage.types import StoredWeight, WeightLayout


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to one layer: its weight, as it is or as it is stored, its new bias and batch norm, if
    any, and whether its batch norm goes because it is folded.
    """

    layer: Layer
    layout: WeightLayout
    weight: QuantizedWeight | StoredWeight
    bias: NDArray[np.float32] | None
    batch_norm: BatchNorm | None
    folded: bool


@dataclass(frozen=True, eq=False)
class PlainEdit:
    """What happens to a weight that is rounded to nearest: how it is stored, under the name that it had."""

    layout: WeightLayout
    weight: StoredWeight


class Editor:
    """One pass of edits over a graph, in place: `apply` for every layer, `apply_plain` for every other
    weight, then `finish`.

    Nodes move only at the end, so that their indices hold until then. A constant may have other readers,
    through Identity nodes and in bodies of If and Loop too: so nothing is removed until all edits are in, and
    then only what nobody reads.
    """

    def __init__(self, proto: ModelProto) -> None:
        self._graph = proto.graph
        self._table = ConstantTable(proto)
        self._nodes: list[NodeProto] = list(proto.graph.node)
        self._producer = {
            name: index for index, node in enumerate(self._nodes) for name in node.output if name
        }
        self._initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._taken = value_names(proto.graph) | {node.name for node in self._nodes}

        # what will stand where each node stands now
        self._places: list[list[NodeProto]] = [[node] for node in self._nodes]
        # constants that have lost a reader
        # positions of the nodes that read a tensor, and of those that read shapes
        self._readers: dict[str, list[int]] = {}
        for index, node in enumerate(self._nodes):
            for name in node.input:
                self._readers.setdefault(name, []).append(index)
        self._shape_nodes = [i for i, node in enumerate(self._nodes) if node.op_type in ("Shape", "Size")]
        self._released: list[str] = []
        # what makes weights that any node may read, in bodies too
        self._front: list[NodeProto] = []
        # float constants whose name the dequantized weight takes over
        self._superseded: set[str] = set()
        # tensors that no longer exist
        self._gone: set[str] = set()
        # initializers that the caller of the model may not override: their new numbers belong together
        self._fixed: set[str] = set()

    def apply(self, edit: Edit) -> None:
        """Put one layer in."""
        layer = edit.layer
        index = self._index_of(layer)
        self._set_weight(index, edit)
        if edit.folded:
            self._bypass_batch_norm(layer)
        if edit.bias is not None:
            self._set_bias(layer, index, edit.bias, edit.layout.spec.names.label)
        if edit.batch_norm is not None:
            self._set_batch_norm(layer, edit.batch_norm)

    def apply_plain(self, edit: PlainEdit) -> None:
        """Put a weight in that keeps its name, and so its readers."""
        name = edit.weight.output
        self._graph.initializer.extend(edit.weight.initializers)
        self._front.extend(edit.weight.nodes)
        self._superseded.add(name)
        if name in self._producer:  # a Constant node wrote it
            self._places[self._producer[name]] = []
        self._freeze_shape(edit.layout.spec.shape, name)

    def finish(self, shared: Collection[str]) -> None:
        """Put the nodes in order, after the constants that layers share, and remove what nobody reads."""
        graph, gone, superseded = self._graph, self._gone, self._superseded
        _delete(graph.initializer, lambda tensor: tensor.name in superseded)
        initializers, nodes = shared_parts(shared)
        graph.initializer.extend(initializers)
        del graph.node[:]
        graph.node.extend([*nodes, *self._front, *(node for place in self._places for node in place)])
        gone |= self._unread_constants()
        lost = gone | superseded
        _delete(graph.node, lambda node: not gone.isdisjoint(node.output))
        _delete(graph.initializer, lambda tensor: tensor.name in gone)
        _delete(graph.value_info, lambda value: value.name in gone)
        _delete(graph.quantization_annotation, lambda annotation: annotation.tensor_name in lost)
        _delete(graph.input, lambda value: value.name in lost or value.name in self._fixed)

    def _index_of(self, layer: Layer) -> int:
        index = self._producer.get(layer.output)
        if index is not None:
            node = self._nodes[index]
            if op_key(node.op_type, node.domain) == layer.op_type and node.input[1] in self._table:
                return index
        wanted = f"no {layer.op_type} with a constant weight makes {layer.output!r}"
        raise DfmpcError(f"layer {layer.name!r}: {wanted}")

    def _set_weight(self, index: int, edit: Edit) -> None:
        node, layout = self._nodes[index], edit.layout
        # Here and not before: all layers of a large model, packed, would be in memory once more.
        if isinstance(edit.weight, StoredWeight):
            weight = edit.weight
        else:
            weight = layout.fill(edit.weight)
            release(edit.weight.codes)
        name = node.input[1]
        self._graph.initializer.extend(weight.initializers)
        self._places[index] = [*weight.nodes, node]
        node.input[1] = weight.output
        if weight.output != name:
            self._released.append(name)
        else:
            self._superseded.add(name)
            if name in self._producer:  # a Constant or Identity node wrote it
                self._places[self._producer[name]] = []
                self._released.extend(self._nodes[self._producer[name]].input)
        self._freeze_shape(edit.layer.shape, name)

    def _freeze_shape(self, shape: tuple[int, ...], weight: str) -> None:
        """Make constants of nodes that read only the shape of a weight, or they would keep it in the file."""
        for index in self._shape_nodes:
            node = self._nodes[index]
            if node.op_type not in ("Shape", "Size") or not self._same_constant(node.input[0], weight):
                continue
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            dims = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            values = np.array(math.prod(shape) if node.op_type == "Size" else dims, np.int64)
            tensor = numpy_helper.from_array(values)
            self._nodes[index] = helper.make_node("Constant", [], node.output, node.name, value=tensor)
            self._places[index] = [self._nodes[index]]

    def _bypass_batch_norm(self, layer: Layer) -> None:
        """Let the layer, or the Add after it, write the tensor that its batch norm wrote. Identity nodes in
        between go with the batch norm.
        """
        norm = self._batch_norm_index(layer)
        output, inner = self._nodes[norm].output[0], self._nodes[norm].input[0]
        self._released.extend(self._nodes[norm].input[1:])
        self._places[norm] = []
        between = {inner}
        while self._nodes[self._producer[inner]].op_type == "Identity":
            index = self._producer[inner]
            self._places[index] = []
            inner = self._nodes[index].input[0]
            between.add(inner)
        # Whoever else reads a tensor in between only wants its shape (else matching would not have found the
        # batch norm), and that of the output is the same.
        for index in {index for name in between for index in self._readers.get(name, ())}:
            node = self._nodes[index]
            for position, name in enumerate(node.input):
                if name in between:
                    node.input[position] = output
        self._nodes[self._producer[inner]].output[0] = output
        self._gone |= between

    def _batch_norm_index(self, layer: Layer) -> int:
        index = self._producer.get(layer.batch_norm.output) if layer.batch_norm else None
        if index is None:
            raise DfmpcError(f"layer {layer.name!r} has no batch norm to replace")
        return index

    def _set_batch_norm(self, layer: Layer, new: BatchNorm) -> None:
        node = self._nodes[self._batch_norm_index(layer)]
        for position, values in enumerate((new.gamma, new.beta, new.mean, new.var), start=1):
            self._replace(node, position, values)
            self._fixed.add(node.input[position])

    def _set_bias(self, layer: Layer, index: int, bias: NDArray[np.float32], label: str) -> None:
        """Replace the bias, or add one: as the third input where the node can have it, else in an Add."""
        if bias.shape != (layer.channels,):
            shapes = f"bias of shape {bias.shape} for {layer.channels} channels"
            raise DfmpcError(f"layer {layer.name!r}: {shapes}")
        node = self._nodes[index]
        if layer.bias is not None:
            self._replace(*self._bias_input(layer, node), bias)
            return
        values = _cast(bias, self._dtype(layer.weight), layer.name)
        if OPS[layer.op_type].bias_input is None or (len(node.input) > 2 and node.input[2]):
            # The layer's output keeps its name, which the Add takes over.
            name = self._add(f"{label}b", values.reshape(-1, *[1] * spatial_rank(layer)))
            output, node.output[0] = node.output[0], self._fresh(f"{label}_without_bias")
            add = helper.make_node("Add", [node.output[0], name], [output], name=self._fresh(f"{label}_add"))
            self._places[index].append(add)
            return
        name = self._add(f"{label}b", values)
        del node.input[2:]
        node.input.append(name)
        for attribute in node.attribute:
            if attribute.name == "beta":  # Gemm multiplies the bias by it, and ignored it without one
                attribute.f = 1.0

    def _bias_input(self, layer: Layer, node: NodeProto) -> tuple[NodeProto, int]:
        """Node and input position of the constant that is ``layer.bias``: the layer's third input, or one
        side of the Add after it.
        """
        if len(node.input) > 2 and self._same_constant(node.input[2], layer.bias):
            return node, 2
        for other in self._nodes:
            if other.op_type == "Add" and layer.output in other.input:
                position = 1 - list(other.input).index(layer.output)
                if self._same_constant(other.input[position], layer.bias):
                    return other, position
        raise DfmpcError(f"layer {layer.name!r}: nothing adds the bias {layer.bias!r}")

    def _replace(self, node: NodeProto, position: int, values: NDArray[np.floating]) -> None:
        """Give a node another constant: in place where it alone reads an initializer, else under a new name,
        since exporters share equal parameters between nodes.
        """
        name = node.input[position]
        old = self._table[name]
        new = _cast(values, old.dtype, node.name or node.output[0])
        if new.size == old.size:
            new = new.reshape(old.shape)
        if np.array_equal(new, old):
            return
        if self._table.is_initializer(name) and self._table.uses(name) == 1 and new.shape == old.shape:
            tensor = self._initializers[name]
            fields = numpy_helper.from_array(new, name)
            fields.doc_string = tensor.doc_string
            fields.metadata_props.extend(tensor.metadata_props)
            tensor.CopyFrom(fields)
            self._fixed.add(name)
        else:
            node.input[position] = self._add(f"{self._table.source(name)}_adjusted", new)
            self._released.append(name)

    def _unread_constants(self) -> set[str]:
        """Released constants that nobody reads, and the outputs of the Identity and Constant nodes that only
        they needed.
        """
        readers = used_names(self._graph)
        producers = {name: node for node in self._graph.node for name in node.output}
        unread: set[str] = set()
        queue = list(dict.fromkeys(self._released))
        while queue:
            name = queue.pop()
            if readers[name]:
                continue
            if name in self._initializers:
                unread.add(name)
            elif name in producers:
                unread.add(name)
                node = producers.pop(name)
                readers.subtract(node.input)
                queue.extend(node.input)
        return unread

    def _same_constant(self, name: str, other: str | None) -> bool:
        table = self._table
        return name in table and other in table and table.source(name) == table.source(str(other))

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        return helper.tensor_dtype_to_np_dtype(self._table.data_type(name))

    def _add(self, wanted: str, values: NDArray[np.generic]) -> str:
        name = self._fresh(wanted)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _fresh(self, wanted: str) -> str:
        """A name that no tensor and no node of the model has."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def shared_names(layouts: Iterable[WeightLayout]) -> frozenset[str]:
    """Names of the constants that layouts share."""
    return frozenset[str]().union(*(layout.shared for layout in layouts))


def _cast(values: NDArray[np.floating], dtype: np.dtype[np.generic], layer: str) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        cast = np.asarray(values).astype(dtype)
    if not np.all(np.isfinite(cast.astype(np.float64))):
        raise LayerError(layer, f"new parameters do not fit {dtype}")
    return cast


def _delete(items: Any, lost: Callable[[Any], bool]) -> None:
    """Delete from a repeated field, in place: to build it anew would copy every weight that stays."""
    for index in reversed([index for index, item in enumerate(items) if lost(item)]):
        del items[index]

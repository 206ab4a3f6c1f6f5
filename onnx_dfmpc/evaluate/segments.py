"""Where the layers of a float model are in a quantized one: the part of its graph between the same two
tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from onnx_dfmpc.model.constants import ConstantTable, used_names
from onnx_dfmpc.model.protobuf import framed_size
from onnx_dfmpc.spec import Layer

BITS: Mapping[int, int] = {
    TensorProto.INT2: 2, TensorProto.UINT2: 2, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Segment:
    """A quantized layer.

    Attributes
    ----------
    layer : Layer
        In the float model.
    end : str
        The tensor, in both models, behind its bias and its batch norm.
    bits : int or None
        Nominal bits; None where nothing tells.
    bytes : int
        Of its weight: codes, scales, zero points, nodes, as far as the layer alone uses them.
    """

    layer: Layer
    end: str
    bits: int | None
    bytes: int


def end_of(proto: ModelProto, layer: Layer) -> str:
    """Tensor behind a layer's bias and batch norm, which every quantized form of the layer makes too."""
    if layer.batch_norm is not None:
        return layer.batch_norm.output
    if layer.bias_node not in ("", layer.name):
        return next(
            (node.output[0] for node in proto.graph.node if layer.bias_node in (node.name, *node.output)),
            layer.output,
        )
    return layer.output


def find_segments(
    float_model: ModelProto, quantized_model: ModelProto, layers: Sequence[Layer], bits: Mapping[str, int]
) -> tuple[list[Segment], list[str]]:
    """Layers that are quantized.

    Parameters
    ----------
    float_model, quantized_model : ModelProto
    layers : sequence of Layer
        All layers of the float model.
    bits : mapping
        Nominal bits by layer name, where they are known.

    Returns
    -------
    list of Segment
        Of layers whose weight is computed from constants.
    list of str
        Layers that are not in the quantized model by the names of their tensors.
    """
    search, found, lost = _Search(quantized_model), [], []
    for layer in layers:
        end = end_of(float_model, layer)
        nodes = search.between(layer.input, end)
        if nodes is None:
            lost.append(layer.name)
        elif computed := search.computed(nodes, layer.input):
            found.append(
                Segment(
                    layer, end, bits.get(layer.name) or search.bits(computed, layer), search.bytes(computed)
                )
            )
    return found, lost


class _Search:
    def __init__(self, proto: ModelProto) -> None:
        self._table = ConstantTable(proto)
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._producer = {
            name: node
            for node in proto.graph.node
            for name in node.output
            if name and name not in self._table
        }
        self._readers = used_names(proto.graph)

    def between(self, start: str, end: str) -> list[NodeProto] | None:
        """Nodes that make one tensor of another and of constants; None where it takes more than these."""
        if end not in self._producer:
            return None
        found: dict[int, NodeProto] = {}
        queue = [end]
        while queue:
            name = queue.pop()
            if name == start or name in self._table:
                continue
            if name not in self._producer:
                return None
            node = self._producer[name]
            if id(node) not in found:
                found[id(node)] = node
                queue += [read for read in node.input if read]
        return list(found.values())

    def computed(self, nodes: Sequence[NodeProto], start: str) -> list[NodeProto]:
        """Those of some nodes that depend on constants alone."""
        constant: dict[str, bool] = {}

        def is_constant(name: str) -> bool:
            if name not in constant:
                known = name in self._table or name == ""
                constant[name] = name != start and (
                    known or all(map(is_constant, self._producer[name].input))
                )
            return constant[name]

        return [node for node in nodes if all(map(is_constant, node.output))]

    def bits(self, computed: Sequence[NodeProto], layer: Layer) -> int | None:
        """Bits of the codes, which are as many as the weights."""
        alike = (tensor for tensor in self._constants(computed) if tuple(tensor.dims) == layer.shape)
        widths = [BITS[tensor.data_type] for tensor in alike if tensor.data_type in BITS]
        return sum(widths) or None

    def bytes(self, computed: Sequence[NodeProto]) -> int:
        """Bytes in the file of what serves this layer alone."""
        own = self._own(computed)
        return sum(framed_size(part) for part in (*own, *self._constants(own)))

    def _own(self, computed: Sequence[NodeProto]) -> list[NodeProto]:
        """The nodes that make the weight, and those that nobody else reads."""
        read = {name for node in computed for name in node.input}
        own = [node for node in computed if read.isdisjoint(node.output)]
        while more := [
            node for node in computed if node not in own and self._private(own).issuperset(node.output)
        ]:
            own += more
        return own

    def _constants(self, nodes: Sequence[NodeProto]) -> list[TensorProto]:
        return [self._tensors[name] for name in sorted(self._private(nodes)) if name in self._tensors]

    def _private(self, nodes: Sequence[NodeProto]) -> set[str]:
        """Tensors that only these nodes read."""
        reads = Counter(name for node in nodes for name in node.input)
        return {name for name, count in reads.items() if self._readers[name] == count}

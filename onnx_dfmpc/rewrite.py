"""Quantized layers -> an edited copy of the model: the room that puts codes, gains and corrections into the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, UnsupportedError
from onnx_dfmpc.graph import ConstantTable, StorageType, first_opset, native, opset_of, raise_opset, storage_type, used_names
from onnx_dfmpc.graph.protobuf import value_names
from onnx_dfmpc.spec import BatchNorm, Layer, MatchReport, QuantizedLayer

PREFIX = "onnx_dfmpc."


@dataclass(frozen=True)
class StoredLayer:
    """How one layer lies in the file.

    Attributes
    ----------
    storage : str
        Element type of the codes, such as "UINT2".
    bytes : int
        Bytes in the file: codes, scale, zero point and DequantizeLinear node.
    notes : tuple of str
        What the reader should know about it.
    """

    storage: str
    bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rewritten:
    """The edited model, what became of each layer by name, and remarks on the model as a whole."""

    proto: ModelProto
    layers: dict[str, StoredLayer]
    notes: tuple[str, ...]


def rewrite(
    proto: ModelProto, report: MatchReport, layers: Sequence[QuantizedLayer], *, metadata: Mapping[str, str] | None = None
) -> Rewritten:
    """Copy of a model in which the weight of each given layer comes from DequantizeLinear.

    Opset and IR version are raised as far as the narrowest codes need. What the codes replace goes when nobody uses it any more; what
    somebody else uses stays. Names of nodes and tensors, doc strings, metadata, local functions and value infos stay.

    Parameters
    ----------
    proto : ModelProto
        The float model with its external data loaded; never changed.
    report : MatchReport
        Where the layers are in ``proto``.
    layers : sequence of QuantizedLayer
        What to put there. ``bias`` is in the units of the constant that it replaces: Gemm multiplies its third input by ``beta``.
    metadata : mapping, optional
        Added to ``metadata_props`` under ``onnx_dfmpc.``.

    Returns
    -------
    Rewritten

    Raises
    ------
    UnsupportedError
        If the model cannot be converted to the opset that the codes need, or new parameters do not fit its float type.
    DfmpcError
        If the layers do not belong to the model.
    """
    known = {layer.name: layer for layer in report.layers}
    if strangers := [layer.name for layer in layers if layer.name not in known]:
        raise DfmpcError(f"layer {strangers[0]!r} is not in the match report")
    pairs = [(known[layer.name], layer) for layer in layers]
    forms = {layer.name: storage_for(layer, quantized) for layer, quantized in pairs}
    table = ConstantTable(proto)
    reasons = [_opset_reason(forms[layer.name][0], table, layer) for layer, _ in pairs]
    minimum, reason = max(reasons, default=(0, ""))
    edited = raise_opset(proto, minimum)
    editor = _Editor(edited)
    stored = {}
    for layer, quantized in pairs:
        kind, notes = forms[layer.name]
        stored[layer.name] = StoredLayer(kind.name, editor.quantize(layer, quantized, kind), notes)
    editor.finish()
    _add_metadata(edited, metadata or {})
    return Rewritten(edited, stored, _opset_note(opset_of(proto), opset_of(edited), reason))


def storage_for(layer: Layer, quantized: QuantizedLayer) -> tuple[StorageType, tuple[str, ...]]:
    """Element type for the codes of a layer, and remarks on the choice.

    ONNX Runtime (1.32) fuses a 2-bit DequantizeLinear into MatMul and Gemm(transB=0) by default, and computes nonsense where the number of
    output features is not a multiple of 4: such a layer is stored in 4 bits.
    """
    weight = quantized.weight
    kind = storage_type(weight.bits, weight.signed)
    features = layer.shape[-1]
    if kind.width == 2 and layer.op_type in ("MatMul", "Gemm") and layer.axis == 1 and features % 4:
        wide = storage_type(4, weight.signed)
        why = f"ONNX Runtime gets {kind.name} {layer.op_type} wrong where output features ({features}) are not a multiple of 4"
        return wide, (f"stored as {wide.name}: {why}",)
    return kind, ()


def _opset_reason(kind: StorageType, table: ConstantTable, layer: Layer) -> tuple[int, str]:
    """Opset that the codes of a layer need, and why."""
    if layer.weight not in table:
        raise DfmpcError(f"layer {layer.name!r}: {layer.weight!r} is not a constant of the model")
    dtype = table[layer.weight].dtype
    opset = first_opset(kind, helper.np_dtype_to_tensor_dtype(dtype))
    return opset, f"{kind.width}-bit weights" if opset == kind.opset else f"{dtype} scales"


def _opset_note(old: int, new: int, reason: str) -> tuple[str, ...]:
    if new > old:
        return (f"opset {old} -> {new} because of {reason}",)
    if new < old:
        return (f"opset {old} -> {new}, the highest that ONNX Runtime runs with DequantizeLinear",)
    return ()


def _add_metadata(proto: ModelProto, metadata: Mapping[str, str]) -> None:
    ours = {key if key.startswith(PREFIX) else PREFIX + key: value for key, value in metadata.items()}
    helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | ours)


class _Editor:
    """One pass of edits on a model of our own; nodes go in and out of the list at ``finish``, so that indices hold until then."""

    def __init__(self, proto: ModelProto) -> None:
        self.graph = proto.graph
        self.nodes: list[NodeProto] = list(proto.graph.node)
        self.table = ConstantTable(proto)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.taken = value_names(self.graph) | {node.name for node in self.nodes}
        self.before: dict[int, list[NodeProto]] = {}
        self.after: dict[int, list[NodeProto]] = {}
        self.released: list[str] = []
        self.replaced: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """Make a name unique among all tensors and nodes of the model."""
        name, count = wanted, 0
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def quantize(self, layer: Layer, quantized: QuantizedLayer, kind: StorageType) -> int:
        """Store one layer; returns the bytes of its weight in the file."""
        index = self._node_of(layer)
        node = self.nodes[index]
        name = node.input[1]
        if self.table[name].shape != quantized.weight.codes.shape:
            raise DfmpcError(f"layer {layer.name!r}: codes of shape {quantized.weight.codes.shape} for a weight {self.table[name].shape}")
        data_type = helper.np_dtype_to_tensor_dtype(self.table[name].dtype)
        weight = native(quantized.weight, kind, data_type, layer.weight, self.fresh)
        self.graph.initializer.extend(weight.initializers)
        self.before.setdefault(index, []).extend(weight.nodes)
        node.input[1] = weight.output
        self.released.append(name)
        self._freeze_shape(name)
        if quantized.bias is not None:
            self._set_bias(layer, index, quantized.bias)
        if quantized.batch_norm is not None:
            self._set_batch_norm(layer, quantized.batch_norm)
        return weight.size

    def finish(self) -> None:
        """Put the nodes in order and remove what only the replaced constants needed."""
        nodes = [node for i, node in enumerate(self.nodes) for node in (*self.before.get(i, ()), node, *self.after.get(i, ()))]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._remove_unused()

    def _freeze_shape(self, weight: str) -> None:
        """Turn nodes that only ask for the shape of a weight into constants, so that they do not keep its float values in the file."""
        shape = self.table[weight].shape
        for index, node in enumerate(self.nodes):
            if node.op_type in ("Shape", "Size") and self._same_constant(node.input[0], weight):
                cut = {attribute.name: attribute.i for attribute in node.attribute}
                asked = math.prod(shape) if node.op_type == "Size" else shape[cut.get("start", 0) : cut.get("end", len(shape))]
                value = numpy_helper.from_array(np.array(asked, np.int64))
                self.nodes[index] = helper.make_node("Constant", [], node.output, node.name, value=value)

    def _node_of(self, layer: Layer) -> int:
        index = self.producer.get(layer.output)
        if index is None or self.nodes[index].op_type != layer.op_type or self.nodes[index].input[1] not in self.table:
            raise DfmpcError(f"layer {layer.name!r}: no {layer.op_type} with a constant weight makes {layer.output!r}")
        return index

    def _set_bias(self, layer: Layer, index: int, bias: NDArray[np.float32]) -> None:
        if bias.shape != (layer.channels,):
            raise DfmpcError(f"layer {layer.name!r}: bias of shape {bias.shape} for {layer.channels} channels")
        node = self.nodes[index]
        if layer.bias is not None:
            owner, position = self._bias_input(layer, index)
            self._replace(owner, position, bias)
        elif layer.op_type == "MatMul" or (len(node.input) > 2 and node.input[2]):
            self._add_behind(layer, index, bias)
        else:
            name = self._add(f"{layer.weight}_bias", self._cast(bias, self.table[layer.weight].dtype, layer.name))
            del node.input[2:]
            node.input.append(name)
            for attribute in node.attribute:
                if attribute.name == "beta":  # meant nothing without a third input
                    attribute.f = 1.0

    def _bias_input(self, layer: Layer, index: int) -> tuple[NodeProto, int]:
        """Node and input position of the constant that ``layer.bias`` names: the layer's third input, or one side of the Add behind it."""
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
        return name in self.table and other in self.table and self.table.source(name) == self.table.source(str(other))

    def _add_behind(self, layer: Layer, index: int, bias: NDArray[np.float32]) -> None:
        """Add the bias in a node of its own, which takes over the name of the layer's output."""
        node = self.nodes[index]
        spatial = len(layer.shape) - 2 if layer.op_type in ("Conv", "ConvTranspose") else 0
        values = self._cast(bias, self.table[layer.weight].dtype, layer.name).reshape(-1, *[1] * spatial)
        name = self._add(f"{layer.weight}_bias", values)
        node.output[0] = self.fresh(f"{layer.output}_without_bias")
        add = helper.make_node("Add", [node.output[0], name], [layer.output], name=self.fresh(f"{layer.weight}_bias_Add"))
        self.after.setdefault(index, []).append(add)

    def _set_batch_norm(self, layer: Layer, new: BatchNorm) -> None:
        index = self.producer.get(layer.batch_norm.output) if layer.batch_norm else None
        if index is None:
            raise DfmpcError(f"layer {layer.name!r} has no batch norm to replace")
        for position, values in enumerate((new.gamma, new.beta, new.mean, new.var), start=1):
            self._replace(self.nodes[index], position, values)

    def _replace(self, node: NodeProto, position: int, values: NDArray[np.floating]) -> None:
        """Give a node another constant: in place where it alone reads an initializer, else under a new name."""
        name = node.input[position]
        old = self.table[name]
        new = self._cast(values, old.dtype, node.name or node.output[0])
        if new.size == old.size:
            new = new.reshape(old.shape)
        if np.array_equal(new, old):
            return
        if self.table.is_initializer(name) and self.table.uses(name).total == 1 and new.shape == old.shape:
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
            raise UnsupportedError(f"{where}: new parameters do not fit {dtype}", hint="exclude the layer, or export the model in float32")
        return cast

    def _remove_unused(self) -> None:
        """Remove released constants that nobody reads any more, and the Identity and Constant nodes that only they needed."""
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
        names = set(gone)
        _keep(self.graph.node, lambda node: not names.intersection(node.output))
        _keep(self.graph.initializer, lambda tensor: tensor.name not in names)
        _keep(self.graph.value_info, lambda value: value.name not in names)
        _keep(self.graph.quantization_annotation, lambda annotation: annotation.tensor_name not in names)
        _keep(self.graph.input, lambda value: value.name not in self.replaced)


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    """Delete from a repeated field, in place, what is not wanted."""
    for index in reversed([i for i, item in enumerate(items) if not wanted(item)]):
        del items[index]

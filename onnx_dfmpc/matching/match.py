"""Weighted nodes: which can be quantized, what belongs to each, and why the others stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, helper

from onnx_dfmpc.matching.chains import Order, find_chains
from onnx_dfmpc.matching.plain import find_plain
from onnx_dfmpc.matching.rules import ACTIVATIONS, feeds_gate, gate
from onnx_dfmpc.matching.walk import Walk, has_input, op, why_numbers
from onnx_dfmpc.spec import BatchNorm, Edge, Layer, MatchReport, Skipped
from onnx_dfmpc.spec.ops import OPS, WeightedOp, why_type

Sharing = Mapping[str, Sequence[gs.Node]]
"""Name of a weight to the nodes that quantize it."""


def match(proto: ModelProto, *, read_mapped: bool = True) -> MatchReport:
    """Find the layers that can be quantized, the chains between them, and the weighted nodes that stay float.

    ``proto`` is a loaded model (see `onnx_dfmpc.model.files.load`). It is not changed, and weights are not
    decoded. Every node of an operator in `OPS`, in the main graph, a subgraph or a local function, is in
    ``layers`` or in ``skipped``, or reads one of ``plain``. A graph that cannot be walked is a ModelError.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     net (float[1, 2, 4, 4] x) => (float[1, 1, 2, 2] z)
    ...     <float[1, 2, 1, 1] w = {1, 2}, float[1, 1, 3, 3] v = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
    ...         y = Conv(x, w)
    ...         r = Relu(y)
    ...         z = Conv(r, v)
    ...     }''')
    >>> matched = match(model)
    >>> matched.names, matched["y"].activation
    (('y', 'z'), 'Relu')
    >>> matched.chains[0].consumers, matched.chains[0].homogeneous
    (('z',), True)
    """
    walk = Walk(proto, read_mapped=read_mapped)
    nodes = [node for node in walk.nodes if op(node) in OPS]
    reasons = {id(node): _why_float(walk, node) for node in nodes}
    sharing: dict[str, list[gs.Node]] = {}
    for node in nodes:
        if not reasons[id(node)]:
            sharing.setdefault(walk.origin(node.inputs[1]).name, []).append(node)
    for node in nodes:
        reasons[id(node)] = reasons[id(node)] or _why_shared_with_float(walk, node, sharing)
    order = Order(walk)
    layers = [_layer(walk, node, sharing, order.edges) for node in nodes if not reasons[id(node)]]
    found = find_plain(walk, {layer.weight for layer in layers})
    skipped = [
        Skipped(walk.name(node), op(node), reasons[id(node)])
        for node in nodes
        if reasons[id(node)] and id(node) not in found.readers
    ]
    skipped += [
        Skipped(walk.name(node), op(node), f"it is in {place}")
        for node, place in walk.inner
        if op(node) in OPS and id(node) not in found.readers
    ]
    chains = find_chains(walk, layers, order)
    weighted = walk.weighted_nodes - found.products + len(found.weights)  # each once, whoever reads it
    return MatchReport(
        tuple(layers), tuple(chains), tuple(skipped), weighted, tuple(found.weights), found.left
    )


def _layer(walk: Walk, node: gs.Node, sharing: Sharing, edges: Mapping[str, Edge]) -> Layer:
    operator, weight, name = _operator(node), walk.origin(node.inputs[1]).name, walk.name(node)
    batch_norm, remark = _batch_norm(walk, node)
    notes = [remark] if remark else []
    readers = sharing[weight]
    if len(readers) > 1:  # the first says with whom, the others only that it does
        others = readers[1:] if node is readers[0] else readers[:1]
        notes.append(f"weight shared with {', '.join(repr(walk.name(other)) for other in others)}")
    if weight in walk.listed:
        notes.append("its weight is listed as a graph input, as all are: the entry will be dropped")
    bias, bias_node = None, ""
    if added := _added_bias(walk, node):
        bias, bias_node = walk.origin(added[1]).name, walk.name(added[0])
    elif (own := _own_bias(node)) is not None:
        if walk.is_constant(own):
            bias, bias_node = walk.origin(own).name, name
        else:
            notes.append("its bias is computed, and always zero: as good as none")
    end = _end(walk, node) if batch_norm is None else walk.tensor(batch_norm.output)
    return Layer(
        name=name,
        op_type=op(node),
        weight=weight,
        shape=walk.constants.shape(weight),
        axis=operator.axis(node.attrs),
        group=operator.group(node.attrs),
        bias=bias,
        bias_node=bias_node,
        input=node.inputs[0].name,
        output=node.outputs[0].name,
        channels=_channels(walk, node),
        batch_norm=batch_norm,
        activation=_activation(walk, end),
        edge=edges[node.outputs[0].name],
        notes=tuple(notes),
    )


def _operator(node: gs.Node) -> WeightedOp:
    return OPS[op(node)]


def _channels(walk: Walk, node: gs.Node) -> int:
    """Number of output channels of a node whose weight is constant."""
    return _operator(node).channels(walk.constants.shape(node.inputs[1].name), node.attrs)[1]


# Why a node stays float


def _why_float(walk: Walk, node: gs.Node) -> str:
    """Why a node cannot be quantized, in words; empty if it can."""
    return (
        _why_weight(walk, node)
        or _operator(node).unsupported(node.attrs, _own_bias(node) is not None)
        or _why_bias(walk, node)
        or _why_batch_norm(walk, node)
    )


def _why_weight(walk: Walk, node: gs.Node) -> str:
    if len(node.inputs) < 2 or not walk.is_constant(node.inputs[1]):
        return _why_not_constant(walk, node)
    origin = walk.origin(node.inputs[1])
    shape, data_type = walk.constants.shape(origin.name), walk.constants.data_type(origin.name)
    if why := why_type(str(helper.tensor_dtype_to_np_dtype(data_type)), op(node), _operator(node).types):
        return f"weight '{origin.name}' is {why}"
    if 0 in shape:
        return f"weight '{origin.name}' is empty"
    if not _operator(node).fits(shape):
        only = "" if _operator(node).spatial else ": only a matrix can be quantized"
        return f"weight '{origin.name}' of shape {shape} does not fit {op(node)}{only}"
    if numbers := why_numbers(walk, "weight", origin.name):
        return numbers
    for alias in walk.aliases(origin):
        if leaves := walk.leaves(alias):
            return f"its weight {leaves}" if alias is origin else f"a copy of its weight {leaves}"
        for reader in walk.readers(alias):
            as_weight = op(reader) in OPS and [i for i, t in enumerate(reader.inputs) if t is alias] == [1]
            if op(reader) != "Identity" and not as_weight:
                what = f"{op(reader)} '{walk.name(reader)}'"
                return f"weight '{origin.name}' is also used by {what}, not as a weight"
    return ""


def _why_not_constant(walk: Walk, node: gs.Node) -> str:
    if node.inputs and walk.is_constant(node.inputs[0]):
        return "its constant is the first operand: only a constant second operand can be quantized"
    if len(node.inputs) < 2:
        return "it has no weight"
    origin = walk.origin(node.inputs[1])
    if origin.name in walk.sparse:
        return f"weight '{origin.name}' is sparse"
    if origin.name in walk.overridable:
        return f"weight '{origin.name}' is overridable: it is a graph input with a default value"
    if not origin.inputs:
        return f"weight is not a constant: '{origin.name}' is a graph input"
    source = origin.inputs[0]
    if op(source) == "DequantizeLinear":
        return f"already quantized: its weight comes from DequantizeLinear '{walk.name(source)}'"
    if walk.values(origin) is not None:
        return (
            f"weight is not stored but computed by {op(source)} '{walk.name(source)}': fold constants first"
        )
    return f"weight is not a constant: {op(source)} '{walk.name(source)}' computes it at run time"


def _why_bias(walk: Walk, node: gs.Node) -> str:
    bias = _own_bias(node)
    if bias is None:
        return ""
    origin = walk.origin(bias)
    if origin.name in walk.overridable:
        return f"bias '{origin.name}' is overridable: it is a graph input with a default value"
    if walk.is_constant(bias):
        fits = _is_per_channel(walk, bias, _channels(walk, node))
        if not fits:
            return f"bias '{origin.name}' is not a constant per output channel"
        return why_numbers(walk, "bias", origin.name)
    # torch writes ``bias=False`` without optimization as zeros that are computed.
    values = walk.values(bias)
    return f"bias '{origin.name}' is not a constant" if values is None or np.any(values) else ""


def _why_batch_norm(walk: Walk, node: gs.Node) -> str:
    for alias in walk.aliases(_end(walk, node)):
        for reader in walk.readers(alias):
            if op(reader) == "BatchNormalization" and _trains(walk, reader):
                what = f"BatchNormalization '{walk.name(reader)}'"
                return f"{what} after it is in training mode: export the model again in eval mode"
    return ""


def _trains(walk: Walk, node: gs.Node) -> bool:
    if walk.opset >= 14:
        return bool(node.attrs.get("training_mode", 0))
    return len(node.outputs) > 1 or (walk.opset < 7 and not node.attrs.get("is_test", 0))


def _why_shared_with_float(walk: Walk, node: gs.Node, sharing: Sharing) -> str:
    """Whether a node that stays float needs the same weight: a quantized copy would only enlarge the file."""
    origin = walk.origin(node.inputs[1])
    quantized = {id(other) for other in sharing[origin.name]}
    for alias in walk.aliases(origin):
        for reader in walk.readers(alias):
            if op(reader) in OPS and id(reader) not in quantized:
                return f"its weight is shared with {op(reader)} '{walk.name(reader)}', which stays float"
    return ""


# What belongs to a layer


def _own_bias(node: gs.Node) -> gs.Tensor | None:
    """The node's own bias input, whatever it is."""
    position = _operator(node).bias_input
    return node.inputs[position] if position is not None and has_input(node, position) else None


def _is_per_channel(walk: Walk, constant: gs.Tensor, channels: int) -> bool:
    return walk.constants.shape(constant.name) in ((channels,), (1, channels))


def _added_bias(walk: Walk, node: gs.Node) -> tuple[gs.Node, gs.Tensor] | None:
    """The Add after a node without a bias input, and the constant it adds, if that is one value a channel."""
    add = walk.only_reader(node.outputs[0]) if _operator(node).bias_input is None else None
    if add is None or op(add) != "Add":
        return None
    for source in add.inputs:
        if walk.is_constant(source) and _is_per_channel(walk, source, _channels(walk, node)):
            return add, source
    return None


def _end(walk: Walk, node: gs.Node) -> gs.Tensor:
    """Output of a layer, the bias included."""
    added = _added_bias(walk, node)
    return added[0].outputs[0] if added else node.outputs[0]


def _batch_norm(walk: Walk, node: gs.Node) -> tuple[BatchNorm | None, str]:
    """The batch norm that alone reads a layer, or None; and a remark where one is there but stays."""
    end = _end(walk, node)
    norm = walk.only_reader(end)
    if norm is None or op(norm) != "BatchNormalization" or walk.origin(norm.inputs[0]) is not end:
        return None, ""
    what = f"BatchNormalization '{walk.name(norm)}'"
    shapes = [tensor.shape for tensor in (node.outputs[0], node.inputs[0]) if tensor.shape is not None]
    if _operator(node).batched and shapes and len(shapes[0]) != 2:
        return None, f"{what} after it is along another axis than its output features: left as it is"
    per_channel = [(_channels(walk, node),)] * 4
    if [walk.is_constant(p) and walk.constants.shape(p.name) for p in norm.inputs[1:5]] != per_channel:
        return None, f"{what} after it has no constant parameters per channel: left as it is"
    gamma, beta, mean, var = (np.asarray(walk.values(p), np.float64) for p in norm.inputs[1:5])
    epsilon = float(norm.attrs.get("epsilon", 1e-5))
    return BatchNorm(walk.name(norm), norm.outputs[0].name, gamma, beta, mean, var, epsilon), ""


def _activation(walk: Walk, tensor: gs.Tensor) -> str:
    """Name of the activation that alone reads a tensor, through Identity; empty if there is none."""
    node = _follower(walk, tensor)
    while node is not None and op(node) == "Identity":
        tensor = node.outputs[0]
        node = _follower(walk, tensor)
    if node is None:
        return ""
    if op(node) == "Swish" and node.attrs.get("alpha", 1.0) == 1.0:
        return "SiLU"
    return gate(tensor, node) or (op(node) if op(node) in ACTIVATIONS else "")


def _follower(walk: Walk, tensor: gs.Tensor) -> gs.Node | None:
    """The node that alone reads a tensor, not counting the Sigmoid of a gate."""
    readers = [node for node in walk.readers(tensor) if not feeds_gate(walk, tensor, node)]
    return readers[0] if len(readers) == 1 and not walk.leaves(tensor) else None

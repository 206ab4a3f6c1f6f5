"""Weighted nodes: which can be quantized, what belongs to them, and why the others stay float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.matching.rules import ACTIVATIONS, feeds_gate, gate
from onnx_dfmpc.matching.walk import WEIGHTED, Walk, op
from onnx_dfmpc.spec import BatchNorm, Layer, OpType, Skipped


def find_layers(walk: Walk) -> tuple[list[Layer], list[Skipped]]:
    """Every weighted node of the model, once: as a layer, in topological order, or as skipped with the
    reason.
    """
    nodes = [node for node in walk.nodes if op(node) in WEIGHTED]
    reasons = {id(node): _why_float(walk, node) for node in nodes}
    sharing = _sharing([node for node in nodes if not reasons[id(node)]], walk)
    for node in nodes:
        reasons[id(node)] = reasons[id(node)] or _why_shared_with_float(walk, node, sharing)
    layers = [_layer(walk, node, sharing) for node in nodes if not reasons[id(node)]]
    skipped = [Skipped(walk.name(node), op(node), reasons[id(node)]) for node in nodes if reasons[id(node)]]
    skipped += [
        Skipped(walk.name(node), op(node), f"it is in {place}")
        for node, place in walk.inner
        if op(node) in WEIGHTED
    ]
    return layers, skipped


def layer_end(walk: Walk, layer: Layer) -> gs.Tensor:
    """The tensor in which a layer's own work ends: behind its bias and its batch norm."""
    if layer.batch_norm is not None:
        return walk.tensor(layer.batch_norm.output)
    return _end(walk, walk.tensor(layer.output).inputs[0])


def _weight(walk: Walk, node: gs.Node) -> gs.Constant | None:
    return walk.constant(node.inputs[1]) if len(node.inputs) > 1 else None


def _why_float(walk: Walk, node: gs.Node) -> str:
    """Why a node cannot be quantized, in words; empty if it can."""
    return _why_weight(walk, node) or _why_form(walk, node) or _why_batch_norm(walk, node)


def _why_weight(walk: Walk, node: gs.Node) -> str:
    weight = _weight(walk, node)
    if weight is None:
        return _why_not_constant(walk, node)
    origin = walk.origin(node.inputs[1])
    rank = len(weight.shape)
    if origin.name in walk.sparse:
        return f"weight '{origin.name}' is sparse"
    if weight.dtype not in (np.float32, np.float16):
        return f"weight '{origin.name}' is {weight.dtype}: only float32 and float16 can be quantized"
    if 0 in weight.shape:
        return f"weight '{origin.name}' is empty"
    if op(node) == "MatMul" and rank != 2:
        return f"weight '{origin.name}' has {rank} dimensions: only a matrix can be quantized"
    if rank < 3 if op(node) in ("Conv", "ConvTranspose") else rank != 2:
        return f"weight '{origin.name}' of shape {tuple(weight.shape)} does not fit {op(node)}"
    for alias in walk.aliases(origin):
        if leaves := walk.leaves(alias):
            return f"its weight {leaves}" if alias is origin else f"a copy of its weight {leaves}"
        for reader in walk.readers(alias):
            if op(reader) != "Identity" and (
                op(reader) not in WEIGHTED or any(reader.inputs[i] is alias for i in _others(reader))
            ):
                return f"weight '{origin.name}' is also used by {op(reader)} '{walk.name(reader)}', not as a weight"
    return ""


def _others(node: gs.Node) -> list[int]:
    return [i for i in range(len(node.inputs)) if i != 1]


def _why_not_constant(walk: Walk, node: gs.Node) -> str:
    if node.inputs and walk.constant(node.inputs[0]) is not None:
        return "its constant is the first operand: only a constant second operand can be quantized"
    if len(node.inputs) < 2:
        return "it has no weight"
    origin = walk.origin(node.inputs[1])
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


def _why_form(walk: Walk, node: gs.Node) -> str:
    if op(node) == "Gemm":
        attrs = node.attrs
        if attrs.get("transA", 0):
            return "transA=1: its rows are not samples"
        if attrs.get("alpha", 1.0) != 1.0 or (_has_bias(node) and attrs.get("beta", 1.0) != 1.0):
            return f"alpha={attrs.get('alpha', 1.0):g}, beta={attrs.get('beta', 1.0):g}: only a plain product can be quantized"
    if not _has_bias(node) or _bias(walk, node) is not None or _zero_bias(walk, node):
        return ""
    bias = walk.origin(node.inputs[2])
    if bias.name in walk.overridable:
        return f"bias '{bias.name}' is overridable: it is a graph input with a default value"
    shape = "" if walk.constant(bias) is None else " per output channel"
    return f"bias '{bias.name}' is not a constant{shape}"


def _has_bias(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2].name != ""


def _zero_bias(walk: Walk, node: gs.Node) -> bool:
    """Whether the bias is computed, and always zero, as torch writes ``bias=False`` without optimization."""
    if walk.constant(node.inputs[2]) is not None:
        return False
    values = walk.values(node.inputs[2])
    return values is not None and not np.any(values)


def _bias(walk: Walk, node: gs.Node) -> gs.Constant | None:
    """The constant third input, where it holds one value per output channel."""
    if not _has_bias(node):
        return None
    bias = walk.constant(node.inputs[2])
    return bias if bias is not None and _per_channel(bias.shape, _channels(walk, node)) else None


def _per_channel(shape: Sequence[int], channels: int) -> bool:
    return tuple(shape) in ((channels,), (1, channels))


def _axis(node: gs.Node) -> int:
    if op(node) == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 0 if op(node) == "Conv" else 1


def _group(node: gs.Node) -> int:
    return int(node.attrs.get("group", 1)) if op(node) in ("Conv", "ConvTranspose") else 1


def _channels(walk: Walk, node: gs.Node) -> int:
    weight = _weight(walk, node)
    assert weight is not None
    return int(weight.shape[_axis(node)]) * (_group(node) if op(node) == "ConvTranspose" else 1)


def _added_bias(walk: Walk, node: gs.Node) -> tuple[gs.Node, gs.Tensor] | None:
    """The Add behind a MatMul and the constant it adds, where that is one value per output channel."""
    added = walk.only_reader(node.outputs[0]) if op(node) == "MatMul" else None
    if added is None or op(added) != "Add":
        return None
    for source in added.inputs:
        constant = walk.constant(source)
        if constant is not None and _per_channel(constant.shape, _channels(walk, node)):
            return added, source
    return None


def _end(walk: Walk, node: gs.Node) -> gs.Tensor:
    """Output of a layer, the bias behind it included."""
    added = _added_bias(walk, node)
    return added[0].outputs[0] if added else node.outputs[0]


def _why_batch_norm(walk: Walk, node: gs.Node) -> str:
    for alias in walk.aliases(_end(walk, node)):
        for reader in walk.readers(alias):
            if op(reader) == "BatchNormalization" and _trains(walk, reader):
                return f"BatchNormalization '{walk.name(reader)}' behind it is in training mode: export the model again in eval mode"
    return ""


def _trains(walk: Walk, node: gs.Node) -> bool:
    if walk.opset >= 14:
        return bool(node.attrs.get("training_mode", 0))
    return len(node.outputs) > 1 or (walk.opset < 7 and not node.attrs.get("is_test", 0))


def _batch_norm(walk: Walk, node: gs.Node, channels: int) -> tuple[BatchNorm | None, str]:
    """The batch norm that alone reads a layer, or None; and a remark where one is there but must stay as it
    is.

    Raises
    ------
    ModelError
        If its variance plus epsilon is not positive, or a parameter is not finite.
    """
    end = _end(walk, node)
    norm = walk.only_reader(end)
    if norm is None or op(norm) != "BatchNormalization" or walk.origin(norm.inputs[0]) is not end:
        return None, ""
    name = walk.name(norm)
    if op(node) == "MatMul" and _rank(node) not in (None, 2):
        return (
            None,
            f"BatchNormalization '{name}' behind it is along another axis than its output features: left as it is",
        )
    constants = [walk.constant(source) for source in norm.inputs[1:5]]
    if any(c is None or tuple(c.shape) != (channels,) for c in constants):
        return (
            None,
            f"BatchNormalization '{name}' behind it has no constant parameters per channel: left as it is",
        )
    gamma, beta, mean, var = (np.asarray(walk.values(source), np.float64) for source in norm.inputs[1:5])
    epsilon = float(norm.attrs.get("epsilon", 1e-5))
    if not all(np.all(np.isfinite(p)) for p in (gamma, beta, mean, var)):
        raise ModelError(
            f"BatchNormalization '{name}': a parameter is not finite",
            hint="the training diverged or the file is damaged",
        )
    if np.any(var + epsilon <= 0):
        raise ModelError(
            f"BatchNormalization '{name}': variance + epsilon is not positive",
            hint="the file is damaged: export it again",
        )
    return BatchNorm(name, norm.outputs[0].name, gamma, beta, mean, var, epsilon), ""


def _rank(node: gs.Node) -> int | None:
    """Number of dimensions of a MatMul's output, where the file tells."""
    shapes = [tensor.shape for tensor in (node.outputs[0], node.inputs[0]) if tensor.shape is not None]
    return len(shapes[0]) if shapes else None


def _activation(walk: Walk, tensor: gs.Tensor) -> str:
    if walk.leaves(tensor):
        return ""
    readers = [node for node in walk.readers(tensor) if not feeds_gate(walk, tensor, node)]
    if len(readers) != 1:
        return ""
    if op(readers[0]) == "Identity":
        return _activation(walk, readers[0].outputs[0])
    if op(readers[0]) == "Swish" and readers[0].attrs.get("alpha", 1.0) == 1.0:
        return "SiLU"
    return gate(tensor, readers[0]) or (op(readers[0]) if op(readers[0]) in ACTIVATIONS else "")


def _sharing(nodes: list[gs.Node], walk: Walk) -> dict[str, list[gs.Node]]:
    sharing: dict[str, list[gs.Node]] = {}
    for node in nodes:
        sharing.setdefault(walk.origin(node.inputs[1]).name, []).append(node)
    return sharing


def _why_shared_with_float(walk: Walk, node: gs.Node, sharing: dict[str, list[gs.Node]]) -> str:
    """Whether a node that stays float needs the same weight, so that a quantized copy would only be added to
    the file.
    """
    quantized = {id(other) for other in sharing[walk.origin(node.inputs[1]).name]}
    for alias in walk.aliases(walk.origin(node.inputs[1])):
        for reader in walk.readers(alias):
            if op(reader) in WEIGHTED and id(reader) not in quantized:
                return f"its weight is shared with {op(reader)} '{walk.name(reader)}', which stays float"
    return ""


def _layer(walk: Walk, node: gs.Node, sharing: dict[str, list[gs.Node]]) -> Layer:
    weight = _weight(walk, node)
    assert weight is not None
    origin = walk.origin(node.inputs[1])
    channels = _channels(walk, node)
    batch_norm, remark = _batch_norm(walk, node, channels)
    notes = [remark] if remark else []
    if others := [f"'{walk.name(other)}'" for other in sharing[origin.name] if other is not node]:
        notes.append(f"weight shared with {', '.join(others)}: each gets its own copy")
    if origin.name in walk.listed:
        notes.append("its weight is listed as a graph input, as all are: the entry will be dropped")
    layer = Layer(
        name=walk.name(node),
        op_type=cast(OpType, op(node)),
        index=walk.index[id(node)],
        weight=origin.name,
        shape=tuple(int(d) for d in weight.shape),
        axis=_axis(node),
        group=_group(node),
        bias=None,
        bias_node="",
        input=node.inputs[0].name,
        output=node.outputs[0].name,
        channels=channels,
        batch_norm=batch_norm,
    )
    if added := _added_bias(walk, node):
        layer = replace(layer, bias=walk.origin(added[1]).name, bias_node=walk.name(added[0]))
    elif _bias(walk, node) is not None:
        layer = replace(layer, bias=walk.origin(node.inputs[2]).name, bias_node=layer.name)
    elif _has_bias(node):
        notes.append("its bias is computed, and always zero: as good as none")
    return replace(layer, activation=_activation(walk, layer_end(walk, layer)), notes=tuple(notes))

"""From a producing layer forward to the layers that read its output, and whether a factor per channel may
travel along.

A chain passes through whatever a pair of layers may have between them. It ends where the producer's output
becomes the shortcut around another layer: the sum behind that layer belongs to that layer. Whatever a
positive factor on channel j does not survive is a reason against moving the factor to input channel j of the
consumers, not against the chain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_dfmpc.matching.layers import layer_end
from onnx_dfmpc.matching.rules import JOINING, ChannelAxis, feeds_gate, gate, rule
from onnx_dfmpc.matching.walk import SHAPE_READERS, WEIGHTED, Walk, op
from onnx_dfmpc.spec import Chain, Layer


@dataclass(frozen=True)
class _Step:
    """A tensor on the way, where the producer's channels are in it (None: lost to a factor), and the
    operators passed so far.
    """

    tensor: gs.Tensor
    channel: ChannelAxis | None
    path: tuple[str, ...]


def find_chains(walk: Walk, layers: list[Layer]) -> list[Chain]:
    """The chain of every layer whose output reaches another layer, in the order of the layers."""
    by_node = {id(walk.tensor(layer.output).inputs[0]): layer for layer in layers}
    bits = {node: 1 << i for i, node in enumerate(by_node)}
    behind = _behind(walk, bits)
    chains = [
        _follow(walk, layer, by_node, {name for name, sources in behind.items() if sources & bits[node]})
        for node, layer in by_node.items()
    ]
    return [chain for chain in chains if chain.consumers]


def _behind(walk: Walk, bits: Mapping[int, int]) -> dict[str, int]:
    """For each tensor, the layers that feed it through at least one other weighted node, as a set of bits."""
    feeding: dict[str, int] = {}
    behind: dict[str, int] = {}
    for node in walk.nodes:
        if op(node) in SHAPE_READERS:
            continue
        fed = through = 0
        for tensor in node.inputs:
            fed |= feeding.get(tensor.name, 0)
            through |= behind.get(tensor.name, 0)
        for tensor in node.outputs:
            feeding[tensor.name] = fed | bits.get(id(node), 0)
            behind[tensor.name] = fed if op(node) in WEIGHTED else through
    return behind


def _follow(walk: Walk, layer: Layer, by_node: Mapping[int, Layer], behind: set[str]) -> Chain:
    """Walk forward from a layer, breadth first, until every way has ended at a layer or at a reason."""
    start = _start(walk, layer)
    waiting, seen = deque([start]), {start.tensor.name}
    paths: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, None] = {}
    while waiting:
        step = waiting.popleft()
        if leaves := walk.leaves(step.tensor):
            reasons[leaves] = None
        for node in walk.readers(step.tensor):
            if feeds_gate(walk, step.tensor, node):
                continue
            consumer = by_node.get(id(node))
            if consumer is not None and [
                i for i, tensor in enumerate(node.inputs) if tensor is step.tensor
            ] == [0]:
                paths.setdefault(consumer.name, step.path)
                reasons[_why_not_landing(step.channel, layer, consumer)] = None
                continue
            passing = rule(step.tensor, node)
            name = f"{op(node)} '{walk.name(node)}'"
            if passing is None:
                reasons[f"{name} stays float" if op(node) in WEIGHTED else f"{name} reads it too"] = None
            elif op(node) in JOINING and any(tensor.name in behind for tensor in node.inputs):
                reasons[f"it is also the shortcut into {name}"] = None
            else:
                after = passing(walk, step.channel, step.tensor, node) if step.channel is not None else None
                if isinstance(after, str):
                    reasons[f"{name} {after}"] = None
                channel = after if isinstance(after, ChannelAxis) else None
                path = (*step.path, gate(step.tensor, node) or op(node))
                for tensor in node.outputs if op(node) == "Split" else node.outputs[:1]:
                    if tensor.name and tensor.name not in seen:
                        seen.add(tensor.name)
                        waiting.append(_Step(tensor, channel, path))
    reasons.pop("", None)
    consumers = tuple(other.name for other in by_node.values() if other.name in paths)
    return Chain(
        producer=layer.name,
        consumers=consumers,
        activation=layer.activation,
        path=paths[consumers[0]] if consumers else (),
        homogeneous=not reasons,
        reason="; ".join(reasons),
    )


def _start(walk: Walk, layer: Layer) -> _Step:
    end = layer_end(walk, layer)
    passed = {"Add": layer.op_type == "MatMul" and layer.bias, "BatchNormalization": layer.batch_norm}
    path = tuple(name for name, there in passed.items() if there)
    if layer.op_type == "MatMul":
        return _Step(end, ChannelAxis(axis=-1, rank=None), path)
    return _Step(end, ChannelAxis(axis=1, rank=len(layer.shape)), path)


def _why_not_landing(channel: ChannelAxis | None, producer: Layer, consumer: Layer) -> str:
    """Why channel j of the producer is not input channel j of the consumer; empty if it is, or if a reason
    was already given.
    """
    if channel is None:
        return ""
    features = _input_channels(consumer)
    if consumer.op_type in ("Gemm", "MatMul"):
        last = channel.axis == (-1 if channel.rank is None else channel.rank - 1)
        if last and channel.flattened and features != producer.channels:
            return f"flattened before '{consumer.name}': a channel is a block of its columns"
    else:
        last = channel.axis == 1
    if not last or features != producer.channels:
        return f"its channels are not the input channels of '{consumer.name}'"
    return ""


def _input_channels(layer: Layer) -> int:
    if layer.op_type == "Conv":
        return layer.shape[1] * layer.group
    return layer.shape[1 - layer.axis]

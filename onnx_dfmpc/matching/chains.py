"""From a producing layer to the layers that read it, and whether a factor per channel may travel along.

A chain passes through whatever a pair of layers may have between them. It ends where the producer's output
becomes the shortcut around another layer: the sum after that layer belongs to that layer. What a positive
factor on channel j does not survive is a reason against moving it to input channel j of the consumers, not
against the chain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_dfmpc.matching.rules import JOINING, ChannelAxis, channels_after, feeds_gate, gate
from onnx_dfmpc.matching.walk import Walk, nested_reads, op, reads_shape
from onnx_dfmpc.spec import Chain, Edge, Layer
from onnx_dfmpc.spec.ops import OPS, input_channels


@dataclass(frozen=True)
class _Step:
    """A tensor on the way, the producer's channels in it (None: lost), and the operators passed."""

    tensor: gs.Tensor
    channel: ChannelAxis | None
    path: tuple[str, ...]


class Order:
    """Which weighted nodes come before which tensor, in one pass.

    ``edges`` are "first", "last" or "" by the output of each weighted node, ``bits`` the bit of each in a
    set. ``indirect`` are the weighted nodes that feed a tensor through at least one other, by the tensor's
    name, as a set of bits: integers keep the pass cheap on deep graphs.
    """

    def __init__(self, walk: Walk) -> None:
        weighted = [node for node in walk.nodes if op(node) in OPS]
        self.bits = {id(node): 1 << i for i, node in enumerate(weighted)}
        self.indirect: dict[str, int] = {}
        before: dict[str, int] = {}
        first, followed = set(), 0
        for node in walk.nodes:
            fed = through = 0
            for tensor in () if reads_shape(node) else (*node.inputs, *nested_reads(node)):
                fed |= before.get(tensor.name, 0)
                through |= self.indirect.get(tensor.name, 0)
            if own := self.bits.get(id(node), 0):
                through, followed = fed, followed | fed
                if not fed:
                    first.add(own)
            for tensor in node.outputs:
                before[tensor.name], self.indirect[tensor.name] = fed | own, through
        self.edges: dict[str, Edge] = {}
        for node in weighted:
            bit = self.bits[id(node)]
            start: Edge = "first" if bit in first else ""
            self.edges[node.outputs[0].name] = start if followed & bit else "last"


def find_chains(walk: Walk, layers: list[Layer], order: Order) -> list[Chain]:
    """The chain of every layer whose output reaches another layer, in the order of the layers."""
    by_node = {id(walk.tensor(layer.output).inputs[0]): layer for layer in layers}
    chains = []
    for node, layer in by_node.items():
        indirect = {name for name, sources in order.indirect.items() if sources & order.bits[node]}
        chains.append(_follow(walk, layer, by_node, indirect))
    return [chain for chain in chains if chain.consumers]


def _follow(walk: Walk, layer: Layer, by_node: Mapping[int, Layer], indirect: set[str]) -> Chain:
    """Walk forward from a layer, breadth first, until every way has ended at a layer or at a reason.

    ``indirect`` names the tensors that the layer feeds through another weighted node.
    """
    start = _start(walk, layer)
    waiting, seen = deque([start]), {start.tensor.name}
    paths: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, None] = {}  # a set in the order of the walk
    while waiting:
        step = waiting.popleft()
        if leaves := walk.leaves(step.tensor):
            reasons[leaves] = None
        for node in walk.readers(step.tensor):
            if feeds_gate(walk, step.tensor, node):
                continue
            consumer = by_node.get(id(node))
            if consumer and [i for i, tensor in enumerate(node.inputs) if tensor is step.tensor] == [0]:
                paths.setdefault(consumer.name, step.path)
                reasons[_why_not_landing(step.channel, layer, consumer)] = None
                continue
            after = channels_after(walk, step.channel, step.tensor, node)
            name = f"{op(node)} '{walk.name(node)}'"
            if after is None:
                reasons[f"{name} stays float" if op(node) in OPS else f"{name} reads it too"] = None
            elif op(node) in JOINING and any(tensor.name in indirect for tensor in node.inputs):
                reasons[f"it is also the shortcut into {name}"] = None
            else:
                if isinstance(after, str):
                    reasons[after and f"{name} {after}"] = None
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
    """Where a layer's own work ends: after its bias and its batch norm."""
    end, path = walk.tensor(layer.output), []
    if layer.bias_node not in ("", layer.name):
        add = walk.only_reader(end)
        end = end if add is None else add.outputs[0]
        path.append("Add")
    if layer.batch_norm is not None:
        end = walk.tensor(layer.batch_norm.output)
        path.append("BatchNormalization")
    channel = ChannelAxis(None if OPS[layer.op_type].batched else len(layer.shape))
    return _Step(end, channel, tuple(path))


def _why_not_landing(channel: ChannelAxis | None, producer: Layer, consumer: Layer) -> str:
    """Why channel j of the producer is not input channel j of the consumer; "" if it is, or was lost."""
    if channel is None:
        return ""
    matches = input_channels(consumer) == producer.channels
    if OPS[consumer.op_type].spatial:
        fits = channel.rank not in (None, 2)
    else:
        fits = channel.rank in (None, 2)
        if channel.flattened and not matches:
            return f"flattened before '{consumer.name}': a channel is a block of its columns"
    return "" if fits and matches else f"its channels are not the input channels of '{consumer.name}'"

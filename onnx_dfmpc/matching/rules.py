"""What a positive factor per channel survives on its way from one layer to the next, operator by operator.

A rule says where the channels are after the operator or, in words, why a factor put before it cannot be taken
out after it. An operator without a rule ends the chain. Where channels would be laborious to follow (through
a transposition, a resize, a slice) the chain goes on without the factor: that only bars
``absorb="consumer"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_dfmpc.matching.walk import Walk, has_input, op


@dataclass(frozen=True)
class ChannelAxis:
    """Where the producer's channels are: on axis 1 of ``rank`` or, where that is None, on the last one."""

    rank: int | None
    pooled: bool = False  # every axis but those of batch and channels has length one
    flattened: bool = False  # with all that came after: the channels alone if the axis is no longer than they

    def places(self, axes: Iterable[int] | None) -> set[int] | None:
        """These axes (None: unknown ones), counted from the front, if all come after axis 1; else None."""
        if axes is None or self.rank is None:
            return None
        places = {int(axis) % self.rank for axis in axes}
        return None if places & {0, 1} else places


Rule = str | Callable[[Walk, ChannelAxis, gs.Tensor, gs.Node], ChannelAxis | str]
"""A reason that always holds, or a function of walk, channels, tensor and the node that reads the tensor."""


def channels_after(
    walk: Walk, channel: ChannelAxis | None, tensor: gs.Tensor, node: gs.Node
) -> ChannelAxis | str | None:
    """Where the channels of ``tensor`` are after ``node``, or why a factor on them does not survive it.

    None where a chain does not pass; "" where the factor was lost before.
    """
    reads_as_data = [i for i, source in enumerate(node.inputs) if source is tensor] == [0]
    rule = ANY_OPERAND.get(op(node)) or (FIRST_OPERAND.get(op(node)) if reads_as_data else None)
    if rule is None or channel is None:
        return rule and ""
    return rule if isinstance(rule, str) else rule(walk, channel, tensor, node)


def gate(tensor: gs.Tensor, node: gs.Node) -> str:
    """SiLU or HardSwish where ``node`` multiplies a tensor by its own Sigmoid or HardSigmoid; else ""."""
    if op(node) != "Mul":
        return ""
    for source, other in (node.inputs, node.inputs[::-1]):
        if source is not tensor or not other.inputs or other.inputs[0].inputs[:1] != [tensor]:
            continue
        inner = other.inputs[0]
        if op(inner) == "Sigmoid":
            return "SiLU"
        if op(inner) == "HardSigmoid" and np.isclose(inner.attrs.get("alpha", 0.2), 1 / 6):
            return "HardSwish"
    return ""


def feeds_gate(walk: Walk, tensor: gs.Tensor, node: gs.Node) -> bool:
    """Whether ``node`` is nothing but the Sigmoid or HardSigmoid inside such a gate."""
    product = walk.only_reader(node.outputs[0]) if op(node) in ("Sigmoid", "HardSigmoid") else None
    return product is not None and gate(tensor, product) != ""


def _same(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    return channel


def _joining(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    others = [source for source in node.inputs if source is not tensor]
    constant = others and all(walk.values(source) is not None for source in others)
    return "joins it with a constant" if constant else "joins it with another branch"


def _multiplying(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    if name := gate(tensor, node):
        return f"of a {name} is not positively homogeneous"
    values = walk.values(next((source for source in node.inputs if source is not tensor), tensor))
    if values is None or (op(node) == "Div" and node.inputs[0] is not tensor):
        return "multiplies it with another branch"
    if channel.rank is not None and values.ndim > channel.rank:
        return "broadcasts it to more dimensions"
    return channel


def _pooling(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    if channel.rank is None:
        return "pools over its channels"
    return replace(channel, pooled=channel.pooled or op(node).startswith("Global"))


def _reducing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    places = channel.places(_axes(walk, node))
    if not places or channel.rank is None:
        return "may reduce over its channels"
    pooled = channel.pooled or len(places) == channel.rank - 2
    left = channel.rank if node.attrs.get("keepdims", 1) else channel.rank - len(places)
    return replace(channel, rank=left, pooled=pooled)


def _squeezing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    places = channel.places(_axes(walk, node))
    if not places or channel.rank is None:
        return "may remove the dimension of its channels"
    return replace(channel, rank=channel.rank - len(places))


def _flattening(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    if channel.rank is None or node.attrs.get("axis", 1) != 1:
        return "does not keep its channels apart"
    return ChannelAxis(rank=2, flattened=channel.flattened or channel.rank != 2)


def _reshaping(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    """A Reshape to (batch, the rest), or to any matrix where there is nothing but batch and channels."""
    target = walk.values(node.inputs[1]) if has_input(node, 1) else None
    keeps_batch = target is not None and target.size > 0 and target.flat[0] == 0
    if channel.rank is None or not (keeps_batch or channel.pooled or channel.rank == 2):
        return "may move its channels"
    if target is None and has_input(node, 1):  # torch joins x.size(0) and -1 at run time
        concat = walk.origin(node.inputs[1]).inputs
        to_matrix = bool(concat) and op(concat[0]) == "Concat" and len(concat[0].inputs) == 2
    else:
        to_matrix = target is not None and target.size == 2
    return ChannelAxis(rank=2, flattened=True) if to_matrix else "may move its channels"


def _padding(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    pads = node.attrs.get("pads")
    if pads is None and has_input(node, 1):
        pads = walk.values(node.inputs[1])
    value = walk.values(node.inputs[2]) if has_input(node, 2) else np.asarray(node.attrs.get("value", 0.0))
    if node.attrs.get("mode", "constant") == "constant" and (value is None or np.any(value)):
        return "pads it with a constant other than zero"
    half = 0 if pads is None else len(pads) // 2
    axes = walk.values(node.inputs[3]) if has_input(node, 3) else np.arange(half)
    if pads is None or axes is None:
        return "pads it by an amount that is not constant"
    padded = [axis for i, axis in enumerate(axes) if pads[i] or pads[i + half]]
    return "may pad its channels" if channel.places(padded) is None else channel


def _axes(walk: Walk, node: gs.Node) -> Iterable[int] | None:
    """Axes of a node, an attribute once and an input since; None where they are not given or not constant."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    values = walk.values(node.inputs[1]) if has_input(node, 1) else None
    return None if values is None else [int(axis) for axis in np.ravel(values)]


HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu"})
SATURATING = frozenset({
    "Celu", "Clip", "Elu", "HardSigmoid", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip
ACTIVATIONS = HOMOGENEOUS | SATURATING | {"Gelu", "HardSwish", "Mish", "Swish"}
JOINING = frozenset({"Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat"})


def _table(*rows: tuple[Iterable[str], Rule]) -> dict[str, Rule]:
    return {name: rule for names, rule in rows for name in names}


FIRST_OPERAND = _table(
    (ACTIVATIONS - HOMOGENEOUS, "is not positively homogeneous"),
    (HOMOGENEOUS | {"Identity", "Dropout", "Abs", "Neg"}, _same),
    (["BatchNormalization", "InstanceNormalization", "LayerNormalization"], "normalizes or shifts it"),
    (["GroupNormalization", "LRN"], "normalizes or shifts it"),
    (["MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"], _pooling),
    (["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"], _reducing),
    (["Gather", "Slice", "Split"], "may take a part of its channels"),
    (["DepthToSpace", "SpaceToDepth", "Transpose", "Unsqueeze"], "may move its channels"),
    (["Resize", "Upsample"], "may resize its channels"),
    (["Cast"], "may round it"),
    (["Squeeze"], _squeezing),
    (["Flatten"], _flattening),
    (["Reshape"], _reshaping),
    (["Pad"], _padding),
)
"""Rules where the tensor is the first input and no other."""

ANY_OPERAND = _table((JOINING, _joining), (["Mul", "Div"], _multiplying))

"""What a positive factor per channel survives on its way from one layer to the next, operator by operator.

A rule says where the channels are after the operator or, in words, why a factor put before it cannot be taken
out after it. An operator without a rule ends the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_dfmpc.matching.walk import Walk, has_input, op


@dataclass(frozen=True)
class ChannelAxis:
    """Where the producer's channels are.

    Attributes
    ----------
    axis : int
        Axis of the channels: from the front where ``rank`` is known, from the back where it is not.
    rank : int or None
    pooled : bool
        Every axis but those of batch and channels has length one.
    flattened : bool
        Channels and what came after them have become one axis: the channels alone only if it has as many
        entries as there are channels.
    """

    axis: int
    rank: int | None
    pooled: bool = False
    flattened: bool = False

    def spares(self, axes: Iterable[int] | None) -> bool:
        """Whether none of these axes (None: unknown ones) can be that of the channels."""
        if axes is None:
            return False
        # Without a rank, an axis counted from the other end may be the same one.
        return all(axis != self.axis and (axis < 0) == (self.axis < 0) for axis in self.counted(axes))

    def counted(self, axes: Iterable[int]) -> list[int]:
        """Axes from the front where the rank is known."""
        return [axis + self.rank if axis < 0 and self.rank is not None else axis for axis in axes]

    def without(self, axes: Iterable[int], rank: int) -> ChannelAxis:
        """After these other axes of a tensor of ``rank`` have gone."""
        removed = set(self.counted(axes))
        before = sum(axis < self.axis for axis in removed)
        return replace(self, axis=self.axis - before, rank=rank - len(removed))


Rule = str | Callable[[Walk, ChannelAxis, gs.Tensor, gs.Node], ChannelAxis | str]
"""A reason that always holds, or a function of the walk, the channels of a tensor, the tensor and a node that
reads it.
"""


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
    """SiLU or HardSwish where ``node`` is the Mul of a tensor by its own Sigmoid or HardSigmoid; else empty."""
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


def _casting(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return channel if node.attrs["to"] in floats else "rounds it"


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
    if channel.axis != 1:
        return "pools over its channels"
    return replace(channel, pooled=channel.pooled or op(node).startswith("Global"))


def _reducing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    axes = _axes(walk, node)
    if axes is None or not channel.spares(axes):
        return "reduces over its channels"
    keeps = node.attrs.get("keepdims", 1)
    if channel.rank is None:
        return channel if keeps else "removes dimensions of an unknown number"
    one = {0, channel.axis, *channel.counted(axes)}
    pooled = replace(channel, pooled=channel.pooled or one == set(range(channel.rank)))
    return pooled if keeps else pooled.without(axes, channel.rank)


def _squeezing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    axes = _axes(walk, node)
    if axes is None or channel.rank is None or not channel.spares(axes):
        return "may remove the dimension of its channels"
    return channel.without(axes, channel.rank)


def _unsqueezing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    axes = _axes(walk, node)
    if axes is None or channel.rank is None:
        return "adds dimensions of an unknown place"
    rank = channel.rank + len(axes)
    added = {axis % rank for axis in axes}
    return replace(channel, axis=[i for i in range(rank) if i not in added][channel.axis], rank=rank)


def _transposing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    perm = node.attrs.get("perm")
    if perm is None:
        return "reverses its dimensions"
    return replace(channel, axis=perm.index(channel.axis % len(perm)), rank=len(perm))


def _flattening(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    if channel.axis != 1 or node.attrs.get("axis", 1) != 1:
        return "does not keep its channels apart"
    return ChannelAxis(axis=1, rank=2, flattened=channel.flattened or channel.rank != 2)


def _reshaping(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    if channel.axis == 1 and _is_flatten(walk, channel, tensor, node):
        return ChannelAxis(axis=1, rank=2, flattened=True)
    return "may move its channels"


def _is_flatten(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> bool:
    """Whether a Reshape makes (batch, the rest) of a tensor, or works on one in which there is nothing else."""
    target = walk.values(node.inputs[1]) if len(node.inputs) > 1 else np.asarray(node.attrs.get("shape", []))
    sizes = tensor.shape or []
    ones = len(sizes) == channel.rank and all(size == 1 for size in sizes[2:])
    pooled = channel.pooled or channel.rank == 2 or ones
    if target is not None:
        if target.size != 2:
            return False
        copies_batch = target[0] == 0 and not node.attrs.get("allowzero", 0)
        return bool(pooled or copies_batch or target[0] in sizes[:1])
    source = walk.origin(node.inputs[1])
    concat = source.inputs[0] if source.inputs else None
    if concat is None or op(concat) != "Concat" or len(concat.inputs) != 2:
        return False
    return pooled or _is_batch(walk, concat.inputs[0], tensor)


def _is_batch(walk: Walk, size: gs.Tensor, tensor: gs.Tensor) -> bool:
    """Whether ``size`` is element 0 of the shape of ``tensor``, as torch writes ``x.size(0)``."""
    node = size.inputs[0] if size.inputs else None
    while node is not None and op(node) in ("Unsqueeze", "Cast", "Identity"):
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if node is None or op(node) != "Gather" or not node.inputs[0].inputs:
        return False
    shape, index = node.inputs[0].inputs[0], walk.values(node.inputs[1])
    whole_shape = op(shape) == "Shape" and not shape.attrs and shape.inputs[0] is tensor
    return whole_shape and index is not None and not np.any(index)


def _slicing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    return channel if channel.spares(_axes(walk, node, position=3)) else "may take a part of its channels"


def _splitting(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    return channel if channel.spares([node.attrs.get("axis", 0)]) else "takes its channels apart"


def _padding(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    pads = node.attrs.get("pads")
    if pads is None and len(node.inputs) > 1:
        pads = walk.values(node.inputs[1])
    value = walk.values(node.inputs[2]) if has_input(node, 2) else np.asarray(node.attrs.get("value", 0.0))
    if node.attrs.get("mode", "constant") == "constant" and (value is None or np.any(value)):
        return "pads it with a constant other than zero"
    half = 0 if pads is None else len(pads) // 2
    axes = walk.values(node.inputs[3]) if has_input(node, 3) else np.arange(half)
    if pads is None or axes is None:
        return "pads it by an amount that is not constant"
    padded = [int(axis) for i, axis in enumerate(axes) if pads[i] or pads[i + half]]
    return channel if channel.spares(padded) else "pads its channels"


def _resizing(walk: Walk, channel: ChannelAxis, tensor: gs.Tensor, node: gs.Node) -> ChannelAxis | str:
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "crops it"
    if "axes" in node.attrs:
        return channel if channel.spares(node.attrs["axes"]) else "resizes its channels"
    scales = node.attrs.get("scales")
    if scales is None:
        scales = walk.values(node.inputs[2 if walk.opset >= 11 and op(node) == "Resize" else 1])
    if scales is None or len(scales) != channel.rank or scales[channel.axis] != 1:
        return "resizes it to a size that is not constant"
    return channel


def _axes(walk: Walk, node: gs.Node, position: int = 1) -> list[int] | None:
    """Axes of a node, an attribute once and an input since; None where they are not given or not constant."""
    if "axes" in node.attrs:
        return list(node.attrs["axes"])
    values = walk.values(node.inputs[position]) if has_input(node, position) else None
    return None if values is None else [int(axis) for axis in np.ravel(values)]


HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu"})
SATURATING = frozenset({
    "Clip", "Elu", "Celu", "Selu", "Sigmoid", "HardSigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
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
    (["Gather", "DepthToSpace", "SpaceToDepth"], "may move its channels"),
    (["Resize", "Upsample"], _resizing),
    (["Cast"], _casting),
    (["Squeeze"], _squeezing),
    (["Unsqueeze"], _unsqueezing),
    (["Transpose"], _transposing),
    (["Flatten"], _flattening),
    (["Reshape"], _reshaping),
    (["Slice"], _slicing),
    (["Split"], _splitting),
    (["Pad"], _padding),
)
"""Rules where the tensor is the first input and no other."""

ANY_OPERAND = _table((JOINING, _joining), (["Mul", "Div"], _multiplying))

"""Which layers are faster in integers: a rule, not a measurement, so that the same model gives the same file.

Kernels of ONNX Runtime take, per layer with M multiplications and E outputs,

    float       dense 14.4 M + 100 E      depthwise 37 M                                    ps
    integer     dense 4.1 M + 270 E       depthwise 540 E, with fewer than 32 channels 1060 E

measured on SqueezeNet, YuNet and MobileNetV1, one thread, AVX512 with VNNI. Dense float kernels are blocked
by channels, and so are depthwise ones; integer kernels requantize every output. An integer convolution of a
few input channels, such as that of an image, takes 60 M: a large one stays float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from onnx import ModelProto, TensorProto, helper

from onnx_dfmpc.inputs.synthetic import DYNAMIC_LENGTH, DYNAMIC_PIXELS
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.protobuf import skeleton
from onnx_dfmpc.model.shapes import fold_shapes, inferred_shapes
from onnx_dfmpc.spec import Layer, MatchReport
from onnx_dfmpc.spec.ops import taps

FEW_INPUTS = 4
"""Input channels of a dense convolution up to which it stays float."""

MUCH = 600_000
"""Multiplications from which on: with fewer, what goes on from a float layer costs more than it saves, mostly
transposes (ResNet-20 has 0.44 M and loses 18 %, MobileNetV1 at 128 pixels 0.88 M and wins 17 %).
"""

FEW_CHANNELS = 32
"""Of a depthwise convolution: the fast integer kernel needs more."""

WORTH = 0.95
"""Share of the float time that the layers have to stay below in integers, or all of them stay float."""


def float_layers(proto: ModelProto, matched: MatchReport) -> dict[str, str]:
    """Layers that are better computed in float, or cannot be otherwise, by name, and why."""
    others = other_floats(proto, matched)
    keys = tuple(_Layer.of(layer) for layer in matched.layers if layer.name not in others)
    return {**others, **dict(_decided(skeleton(proto).SerializeToString(), keys))}


def other_floats(proto: ModelProto, matched: MatchReport) -> dict[str, str]:
    """Layers in another type than float32, by name, and that integer kernels do not take it."""
    table = ConstantTable(proto)
    types = {layer.name: table.data_type(layer.weight) for layer in matched.layers}
    return {
        name: f"integer kernels take float32, not {helper.tensor_dtype_to_np_dtype(kind)}"
        for name, kind in types.items()
        if kind != TensorProto.FLOAT
    }


@dataclass(frozen=True)
class _Layer:
    """What the time of a layer depends on; ``each`` are the multiplications of an output."""

    name: str
    output: str
    dense: bool
    convolves: bool
    inputs: int
    channels: int
    each: int

    @classmethod
    def of(cls, layer: Layer) -> _Layer:
        each = layer.size // layer.channels
        inputs = each // taps(layer)
        dense = layer.group == 1 or inputs > 1
        convolves = layer.op_type == "Conv" and layer.group == 1 and taps(layer) > 1
        return cls(layer.name, layer.output, dense, convolves, inputs, layer.channels, each)

    def times(self, elements: int) -> tuple[float, float]:
        """Time in float and in integers, in ps, by the table above."""
        if self.dense:
            return (
                14.4 * elements * self.each + 100.0 * elements,
                4.1 * elements * self.each + 270.0 * elements,
            )
        return 37.0 * elements * self.each, (1060.0 if self.channels < FEW_CHANNELS else 540.0) * elements


# A target asks for sizes several times, and shapes take a while.
@lru_cache(maxsize=16)
def _decided(model: bytes, layers: tuple[_Layer, ...]) -> tuple[tuple[str, str], ...]:
    elements = _elements(ModelProto.FromString(model))
    found = {
        layer.name: f"integer convolutions of {layer.inputs} input channels are slow"
        for layer in layers
        if layer.convolves
        and layer.inputs <= FEW_INPUTS
        and elements.get(layer.output, MUCH) * layer.each >= MUCH
    }
    times = [
        layer.times(elements[layer.output])
        for layer in layers
        if layer.name not in found and layer.output in elements
    ]
    in_float, in_integers = (sum(column) for column in zip(*times, strict=True)) if times else (0.0, 0.0)
    if times and in_integers > WORTH * in_float:
        why = f"layers of this network are expected to take {in_integers / in_float:.2f} of their float time"
        found = {layer.name: found.get(layer.name, why) for layer in layers}
    return tuple(found.items())


def _elements(proto: ModelProto) -> Mapping[str, int]:
    """Elements of tensors for one sample, where shapes can be inferred; the model is changed."""
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if not any(not dim.HasField("dim_value") for dim in dims):
            continue  # a weight, or an input whose size is known
        for position, dim in enumerate(dims):
            if position == 0:
                dim.dim_value = 1
            elif not dim.HasField("dim_value"):
                dim.dim_value = DYNAMIC_PIXELS if len(dims) == 4 else DYNAMIC_LENGTH
    # What was inferred for another batch would contradict.
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    fold_shapes(proto)
    return {
        name: prod(dim for dim in shape if isinstance(dim, int))
        for name, shape in inferred_shapes(proto).items()
        if all(isinstance(dim, int) for dim in shape)
    }

"""Networks that nobody had in mind: the shared ones, folded, and fed other ranges of numbers.

`folded` puts every batch norm that follows a layer into its weight and bias. `rescaled` gives the network
inputs x' = factor x + offset instead of x: the layers that read the input take W / factor, and what the offset
adds to their outputs off the bias, or off the mean of the batch norm,

    W' = W / factor        b' = b - offset sum(W) / factor

which is the same function of the picture but for the zeros at its borders.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from benchmarks.networks import LABELLED, Network
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec import Layer
from onnx_dfmpc.spec.ops import OPS, from_rows, to_rows

Array = NDArray[np.float32]

USUAL: Mapping[str, tuple[float, float]] = {
    "-2..2": (-2.0, 2.0),
    "-1..1": (-1.0, 1.0),
    "0..1": (0.0, 1.0),
    "0..255": (0.0, 255.0),
    "-128..127": (-128.0, 127.0),
}

OWN: Mapping[str, str] = {
    "cifar10_resnet8_keras_bn": "0..255",
    "imagenet_mobilenet_v1_025_128_folded": "-1..1",
    "imagenet_squeezenet1_1": "-128..127",
    "ultraface_rfb_320_bn": "-1..1",
    "fastestdet_folded": "0..1",
    "fer_xception_bn": "-1..1",
    "yunet_s_dynamic": "0..255",
    "digits_resnet_bn": "-1..1",
    "digits_resnet_folded": "-1..1",
}
"""Usual range that each network is fed, where that is not -2..2."""

SCALES: Mapping[str, float] = {"x0.1": 0.1, "x4": 4.0, "x30": 30.0}
"""Factors for inputs that are no pictures."""

NO_PICTURES = ("har_conv1d_bn", "har_conv1d_folded", "wakeword_bn")


@dataclass(frozen=True, eq=False)
class Variant:
    """A network made from another, and its inputs, x' = factor x + offset."""

    network: str
    proto: ModelProto
    folded: bool = False
    range: str = ""  # that its inputs were moved to; "" where they are the network's own
    factor: float = 1.0
    offset: float = 0.0

    @property
    def name(self) -> str:
        """Network, form and range in words."""
        return in_words(self.network, self.folded, self.range)

    def inputs(self, arrays: Array) -> Array:
        """The inputs of the network as given, as this one takes them."""
        return (np.float32(self.factor) * arrays + np.float32(self.offset)).astype(arrays.dtype)


def variants(network: Network, *, ranges: Collection[str] | None = None) -> Iterator[Variant]:
    """A network as it is; folded, where it is not and no folded twin is among the networks; and both with
    inputs in each other usual range, or only in those of ``ranges``.
    """
    proto = load(network.path).proto
    flat = folded(proto)
    bases = [(flat is None, proto)]
    if flat is not None and f"{network.name.removesuffix('_bn')}_folded" not in LABELLED:
        bases.append((True, flat))
    if network.name in NO_PICTURES:
        changes = {text: (factor, 0.0) for text, factor in SCALES.items()}
    else:
        own = own_range(network.name)
        changes = {text: _between(USUAL[own], span) for text, span in USUAL.items() if text != own}
    for is_folded, base in bases:
        yield Variant(network.name, base, is_folded)
        for text, (factor, offset) in changes.items():
            if ranges is None or text in ranges:
                changed = rescaled(base, factor, offset)
                if changed is not None:
                    yield Variant(network.name, changed, is_folded, text, factor, offset)


def in_words(network: str, folded: bool, moved: str = "") -> str:
    """A variant in words; "folded" is one that was made here."""
    made = "folded" if folded and network.endswith("_bn") else ""
    return " ".join(part for part in (network, made, moved) if part)


def own_range(name: str) -> str:
    """The usual range that a network for pictures is fed."""
    return OWN.get(name, "-2..2")


def one_range(name: str) -> tuple[str]:
    """One other range, far from the network's own."""
    if name in NO_PICTURES:
        return ("x30",)
    return ("-1..1",) if max(map(abs, USUAL[own_range(name)])) > 100 else ("0..255",)


def _between(old: tuple[float, float], new: tuple[float, float]) -> tuple[float, float]:
    factor = (new[1] - new[0]) / (old[1] - old[0])
    return factor, new[0] - factor * old[0]


def folded(proto: ModelProto) -> ModelProto | None:
    """The network with the batch norms behind its layers folded; None where there are none."""
    layers = [layer for layer in match(proto).layers if layer.batch_norm is not None]
    if not layers:
        return None
    result = ModelProto()
    result.CopyFrom(proto)
    table = ConstantTable(proto)
    producer = {name: node for node in result.graph.node for name in node.output}
    for layer in layers:
        norm = layer.batch_norm
        assert norm is not None
        node = producer[layer.output]
        batch_norm = next(n for n in result.graph.node if norm.node in (n.name, *n.output))
        slope = norm.gamma / norm.sigma
        rows = to_rows(table[layer.weight].astype(np.float64), layer)
        bias = table[layer.bias].astype(np.float64).ravel() if layer.bias else np.zeros(layer.channels)
        weight = from_rows(rows * slope.reshape(*rows.shape[:2], 1), layer)
        _constants(result, node.output[0], weight, slope * (bias - norm.mean) + norm.beta)
        inside = layer.bias is None or layer.bias_node == layer.name
        if not inside:
            return None
        del node.input[1:]
        node.input.extend([f"{node.output[0]}::w", f"{node.output[0]}::b"])
        old, new = node.output[0], batch_norm.output[0]
        result.graph.node.remove(batch_norm)
        node.output[0] = new
        assert not any(old in other.input for other in result.graph.node)
    return _closed(result)


def _constants(
    proto: ModelProto, name: str, weight: NDArray[np.floating], bias: NDArray[np.floating] | None
) -> None:
    for suffix, array in (("w", weight), ("b", bias)):
        if array is not None:
            tensor = numpy_helper.from_array(array.astype(np.float32), f"{name}::{suffix}")
            proto.graph.initializer.append(tensor)


def rescaled(proto: ModelProto, factor: float, offset: float) -> ModelProto | None:
    """The network for inputs ``factor x + offset``; None where other nodes than layers read the input."""
    layers = {layer.name: layer for layer in match(proto).layers}
    table = ConstantTable(proto)
    result = ModelProto()
    result.CopyFrom(proto)
    producer = {node.output[0]: node for node in result.graph.node if node.output}
    found = _readers(proto, list(layers.values()))
    if not found:
        return None
    for layer in found:
        node = producer[layer.output]
        if not OPS[layer.op_type].spatial or not (layer.bias is None or layer.bias_node == layer.name):
            return None
        weight = table[layer.weight].astype(np.float64) / factor
        moved = offset * weight.reshape(layer.channels, -1).sum(axis=1)
        bias = table[layer.bias].astype(np.float64).ravel() if layer.bias else np.zeros(layer.channels)
        if layer.bias is None and not moved.any():  # zeros would tell that there never was a batch norm
            _constants(result, node.output[0], weight, None)
            node.input[1] = f"{node.output[0]}::w"
            continue
        if layer.batch_norm is None or layer.bias:
            _constants(result, node.output[0], weight, bias - moved)
            del node.input[1:]
            node.input.extend([f"{node.output[0]}::w", f"{node.output[0]}::b"])
            continue
        norm = layer.batch_norm
        _constants(result, node.output[0], weight, norm.mean + moved)
        node.input[1] = f"{node.output[0]}::w"
        batch_norm = next(n for n in result.graph.node if norm.node in (n.name, *n.output))
        batch_norm.input[3] = f"{node.output[0]}::b"
    return _closed(result)


def _closed(proto: ModelProto) -> ModelProto:
    """The network with no initializer among its inputs: one that is, where others are not, may be replaced by
    whoever runs it, and is not quantized.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    for index in reversed(range(len(proto.graph.input))):
        if proto.graph.input[index].name in constants:
            del proto.graph.input[index]
    return proto


def _readers(proto: ModelProto, layers: list[Layer]) -> list[Layer]:
    """Layers that read the input, through nothing that a change of its range would not pass; empty where
    anything else reads it.
    """
    names = {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if not names.intersection(node.input):
            continue
        if node.op_type in ("Transpose", "Identity"):
            names |= set(node.output)
            continue
        if node.op_type in ("Shape",):
            continue
        reader = next((layer for layer in layers if layer.output in node.output), None)
        if reader is None:
            return []
        found.append(reader)
    return found

"""Which layer broke it, and what to change.

1. Where the layers of the float model are in the quantized one: the nodes between the same two tensors, found
   by their names. So it works for the files of any tool that keeps the names of tensors.
2. What every layer does to its own output, and alone to the network's: one walk through both networks. Alone
   means that the quantized model's nodes make the layer's output of the float network's tensors, and the
   float network goes on from there.
3. How many bits may help the layers that stand out. Whether they do is tried before anybody is told.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from onnx_dfmpc.evaluate.metrics import Comparison, Tally, is_finite
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.model.constants import ConstantTable, used_names
from onnx_dfmpc.model.protobuf import framed_size
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.rewrite.apply import PREFIX
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.runtime.pieces import PIECE
from onnx_dfmpc.runtime.session import is_weight_only
from onnx_dfmpc.sensitivity.feeds import few_samples
from onnx_dfmpc.sensitivity.outputs import scores
from onnx_dfmpc.spec import Feeds, Layer, LayerEffect, MatchReport, Progress
from onnx_dfmpc.spec.widths import LEVELS, WIDTHS, Width

Batches = Sequence[NDArray[Any]]

TOGETHER = 8
"""Layers whose outputs are in memory at once when layers are compared."""

NAMED = 3
"""Names that a note gives, at most."""

CODE_BITS: Mapping[int, int] = {
    TensorProto.INT2: 2, TensorProto.UINT2: 2, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
}  # fmt: skip


def diagnose(
    float_model: ModelProto,
    quantized_model: ModelProto,
    matched: MatchReport,
    data: Data,
    *,
    progress: Progress | None = None,
) -> tuple[tuple[LayerEffect, ...], tuple[str, ...]]:
    """What every quantized layer does, among the others and alone, and remarks.

    The layer that adds most noise to the network's outputs comes first; outputs that only squash scores (a
    softmax) are measured in front of that. 16 samples of ``data`` are taken, and down to 4 of large inputs.
    ``progress`` is called with ``("per layer", layers finished, layers)``.
    """
    segments, missing = find_segments(
        float_model, quantized_model, matched.layers, _stored_bits(quantized_model)
    )
    notes = []
    if missing:
        notes.append(f"per layer: not in the quantized model by the names of their tensors: {_some(missing)}")
    if not segments:
        why = "layers are found by the names of tensors, which a slim file does not keep (--no-slim does)"
        return (), (*notes, f"per layer: no layer of the quantized model is quantized, or {why}")
    samples = few_samples(float_model, data)
    feeds = [feed for _, _, feed in samples.batches()]
    outputs = scores(float_model, matched.layers)
    effects = _ranked(_effects(float_model, quantized_model, segments, outputs, feeds, progress))
    how = "tried on {} synthetic inputs" if samples.synthetic else "measured on {} samples"
    notes.append(f"per layer: {how.format(samples.count)}")
    return tuple(effects), tuple(notes)


def layer_sqnr(
    float_model: ModelProto, quantized_model: ModelProto, layers: Sequence[Layer], feeds: Feeds
) -> dict[str, float | None]:
    """SQNR, in dB, of the outputs of layers in the quantized network, by layer name; infinite where nothing
    differs, None where a value is not finite or the shapes differ. ``layers`` are in topological order.
    """
    reference = PartialRun(float_model, ConstantTable(float_model), feeds)
    quantized = _quantized_run(quantized_model, ConstantTable(quantized_model), feeds)
    pairs: dict[str, Comparison | None] = {}
    for some in _together(layers):
        ends = [layer.end for layer in some]
        both = zip(some, reference.values(ends), quantized.values(ends), strict=True)
        pairs |= {layer.name: _compare(a, b) for layer, a, b in both}
    return {name: None if pair is None else pair.sqnr_db for name, pair in pairs.items()}


def _together(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers in groups: `TOGETHER`, or fewer that have many weights."""
    some: list[Layer] = []
    for layer in layers:
        if len(some) == TOGETHER or (some and 4 * sum(one.size for one in (*some, layer)) > PIECE):
            yield some
            some = []
        some.append(layer)
    if some:
        yield some


def _some(names: Sequence[str]) -> str:
    """The first few of some names, and how many there are more."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _stored_bits(proto: ModelProto) -> Mapping[str, float]:
    """Nominal bits by layer name, as this tool writes them into a file; empty for files of others."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == f"{PREFIX}bits"), "{}")
    try:
        bits = json.loads(text)
    except ValueError:
        return {}
    return (
        {name: width for name, width in bits.items() if isinstance(width, int | float) and width in LEVELS}
        if isinstance(bits, dict)
        else {}
    )


# ------------------------------------------------------------------------------------------------------
# where the layers are


@dataclass(frozen=True, eq=False)
class Segment:
    """A quantized layer.

    ``layer`` is that of the float model; ``end`` the tensor, in both models, after its bias and its batch
    norm; ``bits`` the nominal ones, None where nothing tells; ``bytes`` those of its weight: codes, scales,
    zero points and nodes, as far as the layer alone uses them.
    """

    layer: Layer
    end: str
    bits: float | None
    bytes: int


def find_segments(
    float_model: ModelProto, quantized_model: ModelProto, layers: Sequence[Layer], bits: Mapping[str, float]
) -> tuple[list[Segment], list[str]]:
    """Layers whose weight is computed from constants, and the names of those that are not in the quantized
    model. ``bits`` are nominal bits by layer name, where they are known.
    """
    graph, segments, missing = _Graph(quantized_model), [], []
    for layer in layers:
        end = _end_of(float_model, layer)
        nodes = graph.between(layer.input, end)
        if nodes is None:
            missing.append(layer.name)
        elif weight := graph.computed(nodes, layer.input):
            width = bits.get(layer.name) or graph.code_bits(weight, layer)
            segments.append(Segment(layer, end, width, graph.own_bytes(weight)))
    return segments, missing


def _end_of(proto: ModelProto, layer: Layer) -> str:
    """Tensor after a layer's bias and batch norm, which every quantized form of the layer makes too."""
    if layer.batch_norm is None and layer.bias_node not in ("", layer.name):
        adds = (node for node in proto.graph.node if layer.bias_node in (node.name, *node.output))
        return next((node.output[0] for node in adds), layer.end)
    return layer.end


class _Graph:
    """A quantized model's nodes, by what they make and who reads it."""

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
        nodes: dict[int, NodeProto] = {}
        queue = [end]
        while queue:
            name = queue.pop()
            if name == start or name in self._table:
                continue
            if name not in self._producer:
                return None
            node = self._producer[name]
            if id(node) not in nodes:
                nodes[id(node)] = node
                queue += [read for read in node.input if read]
        return list(nodes.values())

    def computed(self, nodes: Sequence[NodeProto], start: str) -> list[NodeProto]:
        """Those of some nodes that depend on constants alone: they unpack and dequantize the weight."""
        constant = {start: False, "": True}

        def is_constant(name: str) -> bool:
            if name not in constant:
                constant[name] = name in self._table or all(map(is_constant, self._producer[name].input))
            return constant[name]

        return [node for node in nodes if all(map(is_constant, node.output))]

    def code_bits(self, weight: Sequence[NodeProto], layer: Layer) -> float | None:
        """Bits of the codes: those of the element type, or what packed ones take, padding aside."""
        constants = self._constants(weight)
        for tensor in constants:
            if tuple(tensor.dims) == layer.shape:
                return CODE_BITS.get(tensor.data_type)
        for node in weight:  # codes that several layers share
            codes = self._tensors.get(node.input[0])
            if codes is not None and node.op_type == "DequantizeLinear" and tuple(codes.dims) == layer.shape:
                return CODE_BITS.get(codes.data_type)
        read = {node.input[0] for node in weight if node.op_type == "Cast"}
        packed = sum(math.prod(tensor.dims) for tensor in constants if tensor.name in read)
        return max((width for width in WIDTHS if width <= 8 * packed / layer.size), default=None)

    def own_bytes(self, weight: Sequence[NodeProto]) -> int:
        """Bytes in the file of what serves this layer alone: the nodes that make the weight, those that
        nobody else reads, and their constants.
        """
        read = {name for node in weight for name in node.input}
        own = [node for node in weight if read.isdisjoint(node.output)]
        while more := [
            node for node in weight if node not in own and self._private(own).issuperset(node.output)
        ]:
            own += more
        return sum(framed_size(part) for part in (*own, *self._constants(own)))

    def _constants(self, nodes: Sequence[NodeProto]) -> list[TensorProto]:
        return [self._tensors[name] for name in sorted(self._private(nodes)) if name in self._tensors]

    def _private(self, nodes: Sequence[NodeProto]) -> set[str]:
        """Tensors that only these nodes read."""
        reads = Counter(name for node in nodes for name in node.input)
        return {name for name, count in reads.items() if self._readers[name] == count}


# ------------------------------------------------------------------------------------------------------
# what they do


def _effects(
    float_model: ModelProto,
    quantized_model: ModelProto,
    segments: Sequence[Segment],
    outputs: Sequence[str],
    feeds: Feeds,
    progress: Progress | None,
) -> list[LayerEffect]:
    """Effects of the layers, in their order, at some tensors of the float network."""
    table = ConstantTable(quantized_model)
    reference = PartialRun(float_model, ConstantTable(float_model), feeds)
    quantized = _quantized_run(quantized_model, table, feeds)
    expected_outputs: dict[str, Batches] = {}
    effects = []
    for step, segment in enumerate(segments, 1):
        layer, end = segment.layer, segment.end
        source = [{layer.input: batch} for batch in reference.value(layer.input)]
        alone = _quantized_run(quantized_model, table, source).value(end)
        expected = reference.value(end)
        rest = reference.downstream(end, outputs)
        if not expected_outputs.keys() >= set(rest.outputs):
            # Not by reference.value(): that would run to the end now, and forget what the next layers need.
            expected_outputs = rest(expected) | expected_outputs
        own = _alone({name: expected_outputs[name] for name in rest.outputs}, rest(alone))
        output = _compare(expected, quantized.value(end))
        effects.append(
            LayerEffect(
                name=layer.name,
                op=layer.op_type,
                bits=None if segment.bits is None else Width(segment.bits),
                bytes=segment.bytes,
                sqnr_db=None if output is None else output.sqnr_db,
                cosine=None if output is None else output.cosine,
                own_sqnr_db=own.sqnr_db if rest.outputs else math.inf,
                own_top1_agreement=own.top1_agreement,
            )
        )
        if progress is not None:
            progress("per layer", step, len(segments))
    return effects


def _quantized_run(proto: ModelProto, table: ConstantTable, feeds: Feeds) -> PartialRun:
    return PartialRun(proto, table, feeds, what="quantized model", disable_qdq=is_weight_only(proto))


def _ranked(effects: Sequence[LayerEffect]) -> list[LayerEffect]:
    """Effects with their share of the noise, the largest first; what is not finite comes before everything
    else.
    """
    noises = [_noise(effect) for effect in effects]
    total = sum(noise for noise in noises if math.isfinite(noise))
    shares = [
        noise / total if total and math.isfinite(noise) else float(math.isinf(noise)) for noise in noises
    ]
    order = sorted(range(len(effects)), key=lambda index: -noises[index])
    return [replace(effects[index], own_share=shares[index]) for index in order]


def _noise(effect: LayerEffect) -> float:
    """Noise power of a layer alone at the network's worst output, relative to the signal there; infinite
    where it is not finite.
    """
    return math.inf if effect.own_sqnr_db is None else 10 ** (-effect.own_sqnr_db / 10)


def _alone(expected: Mapping[str, Batches], actual: Mapping[str, Batches]) -> ValidationReport:
    """Metrics of some outputs, of which there is a value for each batch."""
    tally, stop = Tally(list(expected)), 0
    for batch, first in enumerate(next(iter(expected.values()), ())):
        start, stop = stop, stop + len(np.atleast_1d(first))
        sides = ([values[name][batch] for name in expected] for values in (expected, actual))
        tally.add(start, stop, *sides)
    return tally.report(samples=stop, data="", synthetic=False)


def _compare(expected: Batches, actual: Batches) -> Comparison | None:
    """Sums over all batches; None where they cannot be compared."""
    pair = Comparison()
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape or not (is_finite(a) and is_finite(b)):
            return None
        pair.add(a, b)
    return pair


# ------------------------------------------------------------------------------------------------------
# what may help


def wider(
    effects: Sequence[LayerEffect], sizes: Mapping[str, Mapping[float, int]]
) -> list[tuple[str, float]]:
    """Layers that stand out, the worst first, with more bits that may help each.

    They are the worst layer, and those after it that make more than their share of the noise. They get as
    many bits as bring them down to what the others make on average: noise falls with the square of the step.
    Wider codes that take no more bytes come for free. ``effects`` are the worst first, ``sizes`` bytes by
    layer and width.
    """
    standing_out = [e for rank, e in enumerate(effects) if rank == 0 or e.own_share * len(effects) > 1]
    found = ((effect.name, _enough(effect, effects, sizes[effect.name])) for effect in standing_out)
    return [(name, bits) for name, bits in found if bits is not None]


def _enough(effect: LayerEffect, effects: Sequence[LayerEffect], sizes: Mapping[float, int]) -> float | None:
    """Bits with which a layer no longer stands out; None where it cannot have more, or makes no noise."""
    own, bits = _noise(effect), effect.bits
    if bits is None or bits not in sizes or bits == max(sizes) or not 0 < own < math.inf:
        return None
    others = [_noise(other) for other in effects if other is not effect and math.isfinite(_noise(other))]
    more = [width for width in sorted(sizes) if width > bits]
    noise = {width: own * ((LEVELS[bits] - 1) / (LEVELS[width] - 1)) ** 2 for width in more}
    enough = next((width for width in more if noise[width] * len(others) <= sum(others)), more[-1])
    return max(width for width in more if width >= enough and sizes[width] <= sizes[enough])

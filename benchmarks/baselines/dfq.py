"""Data-Free Quantization (Nagel et al., ICCV 2019, arXiv 1906.04721): cross-layer equalization, then bias
correction.

A positive factor per channel commutes with ReLU, so a producer W and its consumer V compute the same with

    W_j / s_j,  bias_j / s_j,  V_:j s_j          s_j = sqrt( max|W_j| / max|V_:j| )

after which channel j has the same range on both sides: one grid per tensor then serves all channels. Pairs
are swept until nothing moves.

The paper folds batch norm first. Here its scale a_j = gamma_j / sigma_j moves into the weights as well, but
the node stays, with a scale of one, and keeps what bias correction needs: which mean and variance it expects.
With t_j = a_j / s_j (1 / s_j without batch norm):

    W'_j = t_j W_j    mean' = t_j mean    sigma' = |t_j| sigma    gamma' = sigma'    beta' = beta / s_j

Bias correction is the package's; the large biases of the paper's section 4.1.3 are not absorbed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from benchmarks import package
from onnx_dfmpc import QuantizeResult, Recipe
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable, used_names
from onnx_dfmpc.spec import Chain, Layer
from onnx_dfmpc.spec.ops import from_rows, taps, to_rows

SWEEPS, TOLERANCE = 20, 1e-3
DEAD = 1e-3
"""A channel whose batch norm has a smaller gamma than this is left alone: its variance would vanish behind
epsilon.
"""

Array = NDArray[np.float64]


def quantize(model: ModelProto, recipe: Recipe, *, per_channel: bool = False) -> QuantizeResult:
    """Equalize, round to the nearest level of an asymmetric grid (per tensor, as published), correct the
    biases.

    Parameters
    ----------
    model : ModelProto
    recipe : Recipe
        Only its bits and statistics are asked.
    per_channel : bool
        A grid per output channel instead.
    """
    recipe = replace(recipe, method="dfmpc", rounding="nearest", repair="mean")
    return package.quantize(equalize(model), recipe, {"per_channel": per_channel})


@dataclass
class _State:
    """A layer while factors move through it: rows (g, r, n), bias, and the factor t and 1 / s of each output
    channel.
    """

    layer: Layer
    rows: Array
    bias: Array | None
    shift: Array
    total: Array

    @property
    def output_ranges(self) -> Array:
        ranges: Array = np.abs(self.rows).max(axis=2).ravel()
        return ranges

    @property
    def input_ranges(self) -> Array:
        ranges: Array = np.abs(self._by_input()).max(axis=(1, 3)).ravel()
        return ranges

    def divide_outputs(self, s: Array) -> None:
        self._scale_rows(1 / s)
        self.shift = self.shift / s

    def fold(self) -> None:
        """Move the scale of the batch norm into the weights, where it has one to speak of."""
        norm = self.layer.batch_norm
        if norm is not None:
            self._scale_rows(np.where(np.abs(norm.gamma) > DEAD, norm.gamma / norm.sigma, 1))

    def multiply_inputs(self, s: Array) -> None:
        by_input = self._by_input()
        self.rows = (by_input * s.reshape(by_input.shape[0], 1, -1, 1)).reshape(self.rows.shape)

    def _scale_rows(self, t: Array) -> None:
        self.rows = self.rows * t.reshape(self.rows.shape[0], -1, 1)
        self.total = self.total * t

    def _by_input(self) -> Array:
        g, r, _ = self.rows.shape
        return self.rows.reshape(g, r, -1, taps(self.layer))


def equalize(model: ModelProto) -> ModelProto:
    """Copy of a model that computes the same, its weights scaled for grids per tensor.

    Parameters
    ----------
    model : ModelProto
        Never changed.

    Returns
    -------
    ModelProto
    """
    report = match(model)
    table = ConstantTable(model)
    states = {layer.name: _state(layer, table) for layer in report.layers}
    for state in states.values():
        state.fold()
    chains = [
        chain
        for chain in report.chains
        if chain.homogeneous and {chain.producer, *chain.consumers} <= states.keys()
    ]
    for _ in range(SWEEPS):
        moved = max((_equalize_chain(chain, states) for chain in chains), default=0.0)
        if moved < TOLERANCE:
            break
    return _written(model, table, states.values())


def _state(layer: Layer, table: ConstantTable) -> _State:
    rows = to_rows(np.asarray(table[layer.weight], np.float64), layer)
    bias = None if layer.bias is None else np.asarray(table[layer.bias], np.float64)
    return _State(layer, rows, bias, np.ones(layer.channels), np.ones(layer.channels))


def _equalize_chain(chain: Chain, states: dict[str, _State]) -> float:
    """Equalize a producer with its consumers; returns how far from one the largest factor was."""
    producer, consumers = states[chain.producer], [states[name] for name in chain.consumers]
    mine, theirs = producer.output_ranges, np.max([consumer.input_ranges for consumer in consumers], axis=0)
    both = (mine > 0) & (theirs > 0)
    norm = producer.layer.batch_norm
    if norm is not None:
        both &= np.abs(norm.gamma) > DEAD
    s = np.sqrt(np.where(both, mine, 1) / np.where(both, theirs, 1))
    producer.divide_outputs(s)
    for consumer in consumers:
        consumer.multiply_inputs(s)
    return float(np.abs(s - 1).max())


def _written(model: ModelProto, table: ConstantTable, states: Iterable[_State]) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(model)
    nodes = {name: node for node in proto.graph.node for name in node.output}
    for state in states:
        layer = state.layer
        node = nodes[layer.output]
        _replace(proto, node, 1, from_rows(state.rows, layer))
        if layer.bias is not None and state.bias is not None:
            owner, position = _bias_input(proto, node, layer, table)
            _replace(proto, owner, position, state.bias * state.total.reshape(state.bias.shape))
        if layer.batch_norm is not None:
            norm = layer.batch_norm
            sigma = np.abs(state.total) * norm.sigma
            gamma = np.where(np.abs(norm.gamma) > DEAD, sigma, norm.gamma * state.shift)
            parameters = gamma, norm.beta * state.shift, norm.mean * state.total, sigma**2 - norm.epsilon
            for position, values in enumerate(parameters, start=1):
                _replace(proto, nodes[norm.output], position, values)
    _drop_unused(proto)
    return proto


def _replace(proto: ModelProto, node: NodeProto, position: int, values: NDArray[np.floating]) -> None:
    """Give a node a constant of its own."""
    name = f"dfq{len(proto.graph.initializer)}"
    proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    node.input[position] = name


def _drop_unused(proto: ModelProto) -> None:
    """Remove the initializers that have been replaced, from the graph inputs too, where old models list them."""
    used = used_names(proto.graph)
    gone = {tensor.name for tensor in proto.graph.initializer if not used[tensor.name]}
    for items in (proto.graph.initializer, proto.graph.input):
        kept = [item for item in items if item.name not in gone]
        del items[:]
        items.extend(kept)


def _bias_input(
    proto: ModelProto, node: NodeProto, layer: Layer, table: ConstantTable
) -> tuple[NodeProto, int]:
    """Node and input position of a layer's bias: its own third input, or one side of the Add behind it."""
    if len(node.input) > 2 and node.input[2]:
        return node, 2
    add = next(other for other in proto.graph.node if other.op_type == "Add" and layer.output in other.input)
    return add, 1 - list(add.input).index(layer.output)

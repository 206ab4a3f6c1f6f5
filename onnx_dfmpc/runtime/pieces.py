"""Whole models, at once or, where their weights are many, piece by piece.

ONNX Runtime keeps all weights of a session in memory, often twice. What is large is therefore cut where
enough weights have come together, and one piece after the other runs on all inputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnx_dfmpc.model.constants import ConstantTable, node_inputs
from onnx_dfmpc.model.external import MAPPED
from onnx_dfmpc.model.files import load
from onnx_dfmpc.model.protobuf import LARGE
from onnx_dfmpc.runtime.batches import Value
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.runtime.session import Model, Session
from onnx_dfmpc.spec import InputSpec

PIECE = 1 << 26
"""Bytes of weights, as 32-bit floats, in one piece; one layer may have more. A session that unpacks them from
codes takes up to four times as much while it loads.
"""


def is_piecewise(model: Model) -> bool:
    """Whether a model has more weights than should be in memory at once."""
    try:
        proto = (
            model if isinstance(model, ModelProto) else onnx.load(os.fspath(model), load_external_data=False)
        )
    except Exception:  # unreadable: whoever runs it says so, with the cause
        return False
    return 4 * sum(size for size in weight_sizes(proto).values() if size > LARGE) >= MAPPED


def weight_sizes(proto: ModelProto) -> dict[str, int]:
    """Elements of every initializer of the main graph; of packed ones, of what they are unpacked to."""
    table = ConstantTable(proto)
    sizes = {tensor.name: prod(tensor.dims) for tensor in proto.graph.initializer}
    origin = {name: table.source(name) for name in table}
    for node in proto.graph.node:
        reads = list(node_inputs(node))
        if not reads or not all(name in origin for name in reads):
            continue
        # Codes are unpacked by a Gather from a small table and a Reshape to the shape of the weight.
        packed = origin[reads[-1 if node.op_type == "Gather" else 0]]
        origin |= dict.fromkeys(node.output, packed)
        shape = reads[-1]
        if node.op_type == "Reshape" and packed in sizes and shape in table and not table.is_mapped(shape):
            sizes[packed] = max(sizes[packed], prod(table[shape].tolist()))
    return sizes


def open_model(model: Model, what: str, *, disable_qdq: bool = False) -> Session | Pieces:
    """A model that can be run, at once or piece by piece."""
    if not is_piecewise(model):
        return Session(model, what, disable_qdq=disable_qdq)
    proto = model if isinstance(model, ModelProto) else load(model).proto
    return Pieces(proto, what if isinstance(model, ModelProto) else os.fspath(model), disable_qdq)


class Pieces:
    """A model that is run piece by piece; as `Session`."""

    def __init__(self, proto: ModelProto, title: str, disable_qdq: bool) -> None:
        self.title = title
        self.outputs = [output.name for output in proto.graph.output]
        self._proto, self._disable_qdq = proto, disable_qdq
        self._table, self._cuts = ConstantTable(proto), cuts(proto)

    def specs(self) -> list[InputSpec]:
        """Inputs of the model; UnsupportedError if one of them is not a tensor of numbers."""
        return Session(_hollow(self._proto), self.title).specs()

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> list[Any]:
        """Outputs, by default all, for some inputs."""
        return self.run_each([feeds], outputs)[0]

    def run_each(
        self, feeds: Sequence[Mapping[str, Value]], outputs: Sequence[str] | None = None
    ) -> list[list[Any]]:
        """Outputs for each of some inputs: a piece runs on all of them before the next is loaded."""
        wanted = self.outputs if outputs is None else list(outputs)
        run = PartialRun(self._proto, self._table, feeds, what=self.title, disable_qdq=self._disable_qdq)
        found: dict[str, Sequence[Value]] = {}
        for tensors in self._cuts:
            values = zip(tensors, run.values(tensors), strict=True)
            found |= {name: each for name, each in values if name in wanted}
        return [[found[name][batch] for name in wanted] for batch in range(len(feeds))]


def _hollow(proto: ModelProto) -> ModelProto:
    """A model with the interface of another that computes nothing."""
    graph = helper.make_graph([], "interface", fed_inputs(proto), [])
    one = helper.make_node("Constant", [], ["nothing"], value_float=0.0)
    graph.node.append(one)
    graph.output.append(helper.make_tensor_value_info("nothing", TensorProto.FLOAT, []))
    return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=max(proto.ir_version, 8))


def fed_inputs(proto: ModelProto) -> list[ValueInfoProto]:
    """Inputs that a caller has to feed."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in stored]


def cuts(proto: ModelProto) -> list[list[str]]:
    """Tensors to ask for one group after the other, so that nodes in between have about `PIECE` of weights.

    The last group has the outputs of the model. Nodes that work on constants alone, such as those that
    unpack a weight, run with the first node that reads what they make.
    """
    table = ConstantTable(proto)
    cost = {name: 4 * size for name, size in weight_sizes(proto).items()}
    constant = {name: cost.get(table.source(name), 0) for name in table}
    outputs = [output.name for output in proto.graph.output]
    pieces: list[list[str]] = [[]]
    total, counted = 0, set[str]()
    last_read = {name: index for index, node in enumerate(proto.graph.node) for name in node_inputs(node)}
    made_in_piece: list[str] = []
    for index, node in enumerate(proto.graph.node):
        if all(name in table for name in node.output if name):
            continue
        reads = list(dict.fromkeys(node_inputs(node)))
        weights = sum(constant[name] for name in reads if name in constant and name not in counted)
        if reads and all(name in constant for name in reads):
            constant |= {name: weights for name in node.output if name}
            continue
        counted.update(name for name in reads if name in constant)
        made_in_piece += [name for name in node.output if name]
        total += weights
        if total >= PIECE:
            pieces.append([name for name in made_in_piece if last_read.get(name, -1) > index])
            made_in_piece = [name for name in made_in_piece if last_read.get(name, -1) > index]
            total = 0
    return [piece for piece in (*pieces, list(dict.fromkeys(outputs))) if piece]

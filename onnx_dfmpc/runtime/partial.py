"""A model run piece by piece: any tensor, in the order of the graph, with changes on the way.

Quantizing layer by layer takes the input of each layer once, in a network whose earlier layers have changed
by then. So the graph is cut into segments, each a small model with a session of its own: from the tensors
that are there to the one that is asked for. A network of 60 layers takes 60 segments, and every node runs
once; one session of the whole model with all tensors as outputs would hold all of them at once and could not
be changed half-way.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnx_dfmpc.model.constants import ConstantTable, node_inputs
from onnx_dfmpc.model.external import PLAIN
from onnx_dfmpc.runtime.batches import Batches, Stored, Value, stored
from onnx_dfmpc.runtime.session import Session
from onnx_dfmpc.spec.ops import OPS, op_key

T = TypeVar("T")

WEIGHT, SHIFT, UNSHIFTED = "downstream::weight", "downstream::shift", "downstream::unshifted"

FED = 1 << 22
"""Elements from which on a weight is fed to a session as one more input. As an initializer it would be copied
at least once, and 20 bytes a weight would be in use while a convolution is loaded.
"""

MANY_CODES = FED
"""Elements of what is no float weight from which on convolutions are not put into blocks: a byte may hold
several codes of one.
"""

LOCAL_FUNCTIONS = 8
"""The first IR version that has them; whatever older models hold is the same in it."""


class PartialRun:
    """A model and a few batches of inputs, which are run as far as the tensors that are asked for.

    ``table`` holds the constants of the same model. ``feeds``, one mapping of names to arrays per batch, are
    the model's inputs, or whatever else the tensors that are asked for depend on. ``disable_qdq`` folds
    dequantized weights: for models with quantized weights and float activations. What ONNX Runtime cannot run
    is a ModelError.
    """

    def __init__(
        self,
        proto: ModelProto,
        table: ConstantTable,
        feeds: Sequence[Mapping[str, Value]],
        *,
        what: str = "float model",
        disable_qdq: bool = False,
    ) -> None:
        self._proto = proto
        self._table = table
        self._what = what
        self._disable_qdq = disable_qdq
        self._nodes = [
            node for node in proto.graph.node if not all(name in table for name in node.output if name)
        ]
        self._replaced: dict[str, Value] = {}  # constants of `replace`, which the table does not have
        self._producer = {name: index for index, node in enumerate(self._nodes) for name in _outputs([node])}
        self._reads = [sorted(set(node_inputs(node))) for node in self._nodes]
        # How many nodes that have not run yet read a tensor: at 0 it is forgotten, or a deep network would
        # not fit.
        self._waiting = Counter(name for names in self._reads for name in names)
        self._batches = len(feeds)
        self._live = {name: Batches(feed[name] for feed in feeds) for name in feeds[0]}

    def value(self, tensor: str) -> Batches:
        """Value of a tensor for each batch."""
        return self.values([tensor])[0]

    def values(self, tensors: Sequence[str]) -> list[Batches]:
        """Values of some tensors for each batch; what is missing is run at once. Of tensors that no node
        still needs, only the last one is remembered.
        """
        found = {tensor: self._live[tensor] for tensor in tensors if tensor in self._live}
        found |= {
            tensor: Batches([self._constant(tensor)] * self._batches)
            for tensor in tensors
            if tensor not in found and self._is_constant(tensor)
        }
        missing = [tensor for tensor in tensors if tensor not in found]
        if missing:
            found |= self._run(missing)
        return [found[tensor] for tensor in tensors]

    def put(self, tensor: str, values: Iterable[Value]) -> None:
        """Let the nodes that have not run yet see other values of a tensor, one for each batch."""
        self._live[tensor] = Batches(stored(value, self._batches) for value in values)

    def replace(self, output: str, position: int, array: Value) -> None:
        """Give the node that makes ``output``, before it has run, another constant as its input at
        ``position``.
        """
        index = self._producer[output]
        node = NodeProto()
        node.CopyFrom(self._nodes[index])
        name = f"{node.input[position]}::{output}"  # a weight may be shared: this node alone sees the new one
        node.input[position] = name
        self._nodes[index] = node
        self._waiting.subtract(self._reads[index])
        self._reads[index] = sorted(set(node_inputs(node)))
        self._waiting.update(self._reads[index])
        self._replaced[name] = array

    def downstream(self, tensor: str, outputs: Sequence[str], *, open_weight: bool = False) -> Downstream:
        """The part of the model from a tensor to those of some outputs that depend on it. This run stays as
        it is.

        The tensor is one whose value was just asked for. With ``open_weight`` it is the output of a node that
        has not run yet, and what is left open is that node's weight, its second input, and a shift of its
        output.
        """
        needed = {name: self._ancestors(name) for name in outputs}
        if open_weight:
            source = self._producer[tensor]
            dependent = [name for name in outputs if source in needed[name]]
        else:
            dependent = [
                name for name in outputs if any(tensor in self._reads[index] for index in needed[name])
            ]
        given = [name for name in outputs if name == tensor and name not in dependent]
        if not dependent:
            return Downstream(tensor, tuple(given), (), None, {}, self._batches)
        indices = dict.fromkeys(index for name in dependent for index in needed[name])
        nodes, opened = [self._nodes[index] for index in indices], {}
        if open_weight:
            layer = self._nodes[source]
            nodes = [new for node in nodes for new in (_opened(node) if node is layer else [node])]
            weight = np.asarray(self._constant(layer.input[1]))
            # Values per channel, with an axis of size 1 for each axis of the kernel.
            opened = {WEIGHT: weight, SHIFT: np.zeros([1] * (weight.ndim - 1), weight.dtype)}
        else:
            opened = {tensor: self._live[tensor][0]}
        session, others = self._segment(nodes, dependent, opened)
        names = tuple(name for name in outputs if name in dependent or name in given)
        live = {name: self._live[name] for name in others}
        return Downstream(tensor, names, tuple(dependent), session, live, self._batches)

    def _ancestors(self, tensor: str) -> list[int]:
        """Nodes that have to run for a tensor, in an order in which they can."""
        order: list[int] = []
        seen: set[int] = set()
        # Depth first with a stack of its own: Python's would not do for a network of a thousand nodes.
        stack = [(tensor, False)]
        while stack:
            name, expanded = stack.pop()
            index = self._producer.get(name)
            if index is None or name in self._live:
                continue
            if expanded:
                if index not in seen:
                    seen.add(index)
                    order.append(index)
            elif index not in seen:
                stack.append((name, True))
                stack.extend((read, False) for read in self._reads[index])
        return order

    def _run(self, tensors: Sequence[str]) -> dict[str, Batches]:
        """Run the segment up to some tensors, keep what others still need, and forget what nobody does."""
        indices = list(dict.fromkeys(index for tensor in tensors for index in self._ancestors(tensor)))
        nodes = [self._nodes[index] for index in indices]
        for index in indices:
            self._waiting.subtract(self._reads[index])
        keep = sorted(name for name in _outputs(nodes) if self._waiting[name] > 0 or name in tensors)
        session, inputs = self._segment(nodes, keep, {})

        def run(batch: int) -> list[Value | Stored]:
            # Large values are read, and written again, inside of the thread: one batch of them is in memory.
            results = session.run({name: self._live[name][batch] for name in inputs}, keep)
            return [stored(value, self._batches) for value in results]

        results = _side_by_side(run, self._batches, 1 if self._copies_weights(nodes) else os.cpu_count())
        made = {name: Batches(result[position] for result in results) for position, name in enumerate(keep)}
        self._live |= made
        for name in {*tensors, *(name for index in indices for name in self._reads[index])} - {tensors[-1]}:
            if self._waiting[name] <= 0:
                self._live.pop(name, None)
                self._replaced.pop(name, None)
        return {tensor: made[tensor] for tensor in tensors}

    def _segment(
        self, nodes: Sequence[NodeProto], outputs: Sequence[str], opened: Mapping[str, Value]
    ) -> tuple[Session, list[str]]:
        """Session of some nodes, and the tensors that it reads besides the opened ones, given by example."""
        read = {name for node in nodes for name in node_inputs(node)}
        constants = sorted(name for name in read if self._is_constant(name))
        inputs = sorted(read - _outputs(nodes) - set(constants) - set(opened))
        examples = {name: self._live[name][0] for name in inputs} | dict(opened)
        large = {name for name in constants if self._is_large(name)}
        session = Session(
            self._serialized(nodes, examples, outputs, constants, large),
            f"part of the {self._what} up to {outputs[0]!r}",
            disable_qdq=self._disable_qdq,
            # A sum that is split among threads depends on their number. On one thread per batch the result
            # does not, and as batches run side by side no core is idle.
            threads=1,
            # Each segment runs once or a few times: memory kept for the next run would be kept in vain.
            arena=False,
            blocks=all(self._size(name) < MANY_CODES for name in constants if name not in large),
            arrays={name: self._constant(name) for name in sorted(large)},
        )
        return session, inputs

    def _serialized(
        self,
        nodes: Sequence[NodeProto],
        examples: Mapping[str, Value],
        outputs: Sequence[str],
        constants: Sequence[str],
        large: Collection[str],
    ) -> bytes:
        """Model of some nodes. A function of its own, so that no second copy of its weights stays at load."""
        graph = helper.make_graph(
            nodes,
            "segment",
            [_value_info(name, example) for name, example in examples.items()],
            # Without types: ONNX Runtime infers those of outputs.
            [helper.make_empty_tensor_value_info(name) for name in outputs],
        )
        model = helper.make_model(
            graph,
            opset_imports=self._proto.opset_import,
            functions=self._proto.functions,
            ir_version=max(self._proto.ir_version, LOCAL_FUNCTIONS),
        )
        for name in constants:
            array = np.asarray(self._constant(name))
            if name in large:
                dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
                model.graph.input.append(helper.make_tensor_value_info(name, dtype, array.shape))
            else:
                model.graph.initializer.add().CopyFrom(numpy_helper.from_array(array, name))
        return bytes(model.SerializeToString())

    def _constant(self, name: str) -> Value:
        return self._replaced[name] if name in self._replaced else self._table[name]

    def _is_large(self, name: str) -> bool:
        """Whether a constant is fed to a session instead of being written into its model."""
        return self._size(name) >= FED and (name in self._replaced or self._table.data_type(name) in PLAIN)

    def _copies_weights(self, nodes: Sequence[NodeProto]) -> bool:
        """Whether nodes cast or move a weight that is fed to them, which takes memory in every run."""
        fed = [(node, name) for node in nodes for name in node_inputs(node) if self._is_constant(name)]
        return any(
            self._is_large(name)
            and (self._constant(name).dtype != np.float32 or op_key(node.op_type, node.domain) not in OPS)
            for node, name in fed
        )

    def _is_constant(self, name: str) -> bool:
        return name in self._replaced or name in self._table

    def _size(self, name: str) -> int:
        """Elements of a constant."""
        return math.prod(self._replaced[name].shape if name in self._replaced else self._table.shape(name))


@dataclass(frozen=True, eq=False)
class Downstream:
    """The part of a model after one tensor; made by `PartialRun.downstream`, and run as often as wanted.

    ``outputs`` are the tensors that depend on the opened one, and that one itself if it was asked for;
    ``_others`` is what else the session reads.
    """

    tensor: str
    outputs: tuple[str, ...]
    _computed: tuple[str, ...]
    _session: Session | None
    _others: Mapping[str, Batches]
    _batches: int

    def __call__(self, values: Sequence[Value]) -> dict[str, list[Value]]:
        """Outputs, batch by batch, for values of the tensor, one for each batch."""
        given = {self.tensor: list(values)} if self.tensor in self.outputs else {}
        return given | self._run([{self.tensor: value} for value in values])

    def with_weight(self, weight: Value, shift: Value) -> dict[str, list[Value]]:
        """Outputs, batch by batch, for a weight of the opened node and a shift to subtract from its output.

        ``weight`` has the shape and dtype of the node's own; ``shift`` one axis less, the channels in front.
        """
        return self._run([{WEIGHT: weight, SHIFT: shift}] * self._batches)

    def _run(self, opened: Sequence[Mapping[str, Value]]) -> dict[str, list[Value]]:
        session = self._session
        if session is None:
            return {}

        def run(batch: int) -> list[Value]:
            others = {name: values[batch] for name, values in self._others.items()}
            return session.run({**others, **opened[batch]}, self._computed)

        results = _side_by_side(run, len(opened), os.cpu_count())
        return {
            name: [result[position] for result in results] for position, name in enumerate(self._computed)
        }


def _side_by_side(run: Callable[[int], T], batches: int, workers: int | None) -> list[T]:
    """Results of all batches, in their order, so many at a time. ONNX Runtime lets go of the interpreter
    lock: threads are enough.
    """
    # Threads that live longer would each keep memory of its own: 30 MB more on ResNet-56.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(batches)))


def _opened(layer: NodeProto) -> list[NodeProto]:
    """A node with an open weight, and the subtraction of an open shift from its output."""
    node = NodeProto()
    node.CopyFrom(layer)
    node.input[1], node.output[0] = WEIGHT, UNSHIFTED
    return [node, helper.make_node("Sub", [UNSHIFTED, SHIFT], [layer.output[0]])]


def _outputs(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output if name}


def _value_info(name: str, array: Value) -> ValueInfoProto:
    """Type of an input by example, of any size: batches may differ, the last one is often smaller."""
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, dtype, [None] * array.ndim)

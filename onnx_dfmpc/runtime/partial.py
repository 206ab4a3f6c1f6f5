"""Run a model piece by piece under ONNX Runtime, holding only the tensors that are still needed, and of large
ones a batch at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnx_dfmpc.errors import DfmpcError, ModelError
from onnx_dfmpc.model.constants import ConstantTable, outer_names
from onnx_dfmpc.model.protobuf import subgraphs
from onnx_dfmpc.runtime.batches import Batches, Stored, Value, stored
from onnx_dfmpc.runtime.downstream import SHIFT, UNSHIFTED, WEIGHT, Rest, Tail

SILENT = 4


class PartialRun:
    """A float model and a few batches of inputs; any tensor can be asked for, in the order of the graph.

    A tensor is forgotten when the last node that reads it has run. Every batch runs on one thread, so that
    the result does not depend on the number of threads; batches run side by side.

    Parameters
    ----------
    proto : ModelProto
    table : ConstantTable
        Of the same model.
    feeds : sequence of mapping
        Arrays by name, one mapping per batch: the model's inputs, or whatever tensors those that are asked
        for depend on.
    disable_qdq : bool
        Fold dequantized weights: for models with quantized weights and float activations.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run a part of the model.
    """

    def __init__(
        self,
        proto: ModelProto,
        table: ConstantTable,
        feeds: Sequence[Mapping[str, Value]],
        *,
        disable_qdq: bool = False,
    ) -> None:
        self._proto = proto
        self._table = table
        self._disable_qdq = disable_qdq
        self._nodes = [
            node for node in proto.graph.node if not all(name in table for name in node.output if name)
        ]
        self._replaced: dict[str, Value] = {}
        self._producer = {
            name: index for index, node in enumerate(self._nodes) for name in node.output if name
        }
        self._reads = [sorted(set(_inputs(node))) for node in self._nodes]
        self._waiting = Counter(name for names in self._reads for name in names)
        self._batches = len(feeds)
        self._live = {name: Batches(feed[name] for feed in feeds) for name in feeds[0]}

    def value(self, name: str) -> Batches:
        """Value of a tensor for each batch."""
        if name not in self._live:
            self._run(self._ancestors(name), name)
        return self._live[name]

    def put(self, name: str, values: Iterable[Value]) -> None:
        """Let the nodes that have not run yet see other values of a tensor, one for each batch."""
        self._live[name] = Batches(stored(value, self._batches) for value in values)

    def replace(self, output: str, position: int, array: Value) -> None:
        """Give the node that makes ``output``, before it has run, another constant as its input at
        ``position``.
        """
        index = self._producer[output]
        node = NodeProto()
        node.CopyFrom(self._nodes[index])
        name = f"{node.input[position]}::{output}"
        node.input[position] = name
        self._nodes[index] = node
        self._waiting.subtract(self._reads[index])
        self._reads[index] = sorted(set(_inputs(node)))
        self._waiting.update(self._reads[index])
        self._replaced[name] = array

    def rest(self, output: str, names: Sequence[str], shift: Value) -> Rest:
        """The part of the model from the node that makes ``output``, which has not run yet, to tensors behind
        it.

        The node's weight (its second input) and a shift of its output are left open. The stream stays as it
        is.

        Parameters
        ----------
        output : str
        names : sequence of str
            Those that do not depend on ``output`` are left out.
        shift : array
            An example of the shift.
        """
        opened = self._producer[output]
        needed = {name: self._ancestors(name) for name in names}
        names = [name for name in names if opened in needed[name]]
        indices = list(dict.fromkeys(index for name in names for index in needed[name]))
        layer = NodeProto()
        layer.CopyFrom(self._nodes[opened])
        weight, layer.input[1], layer.output[0] = layer.input[1], WEIGHT, UNSHIFTED
        changed = [layer, helper.make_node("Sub", [UNSHIFTED, SHIFT], [output])]
        nodes = [node for index in indices for node in (changed if index == opened else [self._nodes[index]])]
        made = {name for node in nodes for name in node.output if name}
        read = {name for node in nodes for name in _inputs(node)}
        feeds = sorted(name for name in read - made - {WEIGHT, SHIFT} if self._constant(name) is None)
        examples = {name: self._live[name][0] for name in feeds} | {
            WEIGHT: np.asarray(self._constant(weight)),
            SHIFT: shift,
        }
        session = self._session(nodes, examples, names, read)
        batches = [{name: self._live[name][batch] for name in feeds} for batch in range(self._batches)]
        return Rest(names, batches, lambda feed: list(session.run(names, feed)))

    def tail(self, tensor: str, names: Sequence[str]) -> Tail:
        """The part of the model from a tensor whose value was just asked for to tensors behind it. The stream
        stays as it is.

        Parameters
        ----------
        tensor : str
        names : sequence of str
            Those that do not depend on ``tensor`` are left out.
        """
        needed = {name: self._ancestors(name) for name in names}
        behind = [name for name in names if any(tensor in self._reads[index] for index in needed[name])]
        heard = [name for name in names if name in behind or name == tensor]
        if not behind:
            return Tail(tensor, heard, [{}] * self._batches, lambda _: [])
        indices = list(dict.fromkeys(index for name in behind for index in needed[name]))
        nodes = [self._nodes[index] for index in indices]
        made = {name for node in nodes for name in node.output if name}
        read = {name for index in indices for name in self._reads[index]}
        feeds = sorted(name for name in read - made if self._constant(name) is None)
        session = self._session(nodes, {name: self._live[name][0] for name in feeds}, behind, read)
        batches = [{name: self._live[name][batch] for name in feeds} for batch in range(self._batches)]
        return Tail(tensor, heard, batches, lambda feed: list(session.run(behind, feed)))

    def _constant(self, name: str) -> Value | None:
        if name in self._replaced:
            return self._replaced[name]
        return self._table.get(name)

    def _ancestors(self, name: str) -> list[int]:
        """Nodes that have to run for a tensor, in an order in which they can."""
        order: list[int] = []
        seen: set[int] = set()
        stack = [(name, False)]
        while stack:
            tensor, expanded = stack.pop()
            index = self._producer.get(tensor)
            if index is None or tensor in self._live:
                continue
            if expanded:
                if index not in seen:
                    seen.add(index)
                    order.append(index)
            elif index not in seen:
                stack.append((tensor, True))
                stack.extend((read, False) for read in self._reads[index])
        return order

    def _run(self, indices: list[int], wanted: str) -> None:
        nodes = [self._nodes[index] for index in indices]
        made = {name for node in nodes for name in node.output if name}
        read = {name for index in indices for name in self._reads[index]}
        for index in indices:
            self._waiting.subtract(self._reads[index])
        keep = sorted(name for name in made if self._waiting[name] > 0 or name == wanted)
        feeds = sorted(name for name in read - made if self._constant(name) is None)
        session = self._session(nodes, {name: self._live[name][0] for name in feeds}, keep, read)

        def run(batch: int) -> list[Value | Stored]:
            found = session.run(keep, {name: self._live[name][batch] for name in feeds})
            return [stored(value, self._batches) for value in found]

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                results = list(pool.map(run, range(self._batches)))
        except DfmpcError:
            raise
        except Exception as error:  # ONNX Runtime has no common base for its errors
            raise ModelError(f"cannot run the float model up to {wanted!r}: {_first_line(error)}") from error
        for position, name in enumerate(keep):
            self._live[name] = Batches(result[position] for result in results)
        for name in read:
            if self._waiting[name] <= 0 and name != wanted:
                self._live.pop(name, None)
                self._replaced.pop(name, None)

    def _session(
        self, nodes: list[NodeProto], examples: Mapping[str, Value], keep: list[str], read: set[str]
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        options.enable_cpu_mem_arena = False  # few runs: not worth keeping memory for the next
        if self._disable_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            return ort.InferenceSession(
                self._serialized(nodes, examples, keep, read), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # as above
            raise ModelError(
                f"ONNX Runtime cannot load the float model around {keep[0]!r}: {_first_line(error)}"
            ) from error

    def _serialized(
        self, nodes: list[NodeProto], examples: Mapping[str, Value], keep: list[str], read: set[str]
    ) -> bytes:
        """Model of some nodes; no second copy of its weights is left when it is loaded."""
        graph = helper.make_graph(
            nodes,
            "segment",
            [_value_info(name, example) for name, example in examples.items()],
            [helper.make_empty_tensor_value_info(name) for name in keep],
        )
        model = helper.make_model(
            graph,
            opset_imports=self._proto.opset_import,
            functions=self._proto.functions,
            ir_version=max(self._proto.ir_version, 8),
        )
        for name in sorted(read):
            if (array := self._constant(name)) is not None:
                model.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.asarray(array), name))
        return bytes(model.SerializeToString())


def _inputs(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, those that its bodies capture included."""
    yield from (name for name in node.input if name)
    for body in subgraphs(node):
        yield from outer_names(body)


def _value_info(name: str, array: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

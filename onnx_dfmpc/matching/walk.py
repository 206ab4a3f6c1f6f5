"""Walk a graph without changing it: names, constants, who reads what.

The graph is onnx-graphsurgeon's, since it links nodes and tensors both ways. Constants are those of
`ConstantTable`; what a caller may override is left out of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, count

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.model.protobuf import defined_names, graphs, subgraphs
from onnx_dfmpc.spec.ops import OPS, op_key

_FOLDABLE = frozenset({
    "Add", "Cast", "CastLike", "Concat", "ConstantOfShape", "Div", "Expand", "Gather", "Identity", "Mul",
    "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip
"""The arithmetic on shapes and small constants that exporters leave in the graph."""


LARGEST = 1e15
"""Size of a weight from which on sums of squares leave float32."""


def op(node: gs.Node) -> str:
    """Operator of a node, with its domain in front where that is not ONNX's own."""
    return op_key(node.op, node.domain)


def why_numbers(walk: Walk, what: str, name: str) -> str:
    """Why a constant cannot be computed with, in words; empty if it can."""
    if walk.constants.is_mapped(name) and not walk.read_mapped:
        return ""
    values = walk.constants[name]
    largest = max(abs(float(values.min())), abs(float(values.max())))  # NaN goes through
    if not np.isfinite(largest):
        return f"{what} '{name}' holds {'NaN' if np.isnan(largest) else 'infinity'}"
    return f"{what} '{name}' holds {largest:.3g}: too large to be squared" if largest > LARGEST else ""


def reads_shape(node: gs.Node) -> bool:
    """Whether a node looks at nothing but the shape of its input."""
    return op(node) in ("Shape", "Size")


def has_input(node: gs.Node, position: int) -> bool:
    """Whether a node has an input there: optional ones may be missing, or empty."""
    return len(node.inputs) > position and node.inputs[position].name != ""


class Walk:
    """One model, read only; large initializers are not decoded. ModelError if graphsurgeon cannot read it.

    ``nodes`` are those of the main graph in the order of the file, which is topological; ``bodies`` those of
    subgraphs, ``inner`` these and those of local functions, each with the place it is in, in words.
    ``constants`` are what no caller can change, ``sparse`` the names of sparse initializers. ``listed`` are
    initializers that are graph inputs too, ``overridable`` those among them that a caller is meant to
    replace. ``outputs`` are the names of the graph's outputs, ``local`` those that bodies give.
    """

    def __init__(self, proto: ModelProto, *, read_mapped: bool = True) -> None:
        try:
            with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
                graph = gs.import_onnx(proto)
        except Exception as error:
            raise ModelError(
                f"the graph cannot be read: {error}",
                hint="onnx.checker.check_model(path, full_check=True) says more",
            ) from error
        self.read_mapped = read_mapped
        self.opset = opset_of(proto)
        self.nodes: list[gs.Node] = list(graph.nodes)
        self.bodies = [
            (node, f"a subgraph of {op(owner)} '{owner.name}'")
            for owner in self.nodes
            for node in _nested(owner)
        ]
        self.inner = list(self.bodies)
        for function in graph.functions:
            place = f"the local function '{function.name}'"
            self.inner += [(node, place) for outer in function.nodes for node in (outer, *_nested(outer))]
        self._names = _unique_names([*self.nodes, *(node for node, _ in self.inner)])
        self._main = {id(node) for node in self.nodes}
        self._tensors = {tensor.name: tensor for node in self.nodes for tensor in node.outputs}
        self.outputs = {tensor.name for tensor in graph.outputs}
        bodies = (body for node in proto.graph.node for body in subgraphs(node))
        self.local = {name for body in bodies for inner in graphs(body) for name in defined_names(inner)}
        self._used_inside = {tensor.name: owner for owner in self.nodes for tensor in nested_reads(owner)}
        self.sparse = {tensor.values.name for tensor in proto.graph.sparse_initializer}
        initializers = {tensor.name for tensor in proto.graph.initializer} | self.sparse
        self.listed = initializers & {value.name for value in proto.graph.input}
        # Where every initializer is listed, as IR 3 demands and some exporters do, the list says nothing.
        self.overridable = set() if proto.ir_version < 4 or self.listed == initializers else self.listed
        self.constants = ConstantTable(proto, without=self.overridable)
        self._proto_nodes = proto.graph.node
        self._foldable = self._find_foldable()
        self._folded: dict[str, NDArray[np.generic] | None] = {}

    def name(self, node: gs.Node) -> str:
        """Name of a node, unique in the model: its own, or its first output's if that is empty or shared."""
        return self._names[id(node)]

    @property
    def weighted_nodes(self) -> int:
        """Number of weighted nodes, wherever they are."""
        return sum(op(node) in OPS for node in (*self.nodes, *(node for node, _ in self.inner)))

    def tensor(self, name: str) -> gs.Tensor:
        """The output of a node of the main graph, by name."""
        return self._tensors[name]

    def origin(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor that a chain of Identity nodes starts from."""
        while tensor.inputs and op(tensor.inputs[0]) == "Identity":
            tensor = tensor.inputs[0].inputs[0]
        return tensor

    def is_constant(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is stored, and nobody can change it."""
        return tensor.name in self.constants

    def values(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        """Values that do not depend on the graph's inputs, stored or computed from those; else None."""
        name = tensor.name
        if name in self.constants:
            return self.constants[name]
        if name not in self._foldable:
            return None
        if name not in self._folded:
            self._folded[name] = self._fold(name)
        return self._folded[name]

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Nodes of the main graph that read the values of a tensor (not only its shape), each once."""
        readers = {id(node): node for node in tensor.outputs}
        return [node for i, node in readers.items() if i in self._main and not reads_shape(node)]

    def only_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that alone reads a tensor, through Identity; None if several do or it leaves the graph."""
        while True:
            readers = self.readers(tensor)
            if len(readers) != 1 or self.leaves(tensor):
                return None
            if op(readers[0]) != "Identity":
                return readers[0]
            tensor = readers[0].outputs[0]

    def leaves(self, tensor: gs.Tensor) -> str:
        """Who outside the main graph's nodes sees a tensor, in words; empty if nobody does."""
        if tensor.name in self.outputs:
            return f"'{tensor.name}' is a graph output"
        if tensor.name in self._used_inside:
            owner = self._used_inside[tensor.name]
            return f"'{tensor.name}' is used in a subgraph of {op(owner)} '{self.name(owner)}'"
        return ""

    def aliases(self, tensor: gs.Tensor) -> Iterator[gs.Tensor]:
        """The tensor and every Identity of it."""
        waiting = [tensor]
        while waiting:
            tensor = waiting.pop()
            yield tensor
            waiting += [node.outputs[0] for node in self.readers(tensor) if op(node) == "Identity"][::-1]

    def _find_foldable(self) -> dict[str, int]:
        """Tensors computed from constants alone, each with the position of its node in the file."""
        foldable: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            if op(node) not in _FOLDABLE:
                continue
            # CastLike takes no more than a type from its second input.
            reads = [tensor for tensor in node.inputs[: 1 if op(node) == "CastLike" else None] if tensor.name]
            if all(tensor.name in foldable or self.is_constant(tensor) for tensor in reads):
                foldable |= {tensor.name: position for tensor in node.outputs}
        return foldable

    def _fold(self, name: str) -> NDArray[np.generic] | None:
        """Compute a foldable tensor from constants; None where onnx's reference does not know an operator."""
        positions: set[int] = set()
        feeds: dict[str, NDArray[np.generic]] = {}
        waiting = [name]
        while waiting:
            source = waiting.pop()
            if source in self.constants:
                feeds[source] = self.constants[source]
            elif source and self._foldable[source] not in positions:
                node = self._proto_nodes[self._foldable[source]]
                positions.add(self._foldable[source])
                waiting += node.input[:1] if node.op_type == "CastLike" else node.input
        nodes = [
            helper.make_node("Identity", node.input[:1], node.output) if node.op_type == "CastLike" else node
            for node in (self._proto_nodes[position] for position in sorted(positions))
        ]
        untyped = helper.make_empty_tensor_value_info
        graph = helper.make_graph(nodes, "fold", [untyped(source) for source in feeds], [untyped(name)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            (result,) = ReferenceEvaluator(model).run(None, feeds)
        except Exception:  # whatever an implementation in Python may raise
            return None
        return np.asarray(result)


def _nested(node: gs.Node) -> list[gs.Node]:
    return [inner for graph in node.subgraphs(recursive=True) for inner in graph.nodes]


def nested_reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors that the bodies of a node read or return."""
    for graph in node.subgraphs(recursive=True):
        yield from chain(graph.outputs, *(inner.inputs for inner in graph.nodes))


def _unique_names(nodes: list[gs.Node]) -> dict[int, str]:
    given = Counter(node.name for node in nodes)
    taken = {name for name, uses in given.items() if name and uses == 1}
    names = {}
    for node in nodes:
        name = node.name
        if name not in taken:
            base = next((tensor.name for tensor in node.outputs if tensor.name), node.op)
            name = next(n for n in chain([base], (f"{base}_{i}" for i in count(1))) if n not in taken)
            taken.add(name)
        names[id(node)] = name
    return names

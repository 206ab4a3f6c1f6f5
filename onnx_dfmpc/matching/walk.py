"""Walk a graph without changing it: nodes in order, names, constants, who reads what.

Matching asks its questions here. The walk is onnx-graphsurgeon's; what that library leaves out (which
initializers are also graph inputs, what a subgraph uses) is read beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import chain, count

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.spec import Edge

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SHAPE_READERS = frozenset({"Shape", "Size"})
FOLDABLE = frozenset(
    {
        "Add",
        "Cast",
        "CastLike",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Expand",
        "Gather",
        "Identity",
        "Mul",
        "Range",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)


def op(node: gs.Node) -> str:
    """Operator of a node, with its domain in front where that is not ONNX's own."""
    return str(node.op) if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}"


class Walk:
    """One model, read only; large initializers are not loaded.

    Parameters
    ----------
    proto : onnx.ModelProto

    Attributes
    ----------
    nodes : list of gs.Node
        Nodes of the main graph in topological order: the file's own order where that is one.
    inner : list of (gs.Node, str)
        Nodes of subgraphs and local functions, each with the place it is in, in words.
    index : dict
        ``id(node)`` -> position of the node in ``proto.graph.node``.
    opset : int
        Version of ONNX's own operators.
    listed, overridable : set of str
        Initializers that are graph inputs too, and those among them that a caller is meant to replace. Where
        every initializer is listed, as IR 3 demands and some exporters do, the list is a habit and says
        nothing.
    sparse : set of str
        Names of sparse initializers.

    Raises
    ------
    ModelError
        If onnx-graphsurgeon cannot read the graph, or the graph has a cycle.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        try:
            with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
                graph = gs.import_onnx(proto)
        except Exception as error:
            raise ModelError(
                f"the graph cannot be read: {error}",
                hint="onnx.checker.check_model(path, full_check=True) says more",
            ) from error
        self.opset = int(graph.opset or 1)
        self.index = {id(node): i for i, node in enumerate(graph.nodes)}
        self.nodes: list[gs.Node] = _topological(graph.nodes)
        self.inner = [
            (node, f"a subgraph of {op(owner)} '{owner.name}'")
            for owner in self.nodes
            for node in _below(owner)
        ]
        for function in graph.functions:
            place = f"the local function '{function.name}'"
            self.inner += [(node, place) for outer in function.nodes for node in (outer, *_below(outer))]
        self._names = _unique_names([*self.nodes, *(node for node, _ in self.inner)])
        self._tensors = {tensor.name: tensor for node in self.nodes for tensor in node.outputs}
        self._protos = {output: node for node in proto.graph.node for output in node.output}
        self._outputs = {tensor.name for tensor in graph.outputs}
        self._used_inside = {tensor.name: owner for owner in self.nodes for tensor in _read_below(owner)}
        self.sparse = {tensor.values.name for tensor in proto.graph.sparse_initializer}
        initializers = {tensor.name for tensor in proto.graph.initializer} | self.sparse
        self.listed = initializers & {value.name for value in proto.graph.input}
        self.overridable = set() if proto.ir_version < 4 or self.listed == initializers else self.listed
        self._values: dict[str, NDArray[np.generic] | None] = {}
        self._foldable = self._find_foldable()

    def name(self, node: gs.Node) -> str:
        """Name of a node, unique in the model: its own, or that of its first output where it has none or
        shares it.
        """
        return self._names[id(node)]

    @property
    def weighted_nodes(self) -> int:
        """Number of weighted nodes, wherever they are."""
        return sum(op(node) in WEIGHTED for node in (*self.nodes, *(node for node, _ in self.inner)))

    def tensor(self, name: str) -> gs.Tensor:
        """The output of a node of the main graph, by name."""
        return self._tensors[name]

    def origin(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor that a chain of Identity nodes starts from."""
        while tensor.inputs and op(tensor.inputs[0]) == "Identity":
            tensor = tensor.inputs[0].inputs[0]
        return tensor

    def constant(self, tensor: gs.Tensor) -> gs.Constant | None:
        """The constant behind a tensor, through Identity and Constant nodes, not loaded; None if it can
        change at run time.
        """
        origin = self.origin(tensor)
        if isinstance(origin, gs.Constant):
            return None if origin.name in self.overridable else origin
        if not origin.inputs or op(origin.inputs[0]) != "Constant":
            return None
        value = next(iter(origin.inputs[0].attrs.values()), None)
        if value is None or isinstance(value, gs.Constant):
            return value
        array = np.asarray(value)
        return gs.Constant(origin.name, array.astype(np.float32) if array.dtype == np.float64 else array)

    def values(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        """Values that do not depend on the graph's inputs, folding the small arithmetic that exporters leave
        behind; else None.
        """
        if tensor.name not in self._values:
            self._values[tensor.name] = self._fold(tensor)
        return self._values[tensor.name]

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Nodes of the main graph that read the values of a tensor (not only its shape), each once."""
        return list(
            {
                id(node): node
                for node in tensor.outputs
                if id(node) in self.index and op(node) not in SHAPE_READERS
            }.values()
        )

    def only_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that alone reads a tensor, through Identity; None if there are several, or if the tensor
        leaves the graph.
        """
        readers = self.readers(tensor)
        if len(readers) != 1 or self.leaves(tensor):
            return None
        return self.only_reader(readers[0].outputs[0]) if op(readers[0]) == "Identity" else readers[0]

    def leaves(self, tensor: gs.Tensor) -> str:
        """Who outside the main graph's nodes sees a tensor, in words; empty if nobody does."""
        if tensor.name in self._outputs:
            return f"'{tensor.name}' is a graph output"
        if tensor.name in self._used_inside:
            owner = self._used_inside[tensor.name]
            return f"'{tensor.name}' is used in a subgraph of {op(owner)} '{self.name(owner)}'"
        return ""

    def aliases(self, tensor: gs.Tensor) -> Iterator[gs.Tensor]:
        """The tensor and every Identity of it."""
        yield tensor
        for node in self.readers(tensor):
            if op(node) == "Identity":
                yield from self.aliases(node.outputs[0])

    def edges(self) -> dict[str, Edge]:
        """Output names of the weighted nodes that no other weighted node comes before ("first") or behind
        ("last").
        """
        fed: set[int] = set()
        for node in self.nodes:
            sources = [source for tensor in chain(node.inputs, _read_below(node)) for source in tensor.inputs]
            if any(id(source) in fed or op(source) in WEIGHTED for source in sources):
                fed.add(id(node))
        feeding: set[int] = set()
        for node in reversed(self.nodes):
            readers = [reader for tensor in node.outputs for reader in tensor.outputs]
            owners = [
                self._used_inside[tensor.name] for tensor in node.outputs if tensor.name in self._used_inside
            ]
            if any(id(reader) in feeding or op(reader) in WEIGHTED for reader in (*readers, *owners)):
                feeding.add(id(node))
        edges: dict[str, Edge] = {}
        for node in self.nodes:
            if op(node) in WEIGHTED and (id(node) not in feeding or id(node) not in fed):
                edges[node.outputs[0].name] = "last" if id(node) not in feeding else "first"
        return edges

    def _find_foldable(self) -> set[str]:
        """Tensors that do not depend on the graph's inputs, Constant nodes and initializers left out."""
        foldable: set[str] = set()
        for node in self.nodes:
            reads = [tensor for tensor in node.inputs[: 1 if op(node) == "CastLike" else None] if tensor.name]
            if op(node) == "Shape":
                fixed = self.constant(reads[0]) is not None
            else:
                fixed = op(node) in FOLDABLE and all(
                    tensor.name in foldable or self.constant(tensor) is not None for tensor in reads
                )
            if fixed:
                foldable.update(tensor.name for tensor in node.outputs)
        return foldable

    def _fold(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        constant = self.constant(tensor)
        if constant is not None:
            return _load(constant)
        if tensor.name not in self._foldable:
            return None
        node = tensor.inputs[0]
        if op(node) == "Shape":
            shaped = self.constant(node.inputs[0])
            return (
                None
                if shaped is None
                else np.asarray(shaped.shape, np.int64)[node.attrs.get("start", 0) : node.attrs.get("end")]
            )
        if op(node) in ("Identity", "CastLike"):
            return self.values(node.inputs[0])
        feeds = {source.name: self.values(source) for source in node.inputs if source.name}
        return (
            None
            if any(value is None for value in feeds.values())
            else _evaluate(self._protos[tensor.name], feeds, self.opset)
        )


def _below(node: gs.Node) -> list[gs.Node]:
    return [inner for graph in node.subgraphs(recursive=True) for inner in graph.nodes]


def _read_below(node: gs.Node) -> Iterator[gs.Tensor]:
    for graph in node.subgraphs(recursive=True):
        yield from chain(graph.outputs, *(inner.inputs for inner in graph.nodes))


def _topological(nodes: list[gs.Node]) -> list[gs.Node]:
    place = {id(node): i for i, node in enumerate(nodes)}
    before = {
        i: {
            place[id(source)]
            for tensor in chain(node.inputs, _read_below(node))
            for source in tensor.inputs
            if id(source) in place
        }
        for i, node in enumerate(nodes)
    }
    if all(i > j for i, earlier in before.items() for j in earlier):
        return list(nodes)
    try:
        return [nodes[i] for i in TopologicalSorter(before).static_order()]
    except CycleError as error:
        name = nodes[error.args[1][0]].name
        raise ModelError(
            f"the graph has a cycle through node '{name}'", hint="the file is broken: export it again"
        ) from error


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


def _load(constant: gs.Constant) -> NDArray[np.generic]:
    try:
        return np.asarray(constant.values)
    except Exception as error:
        raise ModelError(
            f"constant '{constant.name}' cannot be read: {error}",
            hint="load the model with its external data",
        ) from error


def _evaluate(
    node: onnx.NodeProto, feeds: Mapping[str, NDArray[np.generic] | None], opset: int
) -> NDArray[np.generic] | None:
    """The node's output, or None where the reference implementation does not know this operator at this
    opset.
    """
    untyped = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "fold", [untyped(name) for name in feeds], [untyped(node.output[0])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        (result,) = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception:
        return None
    return np.asarray(result)

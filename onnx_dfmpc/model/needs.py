"""What one inference needs at least, told from shapes alone: memory, and multiplications.

Lower bounds: an estimate that is too high would refuse models that run. Memory is that of one node, since a
convolution cannot begin before its input is there, nor write its output into it. What else lives beside them,
work space of kernels, several inferences side by side and weights are not counted; an open dimension counts
as 1, and what shape inference does not know as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from onnx import ModelProto, NodeProto, helper, shape_inference

from onnx_dfmpc.model.constants import node_inputs
from onnx_dfmpc.model.protobuf import skeleton
from onnx_dfmpc.spec.ops import OPS, op_key

BESIDE = frozenset(OPS) | {"AveragePool", "MaxPool"}
"""Operators whose input and output are in memory together."""

NEW = BESIDE | {"Concat", "ConstantOfShape", "Expand", "Resize", "Tile", "Upsample"}
"""Operators whose output is made. Others may write over their input, or be fused with the node before."""

ONLY_SHAPE = ("Shape", "Size")
"""Operators for which the numbers of their input need not be made."""


@dataclass(frozen=True)
class Needs:
    """Bytes of the node that takes most of them, that node with its tensors in words, and multiplications of
    all weighted layers.
    """

    memory: int = 0
    where: str = ""
    products: int = 0


@dataclass(frozen=True)
class _Known:
    """A tensor whose shape is known, but for open dimensions."""

    shape: tuple[int, ...]
    item: int

    @property
    def size(self) -> int:
        return prod(self.shape) * self.item

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) or "1"


NOTHING = _Known((0,), 0)


def needs(proto: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Needs:
    """What one inference needs at least; ``shapes`` are whole shapes of inputs with open dimensions.

    Examples
    --------
    >>> from onnx import parser
    >>> needs(parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ...     g (float[N, 3, 100, 100] x, float[64, 3, 3, 3] w) => (float[N, 64, 98, 98] y) {
    ...         y = Conv(x, w) }'''))
    Needs(memory=2578624, where='y (Conv): 1x3x100x100 to 1x64x98x98', products=16595712)
    """
    known = _inferred(proto, shapes or {})
    constants = {tensor.name for tensor in proto.graph.initializer}
    most, where, products = 0, "", 0
    for node in _needed(proto):
        kind = op_key(node.op_type, node.domain)
        if kind not in NEW:
            continue
        made = known.get(node.output[0], NOTHING)
        data = known.get(node.input[0], NOTHING) if node.input else NOTHING
        beside = data.size if kind in BESIDE and node.input[0] not in constants else 0
        if made.size + beside > most:
            most = made.size + beside
            where = f"{node.name or node.output[0]} ({node.op_type}): {f'{data} to ' if beside else ''}{made}"
        if kind in OPS:
            products += _products(node, data, known.get(node.input[1], NOTHING), made)
    return Needs(most, where, products)


def _inferred(proto: ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, _Known]:
    """Tensors whose shapes can be inferred; none of a broken model, which loading says better."""
    outline = skeleton(proto)
    for value in outline.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    small = {tensor.name: tuple(tensor.dims) for tensor in outline.graph.initializer}
    try:
        graph = shape_inference.infer_shapes(outline, data_prop=True).graph
        known = {name: _Known(shape, 0) for name, shape in small.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                sizes = tuple(max(dim.dim_value, 1) for dim in kind.shape.dim)
                known[value.name] = _Known(sizes, helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
    except Exception:  # InferenceError, KeyError of an unknown type ...
        return {}
    return known


def _needed(proto: ModelProto) -> list[NodeProto]:
    """Nodes that an output depends on; where they are not sorted, some are missing."""
    wanted = {value.name for value in proto.graph.output}
    found = []
    for node in reversed(proto.graph.node):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            if node.op_type not in ONLY_SHAPE:
                wanted.update(node_inputs(node))
    return found[::-1]


def _products(node: NodeProto, data: _Known, weight: _Known, made: _Known) -> int:
    """Multiplications of a weighted layer; of a Gemm or MatMul the inner dimension times the outputs."""
    if not weight.shape or not data.shape:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        return prod((made if node.op_type == "Conv" else data).shape) * prod(weight.shape[1:])
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return prod(made.shape) * data.shape[0 if transposed else -1]

"""Scales and biases that are float16 numbers, in one tensor of 16 bits.

    FLOAT16 (n,) -> Cast(FLOAT) -> Mul(1/256) -> Split -> the tensors, by the names that they had

Nothing changes that is computed: these are the numbers of `storage.halves`, bit for bit, and every runtime
that was tried reads them. ONNX Runtime folds the nodes when it loads the model. A name and a length in a
Split also take fewer bytes than an initializer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.model.opset import DEFAULT_DOMAINS, opset_of
from onnx_dfmpc.model.protobuf import framed, framed_size, subgraphs, value_names, varint
from onnx_dfmpc.storage.halves import FACTOR, is_exact
from onnx_dfmpc.storage.types import TensorSpec, WeightLayout, small_tensor

SPLIT_OPSET = 13
"""First opset whose Split takes lengths as an input."""

MOST_NUMBERS = 1 << 16
"""Numbers of a vector: more than any layer has channels."""

READERS = {
    "DequantizeLinear": (1,),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Inputs that may be computed. Others, as the scales of a Resize or a batch norm's, some runtimes want to be
constants before they fold anything.
"""


def layer_bytes(layout: WeightLayout, *, packed: bool) -> int:
    """Bytes of a quantized weight in the file, its scales in one tensor with all others or in their own."""
    scales = [tensor for tensor in layout.tensors if tensor.data_type == TensorProto.FLOAT and tensor.dims]
    own = layout.size - sum(tensor.size for tensor in scales)
    return own + sum(_share(tensor) if packed else tensor.size for tensor in scales)


def _share(tensor: TensorSpec) -> int:
    """Bytes of a vector of the common tensor: its numbers, its name and its length in the Split."""
    count = tensor.dims[0]
    return 2 * count + framed(len(tensor.name)) + varint(count)


def pack_vectors(proto: ModelProto) -> None:
    """Put float vectors of such numbers into one tensor, in place, where that is smaller."""
    graph = proto.graph
    if opset_of(proto) < SPLIT_OPSET:
        return
    free = _free_names(graph)
    groups: dict[int, list[TensorProto]] = {}  # by dimensions: all but the first one are 1
    for tensor in graph.initializer:
        if tensor.name in free and _is_vector(tensor) and is_exact(numpy_helper.to_array(tensor)):
            groups.setdefault(len(tensor.dims), []).append(tensor)
    taken = value_names(graph)
    factor = numpy_helper.from_array(np.array(1 / FACTOR, np.float32), _fresh("half_unit", taken))
    made: list[NodeProto] = []
    for rank, tensors in groups.items():
        new, nodes = _packed(tensors, factor.name, f"halves{rank}", taken)
        before = sum(map(framed_size, tensors))
        if sum(map(framed_size, (*new, *nodes))) + (0 if made else framed_size(factor)) >= before:
            continue
        names = {tensor.name for tensor in tensors}
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name in names:
                del graph.initializer[index]
        graph.initializer.extend((*new, *(() if made else (factor,))))
        made += nodes
    if made:
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend((*made, *rest))


def _packed(
    tensors: Sequence[TensorProto], factor: str, name: str, taken: Collection[str]
) -> tuple[tuple[TensorProto, ...], tuple[NodeProto, ...]]:
    """Initializers and nodes that make these tensors."""
    values = np.concatenate([numpy_helper.to_array(tensor) for tensor in tensors]) * np.float32(FACTOR)
    codes, lengths, cast, scaled = (_fresh(f"{name}{suffix}", taken) for suffix in ("", "n", "c", "m"))
    new = (
        numpy_helper.from_array(values.astype(np.float16), codes),
        small_tensor(lengths, TensorProto.INT64, np.array([tensor.dims[0] for tensor in tensors])),
    )
    nodes = (
        helper.make_node("Cast", [codes], [cast], to=TensorProto.FLOAT),
        helper.make_node("Mul", [cast, factor], [scaled]),
        # The axis is the default, but OpenCV 5.0 has another one.
        helper.make_node("Split", [scaled, lengths], [tensor.name for tensor in tensors], axis=0),
    )
    return new, nodes


def _is_vector(tensor: TensorProto) -> bool:
    return bool(
        tensor.data_type == TensorProto.FLOAT
        and tensor.dims
        and 0 < tensor.dims[0] <= MOST_NUMBERS
        and prod(tensor.dims[1:]) == 1
        and tensor.data_location != TensorProto.EXTERNAL
    )


def _free_names(graph: GraphProto) -> set[str]:
    """Names that only inputs of `READERS` have, and no inputs or outputs of the graph or names in bodies."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    names: set[str] = set()
    for node in graph.node:
        may = READERS.get(node.op_type, ()) if node.domain in DEFAULT_DOMAINS else ()
        for position, name in enumerate(node.input):
            (names if position in may else fixed).add(name)
        for body in subgraphs(node):
            fixed |= value_names(body)
    return names - fixed


def _fresh(wanted: str, taken: Collection[str]) -> str:
    name = wanted
    while name in taken:
        name += "_"
    return name

"""What new tensors are called: short, since every byte of a name is in the file several times, and free in
the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from onnx_dfmpc.model.constants import used_names
from onnx_dfmpc.model.protobuf import value_names
from onnx_dfmpc.spec import MatchReport


@dataclass(frozen=True)
class LayerNames:
    """What the names of a layer's new tensors begin with, and the name of its float weight behind the nodes
    that unpack it.
    """

    label: str
    output: str


@dataclass(frozen=True)
class Names:
    """Names for every layer of a match report.

    Attributes
    ----------
    prefix : str
        What all new names begin with: with a digit behind it, those of a layer, with an underscore, those
        that layers share.
    layers : mapping
        By layer name.
    """

    prefix: str
    layers: Mapping[str, LayerNames]


def choose_names(proto: ModelProto, report: MatchReport) -> Names:
    """Names that the model does not have yet.

    The float weight keeps its own name where the layer alone reads it, so that the layer's node stays as it
    is.

    Parameters
    ----------
    proto : ModelProto
    report : MatchReport

    Examples
    --------
    >>> from onnx import parser
    >>> from onnx_dfmpc.matching.match import match
    >>> model = parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ...     g (float[N, 1] x) => (float[N, 2] y) <float[1, 2] w = {1, 2}> { [layer] y = MatMul(x, w) }''')
    >>> choose_names(model, match(model)).layers["layer"]
    LayerNames(label='q0', output='w')
    """
    taken = value_names(proto.graph) | {node.name for node in proto.graph.node}
    prefix = "q"
    while any(re.match(rf"{prefix}[\d_]", name) for name in taken):
        prefix += "_"
    readers = used_names(proto.graph)
    weights = {
        name: node.input[1] for node in proto.graph.node for name in node.output if len(node.input) > 1
    }
    layers = {}
    for position, layer in enumerate(report.layers):
        label, weight = f"{prefix}{position}", weights.get(layer.output, "")
        layers[layer.name] = LayerNames(label, weight if readers[weight] == 1 else f"{label}w")
    return Names(prefix, layers)

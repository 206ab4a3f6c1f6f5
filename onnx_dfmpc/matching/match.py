"""Match a graph: which nodes carry weights that can be quantized, what belongs to each, and which layers feed
which.

``walk`` asks onnx-graphsurgeon, ``layers`` sorts the weighted nodes, ``rules`` knows the operators between
two layers and ``chains`` follows them. Nothing here changes the model.
"""

from __future__ import annotations

from dataclasses import replace

import onnx

from onnx_dfmpc.matching.chains import find_chains
from onnx_dfmpc.matching.layers import find_layers
from onnx_dfmpc.matching.walk import Walk
from onnx_dfmpc.spec import MatchReport

__all__ = ["match"]


def match(proto: onnx.ModelProto) -> MatchReport:
    """Find the layers that can be quantized, the chains between them, and the weighted nodes that stay float.

    Parameters
    ----------
    proto : onnx.ModelProto
        Checked, with its data loaded (see ``graph.load``). It is not changed, and large weights are not read.

    Returns
    -------
    MatchReport
        Every Conv, ConvTranspose, Gemm and MatMul, in the main graph, a subgraph or a local function, is in
        ``layers`` or in ``skipped``.

    Raises
    ------
    ModelError
        If the graph cannot be walked, or a batch norm has parameters that make no sense.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     net (float[1, 2, 4, 4] x) => (float[1, 1, 2, 2] z)
    ...     <float[1, 2, 1, 1] w = {1, 2}, float[1, 1, 3, 3] v = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
    ...         y = Conv(x, w)
    ...         r = Relu(y)
    ...         z = Conv(r, v)
    ...     }''')
    >>> report = match(model)
    >>> [(layer.name, layer.activation) for layer in report.layers]
    [('y', 'Relu'), ('z', '')]
    >>> report.chains[0].consumers, report.chains[0].homogeneous
    (('z',), True)
    """
    walk = Walk(proto)
    layers, skipped = find_layers(walk)
    edges = walk.edges()
    return MatchReport(
        layers=tuple(replace(layer, edge=edges.get(layer.output, "")) for layer in layers),
        chains=tuple(find_chains(walk, layers)),
        skipped=tuple(skipped),
        weighted_nodes=walk.weighted_nodes,
    )

"""Outputs that end in a Sigmoid, on inputs that hold nothing for them to find.

A detector of faces or of text answers synthetic inputs with probabilities next to 0 everywhere. Their SQNR
is then that of the smallest numbers of the network: PP-OCRv4's text detector at a mean of 4 bits has 0 dB
there, and the same file has 25 dB in front of the Sigmoid, and 15 dB on pictures of text. So where both
models agree that there is nothing, the SQNR of such an output neither fails a validation nor predicts.
"""

from __future__ import annotations

import os

import onnx
from onnx import ModelProto

from onnx_dfmpc.evaluate.metrics import Comparison
from onnx_dfmpc.runtime.session import Model

NEAR_ZERO = 0.05
"""Root mean square of probabilities, and of their differences, below which they are nothing. A choice:
PP-OCR's detectors have 0.001 to 0.03 on synthetic pictures, 0.3 on pages of text.
"""

SIGMOIDS = ("Sigmoid", "HardSigmoid")

SHAPES = ("Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only put values into shape."""


def sigmoid_outputs(model: Model) -> frozenset[str]:
    """Names of the outputs whose values all come from a Sigmoid.

    Examples
    --------
    >>> from onnx import parser
    >>> sorted(sigmoid_outputs(parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ...     g (float[N, 4] x, float[N, 4] b) => (float[N, 8] y, float[N, 4] z) {
    ...         s = Sigmoid(x)
    ...         t = Sigmoid(b)
    ...         y = Concat<axis = 1>(s, t)
    ...         z = Identity(x) }''')))
    ['y']
    """
    proto = model if isinstance(model, ModelProto) else onnx.load(os.fspath(model), load_external_data=False)
    producer = {name: node for node in proto.graph.node for name in node.output}

    def ends(name: str) -> set[str]:
        node = producer.get(name)
        if node is None:
            return {""}
        if node.op_type not in SHAPES:
            return {node.op_type}
        return set().union(*map(ends, node.input if node.op_type == "Concat" else node.input[:1]))

    return frozenset(value.name for value in proto.graph.output if ends(value.name) <= set(SIGMOIDS))


def says_little(pair: Comparison) -> bool:
    """Whether both sides of a comparison of probabilities are next to 0."""
    return pair.rms < NEAR_ZERO and pair.rms_noise < NEAR_ZERO

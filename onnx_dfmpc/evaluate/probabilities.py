"""Outputs that end in a Sigmoid, on inputs that hold nothing for them to find.

A detector of faces or of text answers synthetic inputs with probabilities next to 0 everywhere. Their SQNR
is then that of the smallest numbers of the network: PP-OCRv4's text detector at a mean of 4 bits has 0 dB
there, and the same file has 14 dB on pages of text (docs/packaged.md). So where both models agree that there
is nothing, the SQNR of such an output neither fails a validation nor predicts.
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
        """Operators that the values come from, "" for an input or a constant."""
        found, seen, waiting = set(), set(), [name]
        while waiting:
            node = producer.get(name := waiting.pop())
            if node is not None and node.op_type in SHAPES and name not in seen:
                waiting += node.input if node.op_type == "Concat" else node.input[:1]
            elif name not in seen:
                found.add("" if node is None else node.op_type)
            seen.add(name)
        return found

    return frozenset(value.name for value in proto.graph.output if ends(value.name) <= set(SIGMOIDS))


def says_little(pair: Comparison) -> bool:
    """Whether both sides of a comparison of probabilities are next to 0."""
    return pair.rms < NEAR_ZERO and pair.rms_noise < NEAR_ZERO

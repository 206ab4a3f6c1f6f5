"""One node on known values, by ONNX's reference implementation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, OperatorSetIdProto, helper
from onnx.reference import ReferenceEvaluator


def evaluate(
    node: NodeProto, values: Mapping[str, NDArray[Any]], opsets: Iterable[OperatorSetIdProto]
) -> list[NDArray[Any]]:
    """Outputs of a node whose inputs have values; raises whatever the reference implementation raises."""
    untyped = helper.make_empty_tensor_value_info
    outputs = [untyped(name) for name in node.output if name]
    graph = helper.make_graph([node], "one", [untyped(name) for name in values], outputs)
    model = helper.make_model(graph, opset_imports=list(opsets))
    return [np.asarray(output) for output in ReferenceEvaluator(model).run(None, dict(values))]

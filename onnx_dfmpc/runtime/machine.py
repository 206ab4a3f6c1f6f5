"""What integer kernels do on this machine."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

from onnx_dfmpc.runtime.session import Session

TERMS = 64
"""Products that a dot product adds; a few are enough for 16 bits to be too few."""


@cache
def saturates() -> bool:
    """Whether ONNX Runtime's products of UINT8 and INT8 saturate here, as on AVX2 without VNNI: tried on the
    largest ones.
    """
    codes = np.full((1, TERMS), 255, np.uint8), np.full((TERMS, TERMS), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "products",
        [
            helper.make_tensor_value_info("a", TensorProto.UINT8, codes[0].shape),
            helper.make_tensor_value_info("b", TensorProto.INT8, codes[1].shape),
        ],
        [helper.make_tensor_value_info("c", TensorProto.INT32, (1, TERMS))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (sums,) = Session(model, "the trial").run(dict(zip("ab", codes, strict=True)))
    return bool(np.any(sums != TERMS * 255 * 127))

"""Data-free mixed-precision weight quantization of ONNX convolutional networks.

Examples
--------
>>> from onnx_dfmpc import Recipe
>>> Recipe(low_bits=2, high_bits=6).low_bits
2
"""

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.pipeline import QuantizeResult, apply, match, plan, quantize
from onnx_dfmpc.plans import load_plan, save_plan
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.spec import QuantPlan
from onnx_dfmpc.validate import ValidationReport, session_options, validate

__all__ = [
    "DfmpcError",
    "QuantPlan",
    "QuantizeResult",
    "Recipe",
    "ValidationReport",
    "apply",
    "load_plan",
    "match",
    "plan",
    "quantize",
    "save_plan",
    "session_options",
    "validate",
]

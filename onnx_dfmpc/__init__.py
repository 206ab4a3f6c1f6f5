"""Data-free mixed-precision weight quantization of ONNX convolutional networks.

    quantize            a float model to a quantized one: bits, codes, repair, validation, file
    plan, apply         the same in two steps, with a plan in between that can be saved, edited and loaded
    inspect             what there is to quantize, and what would stay float and why
    validate            how far a quantized model is from its float original
    session_options     ONNX Runtime options that run the result at float speed

A model is a path or a ``ModelProto``, which is never changed. What to do stands in a `Recipe`; whatever goes
wrong is a `DfmpcError`.

Examples
--------
>>> import onnx_dfmpc
>>> recipe = onnx_dfmpc.Recipe(low_bits=2, high_bits=6, rounding="nearest", repair="none")
>>> result = onnx_dfmpc.quantize("models/digits_resnet_bn.onnx", recipe=recipe)
>>> result.passed, len(result.layers), sorted({layer.bits for layer in result.layers})
(True, 16, [2, 6, 8])
"""

from importlib.metadata import version

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.pipeline.results import QuantizeResult
from onnx_dfmpc.pipeline.run import apply, inspect, plan, quantize
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report.plans import load_plan, save_plan
from onnx_dfmpc.runtime.session import session_options
from onnx_dfmpc.spec import QuantPlan

__all__ = [
    "DfmpcError",
    "QuantPlan",
    "QuantizeResult",
    "Recipe",
    "ValidationReport",
    "apply",
    "inspect",
    "load_plan",
    "plan",
    "quantize",
    "save_plan",
    "session_options",
    "validate",
]

__version__ = version("onnx-dfmpc")

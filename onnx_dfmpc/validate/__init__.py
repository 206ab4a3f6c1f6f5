"""Float model against quantized model under ONNX Runtime.

sessions  ONNX Runtime, quiet, with errors that say what to do
compare   the outputs of both, on samples: the validation
layers    tensors inside both graphs
latency   how long an inference takes
command   what repeats a validation
"""

from onnx_dfmpc.metrics import DefaultRun, Gate, OutputMetrics, ValidationReport
from onnx_dfmpc.validate.command import repeat_command
from onnx_dfmpc.validate.compare import check_data, compare, validate
from onnx_dfmpc.validate.latency import measure_latency
from onnx_dfmpc.validate.layers import layer_sqnr
from onnx_dfmpc.validate.sessions import check_providers, is_weight_only, session_options

__all__ = [
    "DefaultRun",
    "Gate",
    "OutputMetrics",
    "ValidationReport",
    "check_data",
    "check_providers",
    "compare",
    "is_weight_only",
    "layer_sqnr",
    "measure_latency",
    "repeat_command",
    "session_options",
    "validate",
]

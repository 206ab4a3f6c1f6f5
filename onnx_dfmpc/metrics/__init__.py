"""How far the outputs moved, added up batch by batch, and what the user's gates say to it (pure NumPy).

comparison  two arrays: cosine, SQNR, differences
classes     two classifiers: divergence, top-5, labels, confidence
report      what a validation found
gates       limits on it
tally       all of it, over the batches
"""

from onnx_dfmpc.metrics.classes import check_classes, class_scores, paired_interval
from onnx_dfmpc.metrics.comparison import Comparison, is_finite
from onnx_dfmpc.metrics.gates import Limit, check_gates, limits_of
from onnx_dfmpc.metrics.report import DefaultRun, Gate, OutputMetrics, ValidationReport, measured, typed
from onnx_dfmpc.metrics.tally import Tally

__all__ = [
    "Comparison",
    "DefaultRun",
    "Gate",
    "Limit",
    "OutputMetrics",
    "Tally",
    "ValidationReport",
    "check_classes",
    "check_gates",
    "class_scores",
    "is_finite",
    "limits_of",
    "measured",
    "paired_interval",
    "typed",
]

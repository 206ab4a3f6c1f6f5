"""The frozen dataclasses that travel between the rooms.

Data flows one way: ``Layer`` and ``Chain`` come from matching (`matched`), ``InputStatistics`` from running
the model (`moments`), ``LayerPlan`` says how many bits (`planned`), ``QuantizedWeight`` and
``QuantizedLayer`` are the numbers to store (`stored`), ``LayerReport`` is what the user reads (`reported`).
Arrays are never modified in place.
"""

from onnx_dfmpc.spec.arrays import Array, sqnr_db
from onnx_dfmpc.spec.matched import BatchNorm, Chain, Edge, Layer, MatchReport, OpType, Skipped
from onnx_dfmpc.spec.moments import InputStatistics, Outputs
from onnx_dfmpc.spec.planned import (
    CostTable,
    Grid,
    LayerPlan,
    QuantPlan,
    Role,
    Rounding,
    StorageFormat,
    SweepPoint,
)
from onnx_dfmpc.spec.reported import (
    Latency,
    LayerEffect,
    LayerReport,
    Progress,
    Suggestion,
    Timing,
    WeightHistogram,
)
from onnx_dfmpc.spec.stored import QuantizedLayer, QuantizedWeight

__all__ = [
    "Array",
    "BatchNorm",
    "Chain",
    "CostTable",
    "Edge",
    "Grid",
    "InputStatistics",
    "Latency",
    "Layer",
    "LayerEffect",
    "LayerPlan",
    "LayerReport",
    "MatchReport",
    "OpType",
    "Outputs",
    "Progress",
    "QuantPlan",
    "QuantizedLayer",
    "QuantizedWeight",
    "Role",
    "Rounding",
    "Skipped",
    "StorageFormat",
    "Suggestion",
    "SweepPoint",
    "Timing",
    "WeightHistogram",
    "sqnr_db",
]

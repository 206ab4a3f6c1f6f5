"""The frozen dataclasses that travel between the rooms.

Data flows one way: ``Layer`` and ``Chain`` come from matching (`matched`), ``InputStatistics`` from running
the model (`moments`), ``LayerPlan`` says how many bits (`planned`), ``QuantizedWeight`` and
``QuantizedLayer`` are the numbers to store (`stored`), ``LayerReport`` is what the user reads (`reported`).
Arrays are never modified in place.
"""

from onnx_dfmpc.spec.arrays import Array, Feeds, InputSpec, Progress, Value, shape_text, sqnr_db
from onnx_dfmpc.spec.matched import BatchNorm, Chain, Edge, Layer, MatchReport, PlainWeight, Skipped
from onnx_dfmpc.spec.mixture import Mixture
from onnx_dfmpc.spec.moments import Anchor, InputStatistics, LayerStatistics, Moments, Outputs
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
    ActivationRange,
    Advice,
    Expectation,
    IntegerActivations,
    KindNoise,
    Latency,
    LayerEffect,
    LayerReport,
    Timing,
    WeightHistogram,
)
from onnx_dfmpc.spec.stored import QuantizedLayer, QuantizedWeight

__all__ = [
    "ActivationRange",
    "Advice",
    "Anchor",
    "Array",
    "BatchNorm",
    "Chain",
    "CostTable",
    "Edge",
    "Expectation",
    "Feeds",
    "Grid",
    "InputSpec",
    "InputStatistics",
    "IntegerActivations",
    "KindNoise",
    "Latency",
    "Layer",
    "LayerEffect",
    "LayerPlan",
    "LayerReport",
    "LayerStatistics",
    "MatchReport",
    "Mixture",
    "Moments",
    "Outputs",
    "PlainWeight",
    "Progress",
    "QuantPlan",
    "QuantizedLayer",
    "QuantizedWeight",
    "Role",
    "Rounding",
    "Skipped",
    "StorageFormat",
    "SweepPoint",
    "Timing",
    "Value",
    "WeightHistogram",
    "shape_text",
    "sqnr_db",
]

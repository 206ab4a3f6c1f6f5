"""Rows of a document as Vega-Lite specifications: plain data, which only a page draws."""

from onnx_dfmpc.report.charts.depth import bits, compared, gains, noise, shifts, sizes
from onnx_dfmpc.report.charts.single import frontier, histogram, latency, ranking

__all__ = [
    "bits",
    "compared",
    "frontier",
    "gains",
    "histogram",
    "latency",
    "noise",
    "ranking",
    "shifts",
    "sizes",
]

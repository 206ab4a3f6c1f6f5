"""Results for people: tables in a terminal, and the JSON document as a page, as Markdown, or compared with
another one.
"""

from onnx_dfmpc.report.formats import FORMATS, format_of, render, report_view, require_format
from onnx_dfmpc.report.reading import read_document
from onnx_dfmpc.report.terminal import comparison_view, inspect_view, plan_view, quantize_view, validate_view

__all__ = [
    "FORMATS",
    "comparison_view",
    "format_of",
    "inspect_view",
    "plan_view",
    "quantize_view",
    "read_document",
    "render",
    "report_view",
    "require_format",
    "validate_view",
]

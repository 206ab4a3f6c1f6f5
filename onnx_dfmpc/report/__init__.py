"""Results for people: tables in a terminal, and the JSON document as a page, as Markdown, or compared with another one."""

from onnx_dfmpc.report.terminal import comparison_view, inspect_view, plan_view, quantize_view, validate_view

__all__ = ["comparison_view", "inspect_view", "plan_view", "quantize_view", "validate_view"]

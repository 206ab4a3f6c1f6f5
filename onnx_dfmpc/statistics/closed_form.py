"""Temporary."""

from __future__ import annotations

from typing import Any

from onnx_dfmpc.spec import InputStatistics
from onnx_dfmpc.statistics.analytic import analytic_layers


def closed_form(
    proto: Any, layers: Any, *, input_range: tuple[float, float] | None
) -> dict[str, InputStatistics]:
    low, high = input_range or (-2.0, 2.0)
    pairs = analytic_layers(proto, layers, input_mean=(low + high) / 2, input_std=(high - low) / 4)
    return {layer.name: found for layer, found in pairs if isinstance(found, InputStatistics)}

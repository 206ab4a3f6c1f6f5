"""BitBounds on how far outputs may move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import checks
from onnx_dfmpc.recipe.checks import nearest

GATE_KEYS = ("min_cosine", "min_sqnr_db", "max_top1_drop", "min_top1_agreement")
OUTPUT_GATE_KEYS = ("min_cosine", "min_sqnr_db", "min_top1_agreement")
"""Those that can be set for single outputs; labels belong to one of them anyway."""

Gates = Mapping[str, float | Mapping[str | None, float]]
"""BitBounds by gate: one number for the worst output, or numbers by output, None for the worst."""


def output_gates(value: Any) -> tuple[tuple[str, str, float], ...]:
    """Check of limits by output and gate: a mapping of mappings, or a list of triples."""
    found = list(_triples(value))
    for _, gate, _ in found:
        if gate not in OUTPUT_GATE_KEYS:
            hint = nearest(gate, OUTPUT_GATE_KEYS) or "gates: " + ", ".join(OUTPUT_GATE_KEYS)
            raise RecipeError(f"{gate!r} is not a gate of a single output", hint=hint)
    return tuple(found)


def _triples(value: Any) -> Iterator[tuple[str, str, float]]:
    checks.require(not isinstance(value, str))
    if isinstance(value, Mapping):
        checks.require(all(isinstance(limits, Mapping) for limits in value.values()))
        value = [(output, gate, limit) for output, limits in value.items() for gate, limit in limits.items()]
    for output, gate, limit in value:
        yield checks.name(output), checks.name(gate), checks.number()(limit)

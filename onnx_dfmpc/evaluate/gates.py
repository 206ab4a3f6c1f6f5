"""What the user's gates say to a validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate.validation import Gate, ValidationReport
from onnx_dfmpc.recipe import GATE_KEYS, Gates, Recipe, nearest


@dataclass(frozen=True)
class Limit:
    """A gate that is set, for one output or, where `output` is None, for the worst one."""

    gate: str
    output: str | None
    limit: float


def check_gates(gates: Gates | None, *, labelled: bool, outputs: Collection[str]) -> tuple[Limit, ...]:
    """Return the gates that are set.

    Parameters
    ----------
    gates : mapping, optional
        BitBounds by gate: a number for the worst output, or a mapping of numbers by output, in which None is
        the worst.
    labelled : bool
        Whether there are labels.
    outputs : collection of str
        Names of the model's outputs.

    Raises
    ------
    RecipeError
        An unknown gate or output, a limit that makes no sense, or a gate on top-1 without labels.
    """
    for name in gates or {}:
        if name not in GATE_KEYS:
            raise RecipeError(
                f"unknown gate {name!r}", hint=nearest(name, GATE_KEYS) or "gates: " + ", ".join(GATE_KEYS)
            )
    limits = limits_of(gates or {})
    for limit in limits:
        Recipe.from_dict({limit.gate: limit.limit})
        if limit.output is not None:
            Recipe.from_dict({"output_gates": [(limit.output, limit.gate, limit.limit)]})
            if limit.output not in outputs:
                known = nearest(limit.output, outputs) or "outputs: " + ", ".join(outputs)
                raise RecipeError(f"{limit.gate}: no output is named {limit.output!r}", hint=known)
    if not labelled and any(limit.gate == "max_top1_drop" for limit in limits):
        raise RecipeError(
            "max_top1_drop needs labelled data", hint="give --data and --labels, or use min_top1_agreement"
        )
    return limits


def limits_of(gates: Gates) -> tuple[Limit, ...]:
    """One limit after the other, unchecked."""
    return tuple(
        Limit(name, output, float(limit))
        for name, value in gates.items()
        for output, limit in (value.items() if isinstance(value, Mapping) else [(None, value)])
    )


def gate_of(limit: Limit, report: ValidationReport) -> Gate:
    """Whether a limit holds.

    Raises
    ------
    RecipeError
        A gate on top-1 where nothing is a classification.
    """
    kind, metric = limit.gate.split("_", 1)
    source = (
        report
        if limit.output is None
        else next(output for output in report.outputs if output.name == limit.output)
    )
    value = getattr(source, metric)
    if metric == "top1_agreement" and value is None and not report.failures:
        whose = "this model has none" if limit.output is None else f"{limit.output!r} is none"
        raise RecipeError(f"min_top1_agreement needs an output of shape (N, classes), {whose}")
    passed = value is not None and (value >= limit.limit if kind == "min" else value <= limit.limit)
    return Gate(limit.gate, limit.limit, value, passed)

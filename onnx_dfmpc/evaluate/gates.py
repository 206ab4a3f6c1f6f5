"""The user's limits against what a validation measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate.validation import Gate, ValidationReport
from onnx_dfmpc.recipe import Gates

LEAST_DB = 6.0
"""SQNR on synthetic inputs, half of the amplitude, below which outputs have little to do with those of the
float model: what real inputs add cannot make up for that.
"""


def check_gates(gates: Gates, *, labelled: bool, synthetic: bool) -> None:
    """Raise RecipeError for a gate on top-1 where there are no labels, and for one on classes where the
    inputs are not real.
    """
    if gates.max_top1_drop is not None and not labelled:
        raise RecipeError(
            "max_top1_drop needs labelled data", hint="give --data and --labels, or use min_top1_agreement"
        )
    if gates.min_top1_agreement is not None and synthetic:
        raise RecipeError(
            "min_top1_agreement needs real inputs: classes of synthetic ones say nothing",
            hint="give --data, or use min_sqnr_db",
        )


def gate_results(gates: Gates, report: ValidationReport) -> Iterator[Gate]:
    """Whether each limit that is set holds for the worst output; a RecipeError for top-1 agreement where no
    output is a classification.
    """
    for name, limit in gates.limits.items():
        bound, metric = name.split("_", 1)
        if bound not in ("min", "max"):
            continue
        value = getattr(report, metric)
        if metric == "top1_agreement" and value is None and not report.failures:
            raise RecipeError(f"{name} needs an output of shape (N, classes), this model has none")
        passed = value is not None and (value >= limit if bound == "min" else value <= limit)
        yield Gate(name, limit, value, passed)


def useless(gates: Gates, report: ValidationReport, without: Collection[str] = ()) -> str:
    """What speaks against a model that nobody has set a limit for: outputs that synthetic inputs show to be
    wrong, ``without`` some of which they show nothing. Empty where nothing does, or the user has decided.
    """
    if gates.no_gate or gates.min_sqnr_db is not None or not report.synthetic:
        return ""
    low = [
        one
        for one in report.outputs
        if one.name not in without and one.sqnr_db is not None and one.sqnr_db < LEAST_DB
    ]
    if not low:
        return ""
    worst = min(low, key=lambda one: one.sqnr_db or 0.0)
    others = f", and {len(low) - 1} more" if len(low) > 1 else ""
    return f"output {worst.name!r}: {worst.sqnr_db:.1f} dB{others}, below {LEAST_DB:g} dB"

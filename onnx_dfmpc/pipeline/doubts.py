"""One line on what the inputs are taken for, where that is not sure, and what knowing it would buy."""

from __future__ import annotations

from onnx_dfmpc.spec import Expectation
from onnx_dfmpc.statistics.belief import Belief
from onnx_dfmpc.statistics.mixing import PLAUSIBLE

SURE = 0.9
"""Weight from which on a hypothesis is not worth a remark."""

NAMED = 3
"""Hypotheses that the line names, at most."""


def doubts(belief: Belief | None, expectation: Expectation | None) -> tuple[str, ...]:
    """Remark on what the inputs may be, with the way to say better; empty where there is no doubt.

    What knowing the range would buy is how far the lower end of the prediction rises once the other
    hypotheses are out, in dB.
    """
    if belief is None or len(belief.hypotheses) == 1 or belief.weights.max() >= SURE:
        return ()
    ranked = sorted(zip(belief.weights.tolist(), belief.hypotheses, strict=True), key=lambda pair: -pair[0])
    named = [(weight, one) for weight, one in ranked[:NAMED] if weight >= PLAUSIBLE]
    text = "the inputs are not known: " + ", ".join(f"{one} ({weight:.0%})" for weight, one in named)
    best = belief.likeliest
    flag = f"--input-range {best.low:g} {best.high:g}"
    if expectation is None:
        return (f"{text}; {flag}, or what is right, and real samples in --calibration-data, say better",)
    own = [
        kind.sqnr_db for kind in expectation.kinds if kind.name.endswith(f"in {best.low:g} to {best.high:g}")
    ]
    gain = min(own) - expectation.low_db if own else 0.0
    return (
        f"{text}; {flag}, if it is right, raises the lower end of the prediction by {gain:.1f} dB, "
        f"to {expectation.low_db + gain:.1f}; one real sample in --calibration-data tells, too",
    )

"""One line on what the inputs are taken for, where that is not sure, and what knowing it would buy."""

from __future__ import annotations

from onnx_dfmpc.spec import Expectation
from onnx_dfmpc.statistics.belief import Belief
from onnx_dfmpc.statistics.mixing import PLAUSIBLE

SURE = 0.9
"""Weight from which on a hypothesis is not worth a remark."""

SEEN_DB = 0.1
"""Least gain that is named."""

NAMED = 3
"""Hypotheses that the line names, at most."""


def doubts(belief: Belief | None, expectation: Expectation | None) -> tuple[str, ...]:
    """Remark on what the inputs may be, with the way to say better; empty where there is no doubt.

    What knowing the range would buy is how far the lower end of the prediction rises once the other
    hypotheses are out, in dB.
    """
    if belief is None or belief.anchored:  # behind a batch norm all ranges look alike
        return ()
    weights: dict[tuple[float, float], float] = {}
    for weight, one in zip(belief.weights.tolist(), belief.hypotheses, strict=True):
        weights[one.low, one.high] = weights.get((one.low, one.high), 0.0) + weight
    ranked = sorted(weights.items(), key=lambda pair: -pair[1])
    (low, high), most = ranked[0]
    if most >= SURE:
        return ()
    what = "pictures" if belief.hypotheses[0].picture else "signals"
    named = [f"{a:g} to {b:g} ({weight:.0%})" for (a, b), weight in ranked[:NAMED] if weight >= PLAUSIBLE]
    text = f"the inputs are not known: {what} in {', or '.join(named)}"
    others = "an --images convention or one real sample in --calibration-data"
    if expectation is None:
        return (f"{text}; --input-range, {others} says better",)
    own = [kind.sqnr_db for kind in expectation.kinds if kind.name.endswith(f"in {low:g} to {high:g}")]
    gain = min(own) - expectation.low_db if own else 0.0
    if gain < SEEN_DB:
        return (f"{text}; the prediction holds for all of these; --input-range, {others} says better",)
    return (
        f"{text}; --input-range {low:g} {high:g}, if it is right, raises the lower end of the prediction by "
        f"{gain:.1f} dB, to {expectation.low_db + gain:.1f}; {others} tells, too",
    )

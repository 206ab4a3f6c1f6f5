"""What a quantized model is expected to do on inputs that nobody has seen: it is run on synthetic ones of
every kind that is plausible, none of which the statistics were taken on.

The SQNR is that of the worst output, the same number that a validation on real inputs gives. How far the
kinds of inputs are apart says how much is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.evaluate.metrics import Comparison, is_finite, joined
from onnx_dfmpc.evaluate.probabilities import says_little, sigmoid_outputs
from onnx_dfmpc.runtime.pieces import open_model
from onnx_dfmpc.runtime.session import is_weight_only
from onnx_dfmpc.spec import Expectation, Feeds, KindNoise
from onnx_dfmpc.spec.arrays import Value


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs of one kind, and how likely the kind is; the weights of all trials add up to 1."""

    name: str
    weight: float
    feeds: Feeds


def expect(
    float_model: ModelProto, quantized_model: ModelProto, trials: Sequence[Trial], doubt_db: float = 0.0
) -> Expectation | None:
    """Expected output SQNR, and its interval; None where no kind of inputs gives a finite one.

    The point is the mean in dB by weight. The interval reaches to the worst and to the best kind; all kinds
    are synthetic, so that ``doubt_db`` is added to both distances, in squares: real inputs are one kind more.
    """
    # One session after the other: a large model does not fit twice.
    names, expected = _outputs(float_model, False, trials)
    _, actual = _outputs(quantized_model, is_weight_only(quantized_model), trials)
    sigmoids = sigmoid_outputs(float_model)
    judged = [name not in sigmoids for name in names]
    found = [
        KindNoise(trial.name, trial.weight, sqnr)
        for trial, a, b in zip(trials, expected, actual, strict=True)
        if (sqnr := _worst(a, b, judged)) is not None
    ]
    if not found:
        return None
    values = [kind.sqnr_db for kind in found]
    point = float(np.average(values, weights=[kind.weight for kind in found]))
    low = point - math.hypot(point - min(values), doubt_db)
    high = point + math.hypot(max(values) - point, doubt_db)
    return Expectation(point, low, high, tuple(found))


def _outputs(
    model: ModelProto, disable_qdq: bool, trials: Sequence[Trial]
) -> tuple[Sequence[str], list[list[list[Value]]]]:
    """Names of the outputs, and these by trial and batch."""
    session = open_model(model, "model", disable_qdq=disable_qdq)
    made = iter(session.run_each([feed for trial in trials for feed in trial.feeds]))
    return session.outputs, [[next(made) for _ in trial.feeds] for trial in trials]


def _worst(
    expected: Sequence[Sequence[Value]], actual: Sequence[Sequence[Value]], judged: Sequence[bool]
) -> float | None:
    """Lowest SQNR of the outputs, in dB; None where one cannot be compared. Outputs that are not always
    ``judged`` are left out where both sides are next to 0.
    """
    pairs = [Comparison() for _ in expected[0]]
    for batch, other in zip(expected, actual, strict=True):
        for pair, a, b in zip(pairs, map(joined, batch), map(joined, other), strict=True):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
                continue
            if a.shape != b.shape or not (is_finite(a) and is_finite(b)):
                return None
            pair.add(a, b)
    values = [
        pair.sqnr_db
        for pair, always in zip(pairs, judged, strict=True)
        if pair.elements and (always or not says_little(pair))
    ]
    return min(values) if values and math.isfinite(min(values)) else None

"""Inference times of the float model, and of the quantized one with different session options, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.specs import fixed_batch, with_shapes
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.runtime.session import Model, Session, is_weight_only
from onnx_dfmpc.spec import Latency, Progress, Timing

WARM_UP = 3
"""Runs before any is timed: the first ones allocate."""

FEWEST, MOST = 15, 200
SECONDS = 5.0
"""Rounds are as many as fit into about this much time, within the bounds above: a convention."""


def measure_latency(
    float_model: Model,
    quantized_model: Model,
    data: Data,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Latency:
    """Time inferences of the first sample, or of as many as the models insist on.

    ``threads`` is that of each session; ``progress`` is called with ``("latency", rounds finished, rounds)``.
    """
    sessions = {
        "float": Session(float_model, "float model", threads=threads),
        "quantized, default": Session(quantized_model, "quantized model", threads=threads),
    }
    if is_weight_only(quantized_model):
        sessions["quantized, recommended"] = Session(
            quantized_model, "quantized model", disable_qdq=True, threads=threads
        )
    specs = with_shapes(sessions["float"].specs(), data.shapes)
    fixed = fixed_batch(specs)
    samples = samples_of(specs, replace(data, samples=data.samples or fixed or 1))
    _, batch, feeds = next((samples if fixed else replace(samples, batch=1)).batches())
    outputs = sessions["float"].outputs

    def run(session: Session) -> float:
        start = time.perf_counter()
        session.run(feeds, outputs)
        return time.perf_counter() - start

    warm = sum(run(session) for _ in range(WARM_UP) for session in sessions.values()) / WARM_UP
    rounds = int(min(MOST, max(FEWEST, SECONDS / max(warm, 1e-6))))
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for step in range(1, rounds + 1):
        # In turn, so that whatever else the machine does meets all of them.
        for name, session in sessions.items():
            seconds[name].append(run(session))
        if progress is not None:
            progress("latency", step, rounds)
    return Latency(tuple(_timing(name, times) for name, times in seconds.items()), rounds, threads, batch)


def _timing(name: str, seconds: Sequence[float]) -> Timing:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Timing(name, middle, low, high, min(seconds))

"""Inference times, side by side: of the float model, and of the quantized one with different session options."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.specs import fixed_batch, with_shapes
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.runtime.session import Model, Session, check_providers, is_weight_only
from onnx_dfmpc.spec import Latency, Timing

WARM_UP = 3
FEWEST, MOST = 15, 200
SECONDS = 5.0
"""Runs are as many as fit into about so much time, within the bounds above."""

Progress = Callable[[str, int, int], None]


def measure_latency(
    float_model: Model,
    quantized_model: Model,
    feeding: Data,
    *,
    providers: Sequence[str] = (),
    threads: int = 1,
    progress: Progress | None = None,
) -> Latency:
    """Time single inferences, the models taking turns in one process, so that whatever else the machine does
    meets all of them.

    Parameters
    ----------
    float_model, quantized_model : path or onnx.ModelProto
    feeding : Data
        The first sample is taken, or as many as the model insists on.
    providers : sequence of str
    threads : int
        Of each session.
    progress : callable, optional
        Called with ``("latency", runs done, runs)``.

    Returns
    -------
    Latency
    """
    on = check_providers(providers)
    sessions = {"float": Session(float_model, "float model", providers=on, threads=threads)}
    sessions["quantized, default"] = Session(
        quantized_model, "quantized model", providers=on, threads=threads
    )
    if is_weight_only(quantized_model):
        sessions["quantized, recommended"] = Session(
            quantized_model, "quantized model", disable_qdq=True, providers=on, threads=threads
        )
    specs = with_shapes(sessions["float"].specs(), feeding.shapes)
    found = samples_of(specs, replace(feeding, samples=feeding.samples or fixed_batch(specs) or 1))
    _, batch, feeds = next((found if fixed_batch(specs) else replace(found, batch=1)).batches())
    outputs = sessions["float"].outputs

    def run(session: Session) -> float:
        start = time.perf_counter()
        session.run(feeds, outputs)
        return time.perf_counter() - start

    warm = sum(run(session) for _ in range(WARM_UP) for session in sessions.values()) / WARM_UP
    runs = int(min(MOST, max(FEWEST, SECONDS / max(warm, 1e-6))))
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for done in range(runs):
        for name, session in sessions.items():
            seconds[name].append(run(session))
        if progress is not None:
            progress("latency", done + 1, runs)
    return Latency(tuple(_timing(name, measured) for name, measured in seconds.items()), runs, threads, batch)


def _timing(name: str, seconds: Sequence[float]) -> Timing:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Timing(name, middle, low, high, min(seconds))

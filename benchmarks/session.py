"""One session under ONNX Runtime, for a process of its own: what it costs to load, to hold and to run.

``python -m benchmarks.session MODEL FLOAT INPUT.npz OPTIONS THREADS RUNS`` prints JSON. The float model is
loaded when the other one has been weighed, and runs in turn with it, so that a busy machine slows both.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_dfmpc import session_options

Feeds = Mapping[str, NDArray[Any]]

OPTIONS: Mapping[str, Callable[[], ort.SessionOptions]] = {
    "default": ort.SessionOptions,
    "recommended": session_options,
}
"""Session options as ONNX Runtime has them, and as the package recommends them for models with float
activations.
"""


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux hands ``ru_maxrss`` of a parent down to its child, VmHWM not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Bytes of this process in memory now; where the system does not say, at the peak."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_memory()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def measure(
    model: Path, reference: Path, feeds: Feeds, options: str, threads: int, runs: int
) -> dict[str, Any]:
    """Load a model, run it, and run it in turn with the float model.

    Parameters
    ----------
    model, reference : path
        The model to measure, and the float model, which always has the default options.
    feeds : mapping
        One input.
    options : str
        A key of `OPTIONS`.
    threads : int
        Of a session. With one, times are CPU time of the process; with more, of the clock on the wall.
    runs : int
        Of each model, after a first one that warms up.

    Returns
    -------
    dict
        ``load`` in seconds; ``resident`` after the first run and ``peak`` until then, in bytes above what the
        process had before; ``latency`` and ``float``, one number of seconds for every run.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    resident, peak, start = resident_memory(), peak_memory(), clock()
    session = _load(model, OPTIONS[options](), threads)
    found: dict[str, Any] = {"load": clock() - start}
    session.run(None, feeds)
    found |= {
        "resident": resident_memory() - resident,
        "peak": peak_memory() - peak,
        "latency": [],
        "float": [],
    }
    sessions = {"latency": session, "float": _load(reference, ort.SessionOptions(), threads)}
    sessions["float"].run(None, feeds)
    for _ in range(runs):
        for key, each in sessions.items():
            start = clock()
            each.run(None, feeds)
            found[key].append(clock() - start)
    return found


def _load(model: Path, options: ort.SessionOptions, threads: int) -> ort.InferenceSession:
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    with np.load(sys.argv[3]) as arrays:
        print(
            json.dumps(
                measure(
                    Path(sys.argv[1]),
                    Path(sys.argv[2]),
                    dict(arrays),
                    sys.argv[4],
                    int(sys.argv[5]),
                    int(sys.argv[6]),
                )
            )
        )

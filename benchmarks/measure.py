"""One measurement of cost, for a process of its own: ``python -m benchmarks.measure STEP MODEL SETTING``
prints JSON.

What is imported is imported before the clock starts, and does not count as memory either.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import package
from benchmarks.methods import BARE, Setting, settings
from onnx_dfmpc.model.files import load, save
from onnx_dfmpc.pipeline import run as pipeline

Step = Callable[[Path, Path, Setting], object]


def _load_save(model: Path, output: Path, setting: Setting) -> object:
    return save(load(model).proto, output)


def _quantize(**knobs: Any) -> Step:
    return lambda model, output, setting: package.quantize(model, setting.recipe(**knobs)).save(output)


def _quantize_and_validate(model: Path, output: Path, setting: Setting) -> object:
    return pipeline.quantize(model, output, setting.recipe())


STEPS: Mapping[str, Step] = {
    "load+save": _load_save,
    "nearest": _quantize(rounding="nearest", **BARE),
    "squant": _quantize(rounding="squant", **BARE),
    "gptq": _quantize(rounding="gptq", **BARE),
    "paper": _quantize(method="paper"),
    "dfmpc": _quantize(),
    "dfmpc+validation": _quantize_and_validate,
}
"""Loading, checking and saving; rounding alone, by method; the two methods whole; the default with its proof
on synthetic inputs.
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


def measure(step: str, model: Path, setting: Setting) -> dict[str, float]:
    """CPU seconds of this process, seconds on the wall clock, and bytes of memory at the peak, above what was
    there before.
    """
    with tempfile.TemporaryDirectory() as directory:
        before, cpu, wall = peak_memory(), time.process_time(), time.perf_counter()
        STEPS[step](model, Path(directory) / "out.onnx", setting)
        return {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "peak": peak_memory() - before,
        }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), settings(sys.argv[3])[0])))

"""One method that `methods` knows, as a process of its own: ``python -m benchmarks.baselines.run METHOD SETTING
MODEL OUTPUT``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.methods import METHODS, Task, settings
from onnx_dfmpc.model.files import save


def main(arguments: Sequence[str]) -> int:
    """Quantize one model."""
    method, setting, model, output = arguments
    save(METHODS[method].run(Task(Path(model), settings(setting)[0])).model, Path(output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

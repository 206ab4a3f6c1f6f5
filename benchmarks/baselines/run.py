"""One method that `methods` knows, as a process of its own: ``python -m benchmarks.baselines.run METHOD SETTING
MODEL OUTPUT``. Files are as small as the package can make them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.methods import METHODS, Task, settings
from onnx_dfmpc.model.files import save


def main(arguments: Sequence[str]) -> int:
    """Quantize one model."""
    method, bits, model, output = arguments
    (setting,) = settings(bits)
    small = replace(setting, bits={**setting.bits, "fold_batch_norm": "yes"})
    save(METHODS[method].run(Task(Path(model), small)).model, Path(output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One command and what it costs: ``python benchmarks/launch.py COST.json SECONDS COMMAND...`` writes CPU seconds, peak
memory in bytes, and how the command ended.

A small process of its own, since Linux hands the peak memory of a parent down to its child. It needs nothing
but the standard library.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

KILOBYTE = 1 if sys.platform == "darwin" else 1024
"""Of ``ru_maxrss``."""


def main(arguments: Sequence[str]) -> int:
    """Run the command, for at most so many seconds."""
    target, seconds, *command = arguments
    try:
        code: int | None = subprocess.run(command, timeout=float(seconds), check=False).returncode
    except subprocess.TimeoutExpired:
        code = None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {"cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * KILOBYTE, "code": code}
    Path(target).write_text(json.dumps(cost), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

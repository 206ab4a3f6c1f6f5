"""Requirements at the ends of what is supported: ``python -m tools.versions lowest`` prints pins of the core
dependencies at their lower bounds, ``newest`` none, so that pip takes the newest there are.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(end: str) -> list[str]:
    """Arguments for pip beside the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if end == "newest":
        return ["--upgrade", "--upgrade-strategy", "eager"]
    return [re.sub(r">=\s*", "==", one) for one in project["dependencies"]]


if __name__ == "__main__":
    print(" ".join(pins(sys.argv[1])))

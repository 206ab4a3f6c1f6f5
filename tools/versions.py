"""Arguments for pip at the ends of what is supported: ``python -m tools.versions lowest`` prints pins of the
core dependencies at their lower bounds, ``newest`` asks for the newest there are.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def arguments(end: str) -> list[str]:
    """Arguments beside the project itself."""
    if end == "newest":
        return ["--upgrade", "--upgrade-strategy", "eager"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [one.replace(">=", "==") for one in project["dependencies"]]


if __name__ == "__main__":
    print(" ".join(arguments(sys.argv[1])))

"""What a row was measured with."""

from __future__ import annotations

import subprocess
from importlib.metadata import version

from benchmarks.readme import ROOT

PACKAGES = ("onnx-dfmpc", "onnx", "onnxruntime", "numpy")
CODE = ("onnx_dfmpc", "benchmarks/*.py", "benchmarks/baselines", "models/*.py")
"""What decides a number; results and pages change while they are measured."""


def provenance() -> str:
    """Versions and commit, in words."""
    changed = bool(_git("status", "--porcelain", "--", *CODE))
    head = (_git("rev-parse", "--short", "HEAD") or "unknown") + "-dirty" * changed
    return ", ".join([f"commit {head}", *(f"{name} {version(name)}" for name in PACKAGES)])


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()

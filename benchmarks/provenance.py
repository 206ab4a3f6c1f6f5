"""What a row was measured with."""

from __future__ import annotations

import subprocess
from importlib.metadata import version

from benchmarks.readme import ROOT

PACKAGES = ("onnx-dfmpc", "onnx", "onnxruntime", "numpy")


def provenance() -> str:
    """Versions and commit, in words."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    head = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return ", ".join([f"commit {head or 'unknown'}", *(f"{name} {version(name)}" for name in PACKAGES)])

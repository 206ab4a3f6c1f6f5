"""Specifications of inputs, samples for them, and what a model would get to see of these."""

from __future__ import annotations

import numpy as np

from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.spec import InputSpec

IMAGE = InputSpec("x", np.dtype(np.float32), ("N", 3, 4, 6))
SIGNAL = InputSpec("s", np.dtype(np.float32), ("N", 5))
RNG = np.random.default_rng(0)


def signals(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 5)).astype(np.float32)


def fed(found: Samples) -> dict[str, np.ndarray]:
    """Everything that a model would get to see."""
    batches = [feeds for _, _, feeds in found.batches()]
    return {name: np.concatenate([feeds[name] for feeds in batches]) for name in batches[0]}

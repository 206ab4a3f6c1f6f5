"""Layers, batch norms and statistics made by hand, for the tests of the rooms that know nothing of graphs."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnx_dfmpc.spec import BatchNorm, Feeds, InputStatistics, Layer, Mixture

# op, shape of the stored weight, group, output-channel axis
FORMS: tuple[tuple[str, tuple[int, ...], int, int], ...] = (
    ("Conv", (4, 3, 3, 3), 1, 0),
    ("Conv", (6, 2, 3, 2), 3, 0),
    ("Conv", (5, 1, 3, 3), 5, 0),
    ("Conv", (4, 3, 5), 1, 0),
    ("Conv", (6, 2, 1, 1), 2, 0),
    ("ConvTranspose", (3, 4, 3, 3), 1, 1),
    ("ConvTranspose", (6, 2, 2, 3), 3, 1),
    ("ConvTranspose", (4, 3, 4), 2, 1),
    ("Gemm", (4, 7), 1, 0),
    ("Gemm", (7, 4), 1, 1),
    ("MatMul", (7, 4), 1, 1),
)

forms = st.sampled_from(FORMS)
seeds = st.integers(0, 2**32 - 1)


def layer(
    op: str = "Conv", shape: tuple[int, ...] = (4, 3, 3, 3), group: int = 1, axis: int = 0, **fields: Any
) -> Layer:
    channels = shape[1] * group if op == "ConvTranspose" else shape[axis]
    fixed = {"name": "conv", "weight": "w", "bias": None, "bias_node": "", "input": "x", "output": "y"}
    fields = fixed | fields
    return Layer(op_type=op, shape=shape, axis=axis, group=group, channels=channels, **fields)


def batch_norm(channels: int, rng: np.random.Generator, epsilon: float = 1e-5) -> BatchNorm:
    gamma, beta, mean = (
        rng.uniform(0.3, 1.5, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels),
    )
    return BatchNorm("bn", "b", gamma, beta, mean, rng.uniform(0.1, 2, channels), epsilon)


def covariance(g: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Well-conditioned covariances with strong correlations, float64 (g, n, n)."""
    factor = rng.standard_normal((g, n, n)) / np.sqrt(n) + rng.standard_normal((g, n, 1)) * 0.5
    return factor @ factor.transpose(0, 2, 1) + 0.05 * np.eye(n)


def statistics(g: int, n: int, rng: np.random.Generator, samples: int = 10**6) -> InputStatistics:
    return InputStatistics(
        rng.standard_normal((g, n)), covariance(g, n, rng).astype(np.float32), samples, "test"
    )


def one_kind(feeds: Feeds, *, real: bool = False) -> Mixture:
    """Inputs that are all of one kind."""
    return Mixture(feeds, (0,) * len(feeds), np.ones(1), np.ones(1), np.array([real]))

"""The tables of `onnx_dfmpc.spec.vectors`: k-means with pairs of opposite rows.

python -m benchmarks.vectors            how far the shipped tables are from new ones
python -m benchmarks.vectors --write    write onnx_dfmpc/spec/vectors.npz
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import vectors
from onnx_dfmpc.spec.vectors import MOST_INTEGER_BITS, SHAPES, VECTORS

OUTPUT = Path(vectors.__file__).with_name("vectors.npz")

SHAPE_PARAMETERS = (1.0, 1.3, 1.7, 2.0)
"""Of generalized normal distributions: 1 is Laplace's, 2 the normal one."""

SAMPLES, ITERATIONS = 200_000, 60

Array = NDArray[np.float32]


def weights(length: int, rng: np.random.Generator, count: int = SAMPLES) -> Array:
    """Vectors of independent numbers of variance 1, shape (count, length), as many of each distribution."""
    parts = []
    for beta in SHAPE_PARAMETERS:
        size = count // len(SHAPE_PARAMETERS), length
        values = rng.choice([-1.0, 1.0], size) * rng.gamma(1 / beta, 1, size) ** (1 / beta)
        parts.append(values / np.sqrt(np.mean(values**2)))
    return np.concatenate(parts).astype(np.float32)


def fit(samples: Array, rows: int, rng: np.random.Generator) -> Array:
    """Half of the rows of a table: k-means in which every center stands for itself and its opposite."""
    centers = samples[rng.choice(len(samples), rows // 2, replace=False)].copy()
    for _ in range(ITERATIONS):
        products = samples @ centers.T
        nearest = (np.abs(products) - np.square(centers).sum(axis=1) / 2).argmax(axis=1)
        signs = np.sign(products[np.arange(len(samples)), nearest])
        counts = np.bincount(nearest, minlength=len(centers))
        for d in range(samples.shape[1]):
            sums = np.bincount(nearest, samples[:, d] * signs, len(centers))
            centers[:, d] = np.where(counts > 0, sums / np.maximum(counts, 1), centers[:, d])
        empty = np.flatnonzero(counts == 0)
        centers[empty] = samples[rng.choice(len(samples), len(empty))]
    return centers[np.lexsort(centers.T[::-1])]


def distortion(samples: Array, rows: Array) -> float:
    """Mean squared distance of vectors to their nearest row, per weight."""
    total = 0.0
    for part in np.array_split(samples, 20):
        scores = part @ rows.T - np.square(rows).sum(axis=1) / 2
        total += float(np.square(part - rows[scores.argmax(axis=1)]).sum())
    return total / samples.size


def _free(half: NDArray[np.int8]) -> tuple[int, ...]:
    """The shortest vector that is no row yet."""
    taken = {tuple(row) for row in np.concatenate([half, -half]).tolist()}
    near = itertools.product(range(-3, 4), repeat=half.shape[1])
    return min(
        (row for row in near if any(row) and row not in taken), key=lambda row: sum(x * x for x in row)
    )


def main() -> None:
    """Fit tables, and write or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    arrays: dict[str, NDArray[np.generic]] = {}
    for bits, (rows, length) in SHAPES.items():
        rng = np.random.default_rng(0)
        centers = fit(weights(length, rng), rows, rng)
        most = 63 if bits <= MOST_INTEGER_BITS else 127
        deviation = most / float(np.abs(centers).max())
        half = np.rint(centers * deviation).astype(np.int8)
        half[~half.any(axis=1)] = _free(half)  # zero is its own opposite: two rows beside it are better
        arrays |= {f"half_{bits:g}": half, f"deviation_{bits:g}": np.array(deviation)}
        fresh = weights(length, np.random.default_rng(1))
        shown = [np.concatenate([half, -half]) / deviation]
        if not arguments.write:
            shown.append(VECTORS[bits].rows / VECTORS[bits].deviation)
        noise = ", ".join(
            f"{-10 * np.log10(distortion(fresh, one.astype(np.float32))):.2f} dB" for one in shown
        )
        print(f"{bits:g} bits: {rows} rows of {length}: {noise}", flush=True)
    if arguments.write:
        np.savez_compressed(OUTPUT, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

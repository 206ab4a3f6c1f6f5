"""Inputs to listen with: few, and of another kind than those that the statistics come from.

A layer that was rounded for some inputs makes less noise on these than on any others, the less of them there are the more so. Half of the
synthetic inputs are therefore drawn anew, and half are noise with the spectrum of photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc import inputs
from onnx_dfmpc.inputs import Feeding, fixed_batch
from onnx_dfmpc.statistics import model_inputs, synthetic_feeds

FEWEST, MOST = 8, 32
POSITIONS = 1 << 15
"""Samples are as many as have about so many positions, within the bounds above."""

BATCHES = 4

Feed = Mapping[str, NDArray[Any]]


def probe_feeds(
    proto: ModelProto,
    *,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Feed]:
    """Synthetic inputs, half of each kind."""
    specs = model_inputs(proto, shapes)
    one = synthetic_feeds(specs, seed=seed + 1, input_range=input_range, samples=1)[0]
    positions = max(int(np.prod(array.shape[2:])) for array in one.values())
    half = int(np.clip(POSITIONS // positions, FEWEST, MOST)) // 2
    leaves = synthetic_feeds(specs, seed=seed + 1, input_range=input_range, samples=half)
    noise = inputs.synthetic(specs, samples=half, seed=seed + 1, input_range=input_range)
    spectra = replace(noise, batch=noise.batch if fixed_batch(specs) else max(1, half // (BATCHES // 2)))
    return [*leaves, *(feed for _, _, feed in spectra.batches())]


def data_feeds(proto: ModelProto, feeding: Feeding, *, most: int = MOST) -> list[Feed]:
    """Some of the user's inputs."""
    specs = model_inputs(proto)
    found = inputs.samples_of(specs, replace(feeding, samples=None))
    if found.count > most:
        found = inputs.samples_of(specs, replace(feeding, samples=most))
    if found.batch > 1 and not fixed_batch(specs):
        found = replace(found, batch=max(1, -(-found.count // BATCHES)))
    return [feed for _, _, feed in found.batches()]

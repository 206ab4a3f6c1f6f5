"""Inputs to listen with: few, and of another kind than those that the statistics come from.

A layer that was rounded for some inputs makes less noise on these than on any others, the less of them there
are the more so. Half of the synthetic inputs are therefore drawn anew, and half are noise with the spectrum
of photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.model_inputs import model_inputs
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import fixed_batch, with_shapes
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.inputs.synthetic_feeds import synthetic_feeds
from onnx_dfmpc.recipe import Data

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
    half = _few(one) // 2
    leaves = synthetic_feeds(specs, seed=seed + 1, input_range=input_range, samples=half)
    noise = synthetic(specs, samples=half, seed=seed + 1, input_range=input_range)
    spectra = replace(noise, batch=noise.batch if fixed_batch(specs) else max(1, half // (BATCHES // 2)))
    return [*leaves, *(feed for _, _, feed in spectra.batches())]


def data_feeds(proto: ModelProto, feeding: Data) -> list[Feed]:
    """Some of the user's inputs, however many are for validation."""
    return [feed for _, _, feed in some_samples(proto, replace(feeding, samples=None), MOST).batches()]


def some_samples(proto: ModelProto, feeding: Data, most: int) -> Samples:
    """Some of the user's inputs, or of synthetic ones where the user has none, in a few batches."""
    specs = with_shapes(model_inputs(proto), feeding.shapes)
    fixed = fixed_batch(specs)
    wanted = max(min(most, feeding.samples or most), fixed or 1)
    found = samples_of(specs, replace(feeding, samples=wanted))
    several = found.batch > 1 and fixed is None
    return replace(found, batch=max(1, -(-found.count // BATCHES))) if several else found


def few(proto: ModelProto, feeding: Data) -> int:
    """How many samples are enough to listen with: fewer of large ones."""
    specs = with_shapes(model_inputs(proto), feeding.shapes)
    one = next(samples_of(specs, replace(feeding, samples=fixed_batch(specs) or 1)).batches())[2]
    return _few(one)


def _few(one: Feed) -> int:
    positions = max((int(np.prod(array.shape[2:])) for array in one.values()), default=1)
    return int(np.clip(POSITIONS // positions, FEWEST, MOST))

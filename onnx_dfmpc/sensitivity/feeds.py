"""Inputs to measure noise with: few, and of another kind than those that the statistics come from.

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
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import fixed_batch, model_inputs, with_shapes
from onnx_dfmpc.inputs.synthetic import synthetic, synthetic_feeds
from onnx_dfmpc.recipe import Data

FEWEST, MOST = 4, 16
POSITIONS = 1 << 14
"""Samples are as many as have about this many positions, within the bounds above: a bound on time."""

BATCHES = 4
"""Batches run side by side."""

Feed = Mapping[str, NDArray[Any]]


def mixed_synthetic_feeds(
    proto: ModelProto,
    *,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Feed]:
    """Synthetic inputs, half of each kind."""
    specs = model_inputs(proto, shapes)
    # Another seed than that of the statistics: the layers were rounded for those pictures.
    half = _enough(synthetic_feeds(specs, "white", samples=1)[0]) // 2
    pictures = synthetic_feeds(specs, seed=seed + 1, input_range=input_range, samples=half)
    noise = synthetic(specs, samples=half, seed=seed + 1, input_range=input_range)
    noise = replace(noise, batch=noise.batch if fixed_batch(specs) else max(1, half // (BATCHES // 2)))
    return [*pictures, *(feed for _, _, feed in noise.batches())]


def user_feeds(proto: ModelProto, data: Data) -> list[Feed]:
    """Some of the user's inputs, however many are for validation."""
    return [feed for _, _, feed in few_samples(proto, replace(data, samples=None), MOST).batches()]


def few_samples(proto: ModelProto, data: Data, most: int | None = None) -> Samples:
    """Some of the user's inputs, or of synthetic ones where the user has none, in a few batches; by default
    as many as are enough to measure noise with, fewer of large ones.
    """
    specs = with_shapes(model_inputs(proto), data.shapes)
    fixed = fixed_batch(specs)
    if most is None:
        most = _enough(next(samples_of(specs, replace(data, samples=fixed or 1)).batches())[2])
    samples = samples_of(specs, replace(data, samples=max(min(most, data.samples or most), fixed or 1)))
    several = samples.batch > 1 and fixed is None
    return replace(samples, batch=max(1, -(-samples.count // BATCHES))) if several else samples


def _enough(feed: Feed) -> int:
    positions = max((int(np.prod(array.shape[2:])) for array in feed.values()), default=1)
    return int(np.clip(POSITIONS // positions, FEWEST, MOST))

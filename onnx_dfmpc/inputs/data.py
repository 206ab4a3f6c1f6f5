"""The samples that follow from what a user asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.specs import fixed_batch, model_inputs, with_shapes
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.spec import Feeds, InputSpec

MAX_CALIBRATION = 512
"""Most samples of the user that statistics are taken on, to bound their cost; a choice."""

FEW, MOST_HELD_OUT = 16, 16
"""Samples from which on some are held out, and how many at most."""


def samples_of(specs: Sequence[InputSpec], data: Data) -> Samples:
    """Samples of the user's data, or synthetic ones; a RecipeError for data that do not fit the model's
    inputs, and for labels without data.
    """
    specs = with_shapes(specs, data.shapes)
    if data.data is not None:
        return from_data(
            specs, data.data, data.labels, samples=data.samples, seed=data.seed, images=data.images
        )
    if data.labels is not None:
        raise RecipeError("labels without data", hint="name the inputs they belong to with --data")
    return synthetic(specs, samples=data.samples, seed=data.seed, input_range=data.input_range)


@dataclass(frozen=True, eq=False)
class RealInputs:
    """Some of the user's inputs: batches for statistics, how many samples these are, batches to try the
    result on, and the range of numbers, four deviations wide about the mean; None where no input has floats.
    """

    feeds: Feeds
    count: int
    held_out: Feeds
    span: tuple[float, float] | None


def real_inputs(proto: ModelProto, data: Data) -> RealInputs:
    """The user's inputs for statistics, at most 512 samples, whatever `data` says; of 16 or more, an eighth,
    at most 16, is held out.
    """
    specs = model_inputs(proto, data.shapes)
    samples = samples_of(specs, replace(data, samples=None))
    if samples.count > MAX_CALIBRATION:
        samples = samples_of(specs, replace(data, samples=MAX_CALIBRATION))
    fixed = fixed_batch(specs) or 1
    apart = min(samples.count // 8, MOST_HELD_OUT) // fixed * fixed if samples.count >= FEW else 0
    count, step = samples.count - apart, samples.batch
    feeds = [
        samples.make(start, min(start + samples.batch, count)) for start in range(0, count, samples.batch)
    ]
    held_out = [
        samples.make(start, min(start + step, samples.count)) for start in range(count, samples.count, step)
    ]
    return RealInputs(feeds, count, held_out, _span(feeds))


def _span(feeds: Feeds) -> tuple[float, float] | None:
    """Range of four deviations about the mean."""
    floats = [values for feed in feeds for values in feed.values() if values.dtype.kind == "f"]
    size = sum(values.size for values in floats)
    if not size:
        return None
    mean = sum(float(values.sum(dtype=np.float64)) for values in floats) / size
    squares = sum(float(np.square(values - mean, dtype=np.float64).sum()) for values in floats) / size
    if not squares > 0:
        return None
    reach = 2 * math.sqrt(squares)
    return mean - reach, mean + reach

"""The samples that follow from what a user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import ModelProto

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.specs import model_inputs, with_shapes
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.spec import Feeds, InputSpec

MAX_CALIBRATION = 512
"""Most samples of the user that statistics are taken on, to bound their cost; a choice."""


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


def real_feeds(proto: ModelProto, data: Data) -> Feeds:
    """Batches of the user's inputs for statistics, at most 512 samples, whatever `data` says."""
    specs = model_inputs(proto)
    samples = samples_of(specs, replace(data, samples=None))
    if samples.count > MAX_CALIBRATION:
        samples = samples_of(specs, replace(data, samples=MAX_CALIBRATION))
    return [feeds for _, _, feeds in samples.batches()]

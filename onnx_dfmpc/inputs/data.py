"""The samples that follow from what a user asks for."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.specs import InputSpec, with_shapes
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.recipe import Data


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

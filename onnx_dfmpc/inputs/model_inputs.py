"""What to run a float model on: its inputs as the file declares them, and batches of real data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.specs import InputSpec, with_shapes
from onnx_dfmpc.recipe import Data

MAX_CALIBRATION = 512


def model_inputs(proto: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> list[InputSpec]:
    """Inputs that a caller has to feed, initializers left out.

    Parameters
    ----------
    proto : ModelProto
    shapes : mapping, optional
        Shapes of inputs with open dimensions, by name.

    Raises
    ------
    UnsupportedError
        If an input is not a tensor of numbers.
    """
    initializers = {tensor.name for tensor in proto.graph.initializer}
    specs = []
    for value in proto.graph.input:
        if value.name in initializers:
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise UnsupportedError(
                f"input {value.name!r} is not a tensor of numbers",
                hint="statistics need inputs that can be drawn",
            )
        sizes = (
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"
            for dim in tensor.shape.dim
        )
        specs.append(
            InputSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(sizes))
        )
    return with_shapes(specs, shapes or {})


def real_feeds(proto: ModelProto, feeding: Data) -> list[dict[str, NDArray[Any]]]:
    """Batches of the user's inputs, at most 512 samples, whatever `feeding` says about their number.

    Parameters
    ----------
    proto : ModelProto
    feeding : Data

    Raises
    ------
    RecipeError
        Data that does not fit the model.
    """
    specs = model_inputs(proto)
    found = samples_of(specs, replace(feeding, samples=None))
    if found.count > MAX_CALIBRATION:
        found = samples_of(specs, replace(feeding, samples=MAX_CALIBRATION))
    return [feeds for _, _, feeds in found.batches()]

"""What a user says about inputs, in one dataclass, and the samples that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import LabelSource
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.sources import DataSource
from onnx_dfmpc.inputs.specs import InputSpec, model_inputs, with_shapes
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.recipe import Preprocessing, Recipe

MAX_CALIBRATION = 512
"""Most samples of the user that statistics are taken on, to bound their cost; a choice."""


@dataclass(frozen=True, eq=False)
class Feeding:
    """Where inputs come from and how they are fed.

    Attributes
    ----------
    data : path, mapping of arrays, array, or callable, optional
        Real inputs; None takes seeded synthetic ones. Arrays are found by input name, and labels as
        ``labels``; for a model with one input the only other array may have any name.

        * an .npz, or an .npy for a model with one input: a row for every sample
        * a folder of images, or one image: preprocessed as `images` says; sub-folders are classes
        * ``file.py:function``, a loader script: the function is called without arguments and yields mappings
          of input names to batches, or pairs of such a mapping and labels; ``load_data`` where no function is
          named
        * such a function
    labels : path or int array of shape (n,), optional
        Class indices, counted from 0; they win over the data's own.
    samples : int, optional
        At most so many samples of `data`, or so many synthetic ones.
    seed : int
        Of the choice of samples and of synthetic inputs.
    input_range : (float, float), optional
        Range of synthetic inputs.
    shapes : mapping
        Whole shapes of inputs with open dimensions, by name.
    batch_size : int, optional
        Samples per run, where the model leaves that open.
    images : Preprocessing
    """

    data: DataSource | None = None
    labels: LabelSource | None = None
    samples: int | None = None
    seed: int = 0
    input_range: tuple[float, float] | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batch_size: int | None = None
    images: Preprocessing = field(default_factory=Preprocessing)


def feeding_of(recipe: Recipe) -> Feeding:
    """What a recipe says about validation inputs."""
    return Feeding(
        data=recipe.data,
        labels=recipe.labels,
        samples=recipe.samples,
        seed=recipe.seed,
        input_range=recipe.input_range,
        shapes=dict(recipe.shapes),
        batch_size=recipe.batch_size,
        images=recipe.images,
    )


def calibration_feeding(recipe: Recipe) -> Feeding:
    """What a recipe says about inputs for statistics; their labels do not matter."""
    return replace(feeding_of(recipe), data=recipe.calibration_data, labels=None)


def samples_of(specs: Sequence[InputSpec], feeding: Feeding) -> Samples:
    """Samples of the user's data, or synthetic ones.

    Parameters
    ----------
    specs : sequence of InputSpec
        The model's inputs.
    feeding : Feeding

    Raises
    ------
    RecipeError
        Data that does not fit the model, or labels without data.
    """
    specs = with_shapes(specs, feeding.shapes)
    if feeding.data is not None:
        return from_data(
            specs,
            feeding.data,
            feeding.labels,
            samples=feeding.samples,
            seed=feeding.seed,
            batch=feeding.batch_size,
            images=feeding.images,
        )
    if feeding.labels is not None:
        raise RecipeError("labels without data", hint="name the inputs they belong to with --data")
    return synthetic(
        specs,
        samples=feeding.samples,
        seed=feeding.seed,
        input_range=feeding.input_range,
        batch=feeding.batch_size,
    )


def real_feeds(proto: ModelProto, feeding: Feeding) -> list[dict[str, NDArray[Any]]]:
    """Batches of the user's inputs, at most 512 samples, whatever `feeding` says about their number."""
    specs = model_inputs(proto)
    samples = samples_of(specs, replace(feeding, samples=None))
    if samples.count > MAX_CALIBRATION:
        samples = samples_of(specs, replace(feeding, samples=MAX_CALIBRATION))
    return [feeds for _, _, feeds in samples.batches()]

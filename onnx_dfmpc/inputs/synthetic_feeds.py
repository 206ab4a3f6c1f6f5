"""Inputs that nobody had to collect: images are `pictures`, signals of any other shape smooth noise along
their axes (NumPy).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.inputs.specs import InputSpec
from onnx_dfmpc.inputs.synthetic import DYNAMIC_LENGTH, DYNAMIC_PIXELS
from onnx_dfmpc.inputs.synthetic_images import picture
from onnx_dfmpc.spec import Array

MAX_SAMPLES, MIN_SAMPLES = 128, 32
POSITIONS = 1 << 22
"""Samples are as many as give about so many input positions, within the bounds above."""

BATCH_ELEMENTS = 1 << 18


def smooth_noise(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Noise of variance 1 with a 1/f spectrum along every axis but the first (the channels)."""
    white = rng.standard_normal(shape)
    axes = tuple(range(1, len(shape)))
    if not axes:
        return white
    squares: Any = sum(
        np.square(np.fft.fftfreq(shape[a]).reshape([-1 if b == a else 1 for b in range(len(shape))]))
        for a in axes
    )
    amplitude = 1 / np.sqrt(np.maximum(squares, 1 / max(shape[1:]) ** 2))
    amplitude /= np.sqrt(np.mean(amplitude**2))
    smooth: Array = np.fft.ifftn(np.fft.fftn(white, axes=axes) * amplitude, axes=axes).real
    return smooth


def synthetic_feeds(
    specs: Sequence[InputSpec],
    *,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    samples: int | None = None,
) -> list[dict[str, NDArray[Any]]]:
    """Batches of synthetic inputs for a model.

    Parameters
    ----------
    specs : sequence of InputSpec
    seed : int
    input_range : (float, float), optional
        Range of the values; by default floats have mean 0 and variance 1.
    samples : int, optional
        How many; by default as many as give enough positions.

    Returns
    -------
    list of dict
        Arrays by input name, one dict per batch. A fixed batch dimension is respected.
    """
    shapes = [_concrete(spec) for spec in specs]
    fixed = next((spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)), None)
    positions = max((int(np.prod(shape[2:])) for shape in shapes), default=1)
    samples = samples or int(np.clip(POSITIONS // max(positions, 1), MIN_SAMPLES, MAX_SAMPLES))
    elements = max((int(np.prod(shape[1:])) for shape in shapes), default=1)
    batch = fixed or max(1, min(samples // 4, BATCH_ELEMENTS // max(elements, 1)))
    feeds = []
    for index in range(-(-samples // batch)):
        feed = {}
        for position, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
            rows = [
                _sample(index * batch + row, shape[1:], (seed, position))
                for row in range(batch if shape else 0)
            ]
            feed[spec.name] = _fit(np.stack(rows) if rows else np.ones(()), spec, input_range)
        feeds.append(feed)
    return feeds


def is_image(shape: Sequence[int | str]) -> bool:
    """Whether a sample of this shape is an image: one or three channels first, or three last, and more rows
    and columns than that.
    """
    if len(shape) != 3:
        return False
    sides = shape[1:] if shape[0] in (1, 3) else shape[:2] if shape[2] == 3 else ()
    return bool(sides) and all(not isinstance(side, int) or side > 3 for side in sides)


def _concrete(spec: InputSpec) -> tuple[int, ...]:
    length = DYNAMIC_PIXELS if len(spec.shape) == 4 else DYNAMIC_LENGTH
    return tuple(size if isinstance(size, int) else length for size in spec.shape)


def _sample(number: int, shape: tuple[int, ...], key: tuple[int, int]) -> Array:
    """Sample of that number: two kinds of pictures take turns, and so do a pair of each and their negatives.

    Light and dark are as likely, so that the negative is as good a sample, and together they have exactly the
    mean of the inputs.
    """
    kind, pair, negative = number % 2, number // 4, number // 2 % 2
    drawn = _draw(kind, shape, np.random.default_rng((*key, pair, kind)))
    return -drawn if negative else drawn


def _draw(kind: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if not is_image(shape):
        return smooth_noise(shape, rng)
    if shape[0] in (1, 3):
        channels, height, width = shape
        return picture(kind, channels, height, width, rng)
    height, width, channels = shape
    return np.moveaxis(picture(kind, channels, height, width, rng), 0, 2)


def _fit(values: Array, spec: InputSpec, input_range: tuple[float, float] | None) -> NDArray[Any]:
    """Values of variance 1 -> the input's dtype and range."""
    if spec.dtype.kind == "b":
        return values > 0
    if spec.dtype.kind in "iu" and input_range is None:
        input_range = (0, min(255, int(np.iinfo(spec.dtype).max)))
    if input_range is not None:
        low, high = input_range
        values = np.clip((low + high) / 2 + values * (high - low) / 4, low, high)
    return (np.rint(values) if spec.dtype.kind in "iu" else values).astype(spec.dtype)

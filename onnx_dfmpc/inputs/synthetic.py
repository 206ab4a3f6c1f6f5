"""Seeded inputs that nobody had to collect (pure NumPy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import InputSpec, batch_size, channel_axis, fixed_batch, is_batched
from onnx_dfmpc.inputs.stored import Anything

SYNTHETIC_SAMPLES = 32
SYNTHETIC_ELEMENTS = 1 << 21
DYNAMIC_PIXELS = 224
DYNAMIC_LENGTH = 64


def natural_spectrum(
    shape: tuple[int, int, int], rng: np.random.Generator, *, steepness: float = 1.0
) -> NDArray[np.float64]:
    """Noise with the 1/f amplitude spectrum of photographs, and their correlation between channels (Field
    1987).

    Parameters
    ----------
    shape : (channels, height, width)
    rng : numpy.random.Generator
    steepness : float
        Amplitude falls as ``frequency ** -steepness``.

    Returns
    -------
    array, shape (channels, height, width)
        Mean 0 and variance 1 over many draws.
    """
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    amplitude = np.maximum(frequency, 1.0 / max(height, width)) ** -steepness
    amplitude /= np.sqrt(np.mean(amplitude**2))
    white = np.sqrt(0.8) * rng.standard_normal((1, height, width)) + np.sqrt(0.2) * rng.standard_normal(shape)
    if channels == 1:
        white = rng.standard_normal(shape)
    return np.fft.ifft2(np.fft.fft2(white) * amplitude).real


def _sample_shape(spec: InputSpec) -> tuple[int, ...]:
    dynamic = DYNAMIC_LENGTH if channel_axis(spec.shape) is None else DYNAMIC_PIXELS
    return tuple(size if isinstance(size, int) else dynamic for size in spec.shape)


def _draw(spec: InputSpec, rng: np.random.Generator, input_range: tuple[float, float] | None) -> Anything:
    """One sample, without the batch axis."""
    shape = _sample_shape(spec)[1:]
    axis = channel_axis(spec.shape)
    kind = spec.dtype.kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if axis is None and kind in "iu":
        low, high = input_range or (0, 1)
        return rng.integers(int(np.ceil(low)), int(np.floor(high)) + 1, shape).astype(spec.dtype)
    if axis is None:
        values = rng.standard_normal(shape)
    else:
        values = np.moveaxis(
            natural_spectrum((shape[axis - 1], *np.delete(shape, axis - 1)), rng), 0, axis - 1
        )
    if kind in "iu" and input_range is None:
        input_range = (0, min(255, int(np.iinfo(spec.dtype).max)))
    if input_range is not None:
        low, high = input_range
        values = np.clip((low + high) / 2 + values * (high - low) / 4, low, high)
    return (np.rint(values) if kind in "iu" else values).astype(spec.dtype)


def synthetic(
    specs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    batch: int | None = None,
) -> Samples:
    """Seeded inputs that nobody had to collect: 1/f images where an input looks like one, else normal noise.

    A sanity check of the arithmetic, not a measure of accuracy. Sample i is the same whatever the batch size
    or the number of samples.

    Parameters
    ----------
    specs : sequence of InputSpec
        The model's inputs. Dimensions that are not fixed become 224 (images) or 64.
    samples : int, optional
        How many; where it is None 32, and down to 8 for large inputs.
    seed : int
        Seed.
    input_range : (float, float), optional
        Range of the values; by default floats have mean 0 and variance 1, integer images 0 to 255, other
        integers 0 and 1.
    batch : int, optional
        Samples per run, where the model leaves that open.
    """
    fixed = fixed_batch(specs)
    shapes = {spec.name: _sample_shape(spec) for spec in specs}
    elements = max((int(np.prod(shape[1:])) for shape in shapes.values()), default=1)
    runs = batch_size(fixed, elements, batch)
    count = samples or max(8, min(SYNTHETIC_SAMPLES, SYNTHETIC_ELEMENTS // elements))
    if fixed is not None:
        count = max(1, round(count / fixed)) * fixed

    def draw(index: int, position: int) -> Anything:
        return _draw(specs[position], np.random.default_rng((seed, index, position)), input_range)

    def make(start: int, stop: int) -> dict[str, Anything]:
        feeds = {}
        for position, spec in enumerate(specs):
            if not spec.shape:
                feeds[spec.name] = np.ones((), spec.dtype)
                continue
            rows = range(start, stop) if is_batched(spec, fixed) else range(shapes[spec.name][0])
            feeds[spec.name] = np.stack([draw(index, position) for index in rows])
        return feeds

    kinds = {"1/f images" if channel_axis(spec.shape) is not None else "noise" for spec in specs}
    where = "" if input_range is None else f" in {input_range[0]:g} to {input_range[1]:g}"
    description = f"{count} synthetic samples ({', '.join(sorted(kinds))}{where}, seed {seed})"
    return Samples(count, runs, make, description, True)

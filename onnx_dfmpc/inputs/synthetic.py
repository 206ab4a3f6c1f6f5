"""Seeded inputs that nobody had to collect (NumPy), of three kinds.

 * "pictures": what statistics are taken on. Images are drawn (`pictures`), signals are smooth noise.
 * "white": white noise, the other extreme.
 * "spectrum": what outputs are compared on. Images are noise with the spectrum of photographs, anything else
   is white noise. It is another kind on purpose: layers that were rounded for the one kind of inputs do
   better on it than on any other.

Each kind has its own counts, batches and random keys. Bits and codes depend on every sample, on its place in
a batch and on its dtype, so a change of any rule here changes the bytes of all quantized files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnx_dfmpc.inputs.conventions import value_by_name
from onnx_dfmpc.inputs.pictures import natural_spectrum, picture, smooth_noise
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import batch_size, channel_axis, fixed_batch, is_batched, is_image
from onnx_dfmpc.inputs.stored import AnyArray
from onnx_dfmpc.spec import Array, InputSpec

Kind = Literal["pictures", "white", "spectrum"]
Range = tuple[float, float]

# Sizes of open dimensions: 224 is the convention of ImageNet; 64 for anything else is a choice.
DYNAMIC_PIXELS = 224
DYNAMIC_LENGTH = 64

# Pictures: enough samples for 2^21 input positions, within bounds. At least 32, since late layers have few
# positions per sample and a covariance of n inputs needs more than n; at most 128, for the cost: over 64
# they are worth 0.3 dB, the mean of 22 pairs on six networks, for a tenth of the time (docs/accuracy.md).
MAX_SAMPLES, MIN_SAMPLES = 128, 32
POSITIONS = 1 << 21

# Pictures: 2 MiB of doubles per batch. Halved once to hold fewer activations at a time; not tuned otherwise.
BATCH_ELEMENTS = 1 << 18

# Spectrum: 8 samples, fewer of inputs of more than 2^17 elements, down to 4. A choice.
SPECTRUM_SAMPLES, SPECTRUM_FEWEST = 8, 4
SPECTRUM_ELEMENTS = 1 << 20


def synthetic(
    specs: Sequence[InputSpec],
    kind: Kind = "spectrum",
    *,
    samples: int | None = None,
    seed: int = 0,
    input_range: Range | None = None,
    batch: int | None = None,
    unit: bool = False,
) -> Samples:
    """Samples for a model, without data. Sample i is the same whatever the batch size or their number.

    `samples` is how many, by default as many as the kind needs; `batch` how many per run, where the model
    leaves that open. Floats have mean 0 and variance 1 in `unit`s, or where no `input_range` is given;
    integers are 0 to 255, or 0 and 1 where they are no image and the kind is "spectrum"; indices of a table
    (`InputSpec.rows`) are any of its rows, whatever the kind. What names tell comes first (`conventions`).
    """
    fixed = fixed_batch(specs)
    shapes = [_concrete(spec, kind) for spec in specs]
    count, size = _count_and_batch(kind, shapes, fixed, samples, batch)
    draw = DRAWS[kind]

    def make(start: int, stop: int) -> dict[str, AnyArray]:
        feeds: dict[str, AnyArray] = {}
        for position, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
            # an input without the batch axis is the same in all runs
            rows = range(start, stop) if is_batched(spec, fixed) else range(shape[0] if shape else 0)
            between = None if unit and spec.dtype.kind == "f" else input_range
            one = _draw_indices if spec.rows else draw
            if (value := value_by_name(spec, specs, shapes)) is not None:
                size = (len(rows), *shape[1:]) if shape else ()
                feeds[spec.name] = np.full(size, value, spec.dtype)
                continue
            drawn = [one(spec, shape[1:], between, (seed, index, position)) for index in rows]
            feeds[spec.name] = np.stack(drawn) if shape else np.ones((), spec.dtype)
        return feeds

    names = NAMES[kind]
    kinds = {names[0 if _looks_like_image(spec, kind) else 1] for spec in specs}
    where = "" if input_range is None else f" in {input_range[0]:g} to {input_range[1]:g}"
    description = f"{count} synthetic samples ({', '.join(sorted(kinds))}{where}, seed {seed})"
    return Samples(count, size, make, description, True)


def synthetic_feeds(
    specs: Sequence[InputSpec],
    kind: Kind = "pictures",
    *,
    seed: int = 0,
    input_range: Range | None = None,
    samples: int | None = None,
) -> list[dict[str, AnyArray]]:
    """All batches of synthetic inputs, one dict of arrays by input name each."""
    drawn = synthetic(specs, kind, samples=samples, seed=seed, input_range=input_range)
    return [feeds for _, _, feeds in drawn.batches()]


@dataclass(frozen=True)
class Hypothesis:
    """Inputs of a kind, in a range that is four deviations wide; of a picture, its tails are clipped."""

    kind: Kind
    low: float
    high: float
    picture: bool = True

    def __str__(self) -> str:
        return f"{NAMES[self.kind][0 if self.picture else 1]} in {self.low:g} to {self.high:g}"


@dataclass(frozen=True, eq=False)
class Units:
    """Inputs of a kind before they are put into a range, mean 0 and variance 1: drawn once, used for every
    hypothesis.

    ``batch`` samples are run at a time, always as many if that is ``fixed``; inputs that are not named in
    ``batched`` are the same in all runs.
    """

    kind: Kind
    arrays: Mapping[str, AnyArray]
    count: int
    batch: int
    fixed: bool
    batched: tuple[str, ...]


def draw(
    specs: Sequence[InputSpec], kind: Kind, samples: int, seed: int, input_range: Range | None = None
) -> Units:
    """So many samples or, where the model fixes its batch, a few more; the range is that of integers."""
    fixed = fixed_batch(specs)
    drawn = synthetic(
        specs, kind, samples=samples, seed=seed, batch=fixed, input_range=input_range, unit=True
    )
    batched = tuple(spec.name for spec in specs if is_batched(spec, fixed))
    arrays = drawn.make(0, drawn.count)
    return Units(kind, arrays, drawn.count, drawn.batch, fixed is not None, batched)


def hypothetical(
    units: Units, hypothesis: Hypothesis, samples: int | None = None
) -> list[dict[str, AnyArray]]:
    """The first samples, by default all, as a hypothesis has them, in batches."""
    count = min(samples or units.count, units.count)
    step = units.batch if units.fixed else min(units.batch, count)
    feeds = []
    for start in range(0, count, step):
        stop = start + step if units.fixed else min(start + step, count)
        feed = {
            name: values[start:stop] if name in units.batched else values
            for name, values in units.arrays.items()
        }
        feeds.append(placed(feed, hypothesis.low, hypothesis.high, clipped=hypothesis.picture))
    return feeds


def usual_samples(specs: Sequence[InputSpec]) -> int:
    """How many samples statistics are taken on."""
    return _enough([_concrete(spec, "pictures") for spec in specs])


def _enough(shapes: Sequence[tuple[int, ...]]) -> int:
    """Samples of inputs of these shapes that statistics are taken on."""
    positions = max([1, *(math.prod(shape[2:]) for shape in shapes)])
    return int(np.clip(POSITIONS // positions, MIN_SAMPLES, MAX_SAMPLES))


def placed(feeds: Mapping[str, AnyArray], low: float, high: float, *, clipped: bool) -> dict[str, AnyArray]:
    """Inputs of mean 0 and variance 1 in a range that is four deviations wide; the tails are clipped, or not.
    Integers stay as they are.
    """
    return {
        name: _in_range(values, low, high, clipped=clipped).astype(values.dtype)
        if values.dtype.kind == "f"
        else values
        for name, values in feeds.items()
    }


def _looks_like_image(spec: InputSpec, kind: Kind) -> bool:
    """Pictures have edges of some length, so they are drawn only where there is no doubt (see `is_image`)."""
    return channel_axis(spec.shape) is not None if kind == "spectrum" else is_image(spec.shape[1:])


def open_sizes(spec: InputSpec, sizes: Sequence[int] = ()) -> tuple[int, ...]:
    """Shape of an input with a number for every dimension: the last of the open ones get these sizes, others
    the usual one; that of a batch is not used.
    """
    usual = DYNAMIC_PIXELS if len(spec.shape) == 4 else DYNAMIC_LENGTH
    left = list(sizes)
    backwards = [
        one if isinstance(one, int) else left.pop() if left else usual for one in reversed(spec.shape)
    ]
    return tuple(reversed(backwards))


def _concrete(spec: InputSpec, kind: Kind) -> tuple[int, ...]:
    """Shape of an input with a number for every dimension; that of an open batch is not used."""
    # The kinds differ for (N, C, H, W) of other than 1 or 3 channels: never measured, kept for the bytes.
    small = kind == "spectrum" and channel_axis(spec.shape) is None
    return open_sizes(spec, [DYNAMIC_LENGTH] * len(spec.shape) if small else ())


def _count_and_batch(
    kind: Kind, shapes: Sequence[tuple[int, ...]], fixed: int | None, samples: int | None, batch: int | None
) -> tuple[int, int]:
    """Number of samples, and samples per run."""
    elements = max([1, *(int(np.prod(shape[1:])) for shape in shapes)])
    if kind == "spectrum":
        count = samples or max(SPECTRUM_FEWEST, min(SPECTRUM_SAMPLES, SPECTRUM_ELEMENTS // elements))
        if fixed is not None:
            count = max(1, round(count / fixed)) * fixed
        return count, batch_size(fixed, elements, batch)
    count = samples or _enough(shapes)
    # at least four batches, which run on as many threads
    usual = max(1, min(count // 4, BATCH_ELEMENTS // elements))
    size = batch_size(fixed, elements, batch if fixed else batch or usual)
    return -(-count // size) * size, size  # the last batch is filled up: all batches have one shape


def _draw_picture(
    spec: InputSpec, shape: tuple[int, ...], input_range: Range | None, key: tuple[int, int, int]
) -> AnyArray:
    """One sample of that shape, without the batch axis; `key` is seed, number and position of the input.

    Dead leaves and surfaces take turns. A negative of a picture, or the picture turned by half a turn, would
    be a sample for nothing, but is worth less than another picture: SqueezeNet at 3 bits had 49 % instead of
    52, MobileNetV1 23 instead of 24.
    """
    seed, index, position = key
    kind, number = index % 2, index // 2
    rng = np.random.default_rng((seed, position, number, kind))
    if is_image(shape):
        values = _drawn_image(shape, lambda sizes: picture(kind, *sizes, rng))
    else:
        values = smooth_noise(shape, rng)
    return _fit(values, spec.dtype, input_range)


def _draw_white(
    spec: InputSpec, shape: tuple[int, ...], input_range: Range | None, key: tuple[int, int, int]
) -> AnyArray:
    """One sample of that shape, without the batch axis; `key` is seed, number and position of the input."""
    return _fit(np.random.default_rng(key).standard_normal(shape, np.float32), spec.dtype, input_range)


def _draw_spectrum(
    spec: InputSpec, shape: tuple[int, ...], input_range: Range | None, key: tuple[int, int, int]
) -> AnyArray:
    """One sample of that shape, without the batch axis; `key` is seed, number and position of the input."""
    rng = np.random.default_rng(key)
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if channel_axis(spec.shape) is not None:
        values = _drawn_image(shape, lambda sizes: natural_spectrum(sizes, rng))
    elif spec.dtype.kind in "iu":  # indices or flags: only 0 and 1 are safe to look up
        low, high = input_range or (0, 1)
        return rng.integers(int(np.ceil(low)), int(np.floor(high)) + 1, shape).astype(spec.dtype)
    else:
        values = rng.standard_normal(shape)
    return _fit(values, spec.dtype, input_range)


def _draw_indices(
    spec: InputSpec, shape: tuple[int, ...], input_range: Range | None, key: tuple[int, int, int]
) -> AnyArray:
    """Any row of the table that the input looks things up in: which ones are frequent, no file tells."""
    last = (spec.rows or 1) - 1
    low, high = np.clip(input_range or (0, last), 0, last)
    rng = np.random.default_rng(key)
    return rng.integers(int(np.ceil(low)), int(np.floor(high)) + 1, shape).astype(spec.dtype)


def _drawn_image(shape: tuple[int, ...], draw: Callable[[tuple[int, int, int]], Array]) -> Array:
    """An image that is drawn channels first, in the order of axes of `shape`."""
    axis = 2 if channel_axis(("N", *shape)) == 3 else 0
    height, width = np.delete(shape, axis)
    return np.moveaxis(draw((shape[axis], int(height), int(width))), 0, axis)


def _fit(values: Array, dtype: np.dtype[Any], input_range: Range | None) -> AnyArray:
    """Values of variance 1 in the input's dtype and range: a range is four deviations wide, 95 % of a normal
    distribution; the tails are clipped.
    """
    if dtype.kind == "b":
        return values > 0
    if dtype.kind in "iu" and input_range is None:
        input_range = (0, min(255, int(np.iinfo(dtype).max)))
    if input_range is not None:
        values = _in_range(values, *input_range, clipped=True)
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)


def _in_range(values: Array, low: float, high: float, *, clipped: bool) -> Array:
    moved: Array = values * ((high - low) / 4) + (low + high) / 2
    return np.clip(moved, low, high) if clipped else moved


DRAWS: dict[Kind, Callable[[InputSpec, tuple[int, ...], Range | None, tuple[int, int, int]], AnyArray]] = {
    "pictures": _draw_picture,
    "white": _draw_white,
    "spectrum": _draw_spectrum,
}

NAMES: dict[Kind, tuple[str, str]] = {
    "pictures": ("pictures", "smooth noise"),
    "white": ("white noise", "white noise"),
    "spectrum": ("1/f images", "noise"),
}
"""What a kind is called, for pictures and for anything else."""

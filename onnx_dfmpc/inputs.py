"""What to feed a model: the user's arrays, checked against its inputs, or seeded synthetic ones (pure NumPy).

Samples are made batch by batch, so that memory stays bounded however many there are.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError

__all__ = ["InputSpec", "Samples", "fixed_batch", "from_data", "natural_spectrum", "synthetic"]

Anything = NDArray[Any]
DataSource = str | os.PathLike[str] | Mapping[str, Anything] | Anything
LabelSource = str | os.PathLike[str] | Anything

SYNTHETIC_SAMPLES = 32
SYNTHETIC_ELEMENTS = 1 << 21
DYNAMIC_PIXELS = 224
DYNAMIC_LENGTH = 64
MAX_BATCH = 64
MAX_BATCH_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of a model input; a dimension that is not fixed is its name, or "?"."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {_shape_text(self.shape)}"


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds for one or two models.

    Attributes
    ----------
    count : int
        Number of samples.
    batch : int
        Samples per run.
    make : callable
        ``make(start, stop)`` gives the feeds of these samples by input name.
    description : str
        Where they come from, for the report.
    synthetic : bool
        True where nobody ever saw such inputs.
    labels : int array, shape (count,), or None
    notes : tuple of str
        What was done to the data on the way (casts, samples left out).
    """

    count: int
    batch: int
    make: Callable[[int, int], dict[str, Anything]]
    description: str
    synthetic: bool
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def batches(self) -> Iterator[tuple[int, int, dict[str, Anything]]]:
        """Yield start, stop and the feeds of each run."""
        for start in range(0, self.count, self.batch):
            stop = min(start + self.batch, self.count)
            yield start, stop, self.make(start, stop)


def _shape_text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _listing(specs: Sequence[InputSpec]) -> str:
    return "the model's inputs are " + "; ".join(map(str, specs))


def fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """Batch size the model insists on, None where it takes any."""
    first = next((spec.shape[0] for spec in specs if spec.shape), 1)
    return first if isinstance(first, int) else None


def _is_batched(spec: InputSpec, fixed: int | None) -> bool:
    if not spec.shape:
        return False
    return not isinstance(spec.shape[0], int) if fixed is None else spec.shape[0] == fixed


def _batch_size(fixed: int | None, elements: int) -> int:
    return fixed if fixed is not None else max(1, min(MAX_BATCH, MAX_BATCH_ELEMENTS // max(elements, 1)))


# ---------------------------------------------------------------------------------------------------------------- the user's data


def from_data(
    specs: Sequence[InputSpec], data: DataSource, labels: LabelSource | None = None, *, samples: int | None = None, seed: int = 0
) -> Samples:
    """Check arrays against the model's inputs and make samples of them.

    Parameters
    ----------
    specs : sequence of InputSpec
        The model's inputs.
    data : path of an .npz or .npy, mapping of arrays, or array
        Keys are input names; a key ``labels`` holds labels. For a model with one input the only other key may have any name.
    labels : path of an .npz, .npy or text file, or int array of shape (n,), optional
        Wins over the data's own.
    samples : int, optional
        At most so many samples, drawn with `seed`; None takes all.

    Raises
    ------
    RecipeError
        A file that cannot be read, or arrays that are not what the model takes: the message says which and what is expected.
    """
    arrays, description = _read(data, "data")
    arrays, own_labels, notes = _assign(arrays, specs, description)
    fixed = fixed_batch(specs)
    batched: dict[str, Anything] = {}
    constant: dict[str, Anything] = {}
    for spec in specs:
        array, cast = _fit(arrays[spec.name], spec, description, specs, is_batched=_is_batched(spec, fixed))
        notes += cast
        (batched if _is_batched(spec, fixed) else constant)[spec.name] = array
    counts = {name: len(array) for name, array in batched.items()}
    if len(set(counts.values())) > 1:
        raise RecipeError(f"{description}: inputs differ in samples: " + ", ".join(f"{name} has {n}" for name, n in counts.items()))
    available = next(iter(counts.values()), 1)
    if available == 0:
        raise RecipeError(f"{description}: no samples")
    targets = _read_labels(labels, available) if labels is not None else own_labels
    if targets is not None:
        targets = _check_labels(targets, available, str(labels) if isinstance(labels, str | os.PathLike) else "labels")

    count = min(samples or available, available)
    if fixed is not None and count % fixed:
        count -= count % fixed
        if count == 0:
            raise RecipeError(f"{description}: the model takes {fixed} samples at a time, the data has {available}", hint=_listing(specs))
        notes += (f"{count} samples used, because the model takes {fixed} at a time",)
    if count < available:
        chosen = np.sort(np.random.default_rng(seed).choice(available, count, replace=False))
        batched = {name: array[chosen] for name, array in batched.items()}
        targets = None if targets is None else targets[chosen]
        description += f", {count} of {available} samples drawn with seed {seed}"
    else:
        description += f", {count} samples"

    def make(start: int, stop: int) -> dict[str, Anything]:
        return {name: array[start:stop] for name, array in batched.items()} | constant

    elements = max((array[0].size for array in batched.values()), default=1)
    return Samples(count, _batch_size(fixed, elements), make, description, False, targets, notes)


def _read(source: Any, what: str) -> tuple[dict[str, Anything], str]:
    """Arrays by name ("" where a single array has none) and a description of the source."""
    if isinstance(source, Mapping):
        return {str(name): np.asarray(array) for name, array in source.items()}, "arrays"
    if not isinstance(source, str | os.PathLike):
        return {"": np.asarray(source)}, "array"
    path = Path(source)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {what} file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read {what}: {error.strerror or error}") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError):
        raise RecipeError(f"{path}: not an .npz or .npy file of plain arrays", hint="write it with numpy.savez") from None
    return arrays, str(path)


def _assign(
    arrays: dict[str, Anything], specs: Sequence[InputSpec], source: str
) -> tuple[dict[str, Anything], Anything | None, tuple[str, ...]]:
    """Arrays by input name, the labels among them, and remarks."""
    names = [spec.name for spec in specs]
    labels = arrays.get("labels") if "labels" not in names else None
    rest = {name: array for name, array in arrays.items() if name != "labels" or "labels" in names}
    if all(name in rest for name in names):
        unused = [name for name in rest if name not in names]
        notes = (f"not an input, left out: {', '.join(unused)}",) if unused else ()
        return {name: rest[name] for name in names}, labels, notes
    if len(names) == 1 and len(rest) == 1:
        return {names[0]: next(iter(rest.values()))}, labels, ()
    found = ", ".join(name or "one array without a name" for name in rest) or "nothing but labels"
    raise RecipeError(f"{source}: expected arrays named {', '.join(names)}, found {found}", hint=_listing(specs))


def _fit(
    array: Anything, spec: InputSpec, source: str, specs: Sequence[InputSpec], *, is_batched: bool
) -> tuple[Anything, tuple[str, ...]]:
    """Cast an array to the input's dtype and say so; its shape has to fit as it is."""
    first = 1 if is_batched else 0
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(spec.shape[first:], array.shape[first:], strict=True)
    )
    if not fits:
        want = ("n", *spec.shape[1:]) if is_batched else spec.shape
        found = f"{array.dtype} {_shape_text(array.shape)}"
        raise RecipeError(
            f"{source}: input {spec.name!r} expects {spec.dtype} {_shape_text(want)}, the data has {found}",
            hint="preprocess the data (axis order, size, normalisation) as for training and save it with numpy.savez"
            if len(specs) == 1
            else _listing(specs),
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RecipeError(f"{source}: input {spec.name!r} has NaN or infinite values")
    if array.dtype == spec.dtype:
        return array, ()
    if not _can_cast(array, spec.dtype):
        raise RecipeError(
            f"{source}: input {spec.name!r} expects {spec.dtype}, the data has {array.dtype}",
            hint=f"convert it on purpose: array.astype({spec.dtype})",
        )
    note = f"{spec.name}: cast from {array.dtype} to {spec.dtype}"
    if array.dtype.kind in "iu" and spec.dtype.kind == "f":
        note += f", values {array.min()} to {array.max()} as they are" if array.size else ""
    return array.astype(spec.dtype), (note,)


def _can_cast(array: Anything, dtype: np.dtype[Any]) -> bool:
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.dtype.kind != "b"
    if array.dtype.kind == "f" and dtype.kind == "f":
        return bool(np.abs(array).max(initial=0.0) <= np.finfo(dtype).max)
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        return bool(array.min() >= limits.min and array.max() <= limits.max)
    return False


def _read_labels(labels: LabelSource, count: int) -> Anything:
    if not isinstance(labels, str | os.PathLike):
        return np.asarray(labels)
    if Path(labels).suffix not in (".npz", ".npy"):
        try:
            return np.loadtxt(labels, dtype=np.int64, ndmin=1)
        except FileNotFoundError:
            raise RecipeError(f"{labels}: no such labels file") from None
        except (OSError, ValueError):
            raise RecipeError(f"{labels}: not a label file", hint="give an .npz, an .npy, or text with one integer per line") from None
    arrays, source = _read(labels, "labels")
    if "labels" in arrays:
        return arrays["labels"]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise RecipeError(f"{source}: has {', '.join(arrays)}, none of them named 'labels'", hint=f"{count} integers, one per sample")


def _check_labels(labels: Anything, count: int, source: str) -> NDArray[np.int64]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise RecipeError(
            f"{source}: expected {count} integers, one per sample, got {labels.dtype} {_shape_text(labels.shape)}",
            hint="labels are class indices, counted from 0",
        )
    return labels.astype(np.int64)


# -------------------------------------------------------------------------------------------------------------- synthetic inputs


def natural_spectrum(shape: tuple[int, int, int], rng: np.random.Generator, *, steepness: float = 1.0) -> NDArray[np.float64]:
    """Noise with the 1/f amplitude spectrum of photographs, and their correlation between channels (Field 1987).

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


def _channel_axis(shape: Sequence[int | str]) -> int | None:
    """Axis with the colours of an image (N, C, H, W) or (N, H, W, C), None for anything else."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in (1, 3)), None)


def _sample_shape(spec: InputSpec) -> tuple[int, ...]:
    dynamic = DYNAMIC_LENGTH if _channel_axis(spec.shape) is None else DYNAMIC_PIXELS
    return tuple(size if isinstance(size, int) else dynamic for size in spec.shape)


def _draw(spec: InputSpec, rng: np.random.Generator, input_range: tuple[float, float] | None) -> Anything:
    """One sample, without the batch axis."""
    shape = _sample_shape(spec)[1:]
    axis = _channel_axis(spec.shape)
    kind = spec.dtype.kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if axis is None and kind in "iu":
        low, high = input_range or (0, 1)
        return rng.integers(int(np.ceil(low)), int(np.floor(high)) + 1, shape).astype(spec.dtype)
    if axis is None:
        values = rng.standard_normal(shape)
    else:
        values = np.moveaxis(natural_spectrum((shape[axis - 1], *np.delete(shape, axis - 1)), rng), 0, axis - 1)
    if kind in "iu" and input_range is None:
        input_range = (0, min(255, int(np.iinfo(spec.dtype).max)))
    if input_range is not None:
        low, high = input_range
        values = np.clip((low + high) / 2 + values * (high - low) / 4, low, high)
    return (np.rint(values) if kind in "iu" else values).astype(spec.dtype)


def synthetic(
    specs: Sequence[InputSpec], *, samples: int | None = None, seed: int = 0, input_range: tuple[float, float] | None = None
) -> Samples:
    """Seeded inputs that nobody had to collect: 1/f images where an input looks like one, else normal noise.

    A sanity check of the arithmetic, not a measure of accuracy. Sample i is the same whatever the batch size or the number of samples.

    Parameters
    ----------
    specs : sequence of InputSpec
        The model's inputs. Dimensions that are not fixed become 224 (images) or 64.
    samples : int, optional
        How many; where it is None 32, and down to 8 for large inputs.
    seed : int
        Seed.
    input_range : (float, float), optional
        Range of the values; by default floats have mean 0 and variance 1, integer images 0 to 255, other integers 0 and 1.
    """
    fixed = fixed_batch(specs)
    shapes = {spec.name: _sample_shape(spec) for spec in specs}
    elements = max((int(np.prod(shape[1:])) for shape in shapes.values()), default=1)
    batch = _batch_size(fixed, elements)
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
            rows = range(start, stop) if _is_batched(spec, fixed) else range(shapes[spec.name][0])
            feeds[spec.name] = np.stack([draw(index, position) for index in rows])
        return feeds

    kinds = {"1/f images" if _channel_axis(spec.shape) is not None else "noise" for spec in specs}
    where = "" if input_range is None else f" in {input_range[0]:g} to {input_range[1]:g}"
    description = f"{count} synthetic samples ({', '.join(sorted(kinds))}{where}, seed {seed})"
    return Samples(count, batch, make, description, True)

"""Arrays of any source by input name, with labels where it has them, and the checks that they are what the
model takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.specs import fits, fixed_batch, is_batched, listing
from onnx_dfmpc.inputs.stored import AnyArray, Rows, StoredArray, stored_arrays
from onnx_dfmpc.spec import InputSpec, shape_text

LABELS = "labels"
"""Name of the labels among arrays, unless it is an input."""

LabelSource = str | os.PathLike[str] | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Dataset:
    """All samples of a source; nothing but labels has to be in memory.

    `batched` inputs have a row for every sample, `constant` ones are the same for all. `varying` ones have no
    axis of samples, such as a state, and are others in every run: a row for each run, of `per_run` samples.
    `description` says where they come from, `notes` what was done to them on the way.
    """

    batched: Mapping[str, Rows]
    constant: Mapping[str, AnyArray]
    description: str
    labels: AnyArray | None = None
    notes: tuple[str, ...] = ()
    varying: Mapping[str, Rows] = field(default_factory=dict)
    per_run: int = 1

    @property
    def count(self) -> int:
        """Number of samples."""
        each = next((rows.shape[0] for rows in self.batched.values()), None)
        return each or next((rows.shape[0] for rows in self.varying.values()), 1 if each is None else each)


def arrays_dataset(specs: Sequence[InputSpec], rows: Mapping[str, Rows], source: str) -> Dataset:
    """Dataset of arrays by name, with a row for every sample, and of `labels`."""
    assigned, notes = assign_arrays(list(rows), specs, source)
    fixed = fixed_batch(specs)
    batched = {spec.name: rows[assigned[spec.name]] for spec in specs if is_batched(spec, fixed)}
    others = {spec.name: rows[assigned[spec.name]] for spec in specs if not is_batched(spec, fixed)}
    # One axis more than the model has: a row for each sample.
    by_name = {spec.name: spec for spec in specs}
    varying = {
        name: array
        for name, array in others.items()
        if len(array.shape) == len(by_name[name].shape) + 1
        and fits(array.shape[1:], by_name[name], batched=False)
    }
    constant = {name: _whole(array) for name, array in others.items() if name not in varying}
    labels = _whole(rows[LABELS]) if LABELS in rows and LABELS not in assigned.values() else None
    dataset = Dataset(batched, constant, source, labels, notes, varying)
    check_shapes(specs, dataset)
    return dataset


def _whole(rows: Rows) -> AnyArray:
    return rows.whole() if isinstance(rows, StoredArray) else np.asarray(rows)


def assign_arrays(
    arrays: Sequence[str], specs: Sequence[InputSpec], source: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name of the array for every input, and remarks. A single array without a name is called "", and for a
    model with one input the only array may have any name.
    """
    names = [spec.name for spec in specs]
    candidates = [name for name in arrays if name != LABELS or LABELS in names]
    if all(name in candidates for name in names):
        unused = [name for name in candidates if name not in names]
        notes = (f"not an input, left out: {', '.join(unused)}",) if unused else ()
        return {name: name for name in names}, notes
    if len(names) == 1 and len(candidates) == 1:
        return {names[0]: candidates[0]}, ()
    shown = ", ".join(name or "one array without a name" for name in candidates) or "nothing but labels"
    hint = listing(specs) + (f"; class indices are an array named {LABELS!r}" if LABELS not in arrays else "")
    raise RecipeError(f"{source}: expected arrays named {', '.join(names)}, found {shown}", hint=hint)


def check_shapes(specs: Sequence[InputSpec], dataset: Dataset) -> None:
    """Raise RecipeError where an input does not have the model's shape, or inputs differ in samples, or there
    are none.
    """
    for spec in specs:
        if spec.name in dataset.varying:
            continue
        batched = spec.name in dataset.batched
        rows: Rows = dataset.batched[spec.name] if batched else dataset.constant[spec.name]
        if not fits(rows.shape, spec, batched=batched):
            raise shape_error(rows.shape, rows.dtype, spec, dataset.description, batched=batched)
    counts = {name: rows.shape[0] for name, rows in dataset.batched.items()}
    counts |= {name: rows.shape[0] * dataset.per_run for name, rows in dataset.varying.items()}
    common_count(counts, dataset.description)
    if dataset.count == 0:
        raise RecipeError(f"{dataset.description}: no samples")


def common_count(counts: Mapping[str, int], source: str) -> int:
    """Number of samples that all inputs have; 1 where none of them is batched."""
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise RecipeError(f"{source}: inputs differ in samples: {each}")
    return next(iter(counts.values()), 1)


def shape_error(
    shape: Sequence[int], dtype: np.dtype[Any], spec: InputSpec, source: str, hint: str = "", *, batched: bool
) -> RecipeError:
    """What to raise for an array that cannot be fed; without a hint, with one that the shapes suggest."""
    want = shape_text(("n", *spec.shape[1:]) if batched else spec.shape)
    have = shape_text(tuple("?" if size < 0 else size for size in shape))
    return RecipeError(
        f"{source}: input {spec.name!r} expects {spec.dtype} {want}, the data has {dtype} {have}",
        hint=hint or _shape_hint(shape, spec, batched=batched),
    )


def _shape_hint(shape: Sequence[int], spec: InputSpec, *, batched: bool) -> str:
    """How an array would fit: with its channels at the other end, or as a batch of one."""
    last = len(shape) - 1
    for axes in ((0, last, *range(1, last)), (0, *range(2, last + 1), 1)) if last > 1 else ():
        if fits([shape[axis] for axis in axes], spec, batched=batched):
            return f"the axes are in another order: save array.transpose{axes}"
    if batched and fits((1, *shape), spec, batched=True):
        return "a single sample needs a batch axis: save array[None]"
    return (
        "preprocess the data (axis order, size, normalisation) as for training and save it with numpy.savez"
    )


def cast(array: AnyArray, spec: InputSpec, source: str) -> AnyArray:
    """Array in the dtype of the input; RecipeError for NaN, infinity, or values that the dtype lacks."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RecipeError(f"{source}: input {spec.name!r} has NaN or infinite values")
    if array.dtype == spec.dtype:
        return array
    if not _can_cast(array, spec.dtype):
        raise RecipeError(
            f"{source}: input {spec.name!r} expects {spec.dtype}, the data has {array.dtype}",
            hint=f"convert it on purpose: array.astype({spec.dtype})",
        )
    return array.astype(spec.dtype)


def cast_note(array: AnyArray, spec: InputSpec) -> tuple[str, ...]:
    """Remark on what `cast` does, with the range of integers, which tells whether they were normalised."""
    if array.dtype == spec.dtype:
        return ()
    note = f"{spec.name}: cast from {array.dtype} to {spec.dtype}"
    if array.dtype.kind in "iu" and spec.dtype.kind == "f" and array.size:
        note += f", values {array.min()} to {array.max()} as they are (first batch)"
    return (note,)


def _can_cast(array: AnyArray, dtype: np.dtype[Any]) -> bool:
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.dtype.kind != "b"
    if array.dtype.kind == "f" and dtype.kind == "f":
        return bool(np.abs(array).max(initial=0.0) <= np.finfo(dtype).max)
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        return bool(array.min() >= limits.min and array.max() <= limits.max)
    return False


# labels


def read_labels(labels: LabelSource, count: int) -> AnyArray:
    """Labels of that many samples, not yet checked: an array, an .npy, or an .npz with an array ``labels`` or
    a single one.
    """
    if not isinstance(labels, str | os.PathLike):
        return np.asarray(labels)
    arrays = stored_arrays(Path(labels), "labels")
    if LABELS in arrays:
        return arrays[LABELS].whole()
    if len(arrays) == 1:
        return next(iter(arrays.values())).whole()
    raise RecipeError(
        f"{labels}: has {', '.join(arrays)}, none of them named {LABELS!r}",
        hint=f"{count} integers, one per sample",
    )


def check_labels(labels: AnyArray, count: int, source: str) -> NDArray[np.int64]:
    """Labels as int64, shape (count,), from whole numbers of any dtype, shape (count,) or (count, 1)."""
    column = labels[:, 0] if labels.shape == (count, 1) else labels
    whole = column.dtype.kind in "iu" or (
        column.dtype.kind == "f" and np.array_equal(column, np.rint(column))
    )
    if column.shape != (count,) or not whole:
        one_hot = labels.ndim == 2 and len(labels) == count
        got = f"{labels.dtype} {shape_text(labels.shape)}"
        raise RecipeError(
            f"{source}: expected {count} integers, one per sample, got {got}",
            hint="labels are class indices, counted from 0"
            + (": save labels.argmax(axis=1)" if one_hot else ""),
        )
    return column.astype(np.int64)

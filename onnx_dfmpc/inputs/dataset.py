"""Arrays of any source by input name, with labels where it has them, and the checks that they are what the
model takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.specs import InputSpec, fixed_batch, is_batched, listing, shape_text
from onnx_dfmpc.inputs.stored import Anything, Rows

LABELS = "labels"
"""Name of the labels among arrays, unless it is an input."""


@dataclass(frozen=True, eq=False)
class Table:
    """All samples of a source; nothing but labels has to be in memory.

    Attributes
    ----------
    batched : mapping of Rows
        Inputs that have a row for every sample.
    constant : mapping of arrays
        Inputs that are the same for all samples.
    description : str
        Where they come from, in words.
    labels : array or None
    names : tuple of str
        What a labels file may call the samples; empty where they have no names.
    notes : tuple of str
        What was done to the data on the way.
    """

    batched: Mapping[str, Rows]
    constant: Mapping[str, Anything]
    description: str
    labels: Anything | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of samples."""
        return next((rows.shape[0] for rows in self.batched.values()), 1)


def assign(
    found: Sequence[str], specs: Sequence[InputSpec], source: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which array is for which input.

    Parameters
    ----------
    found : sequence of str
        Names of the arrays; "" where there is a single one without a name.
    specs : sequence of InputSpec
    source : str
        For messages.

    Returns
    -------
    dict
        Input name to array name.
    tuple of str
        Remarks.

    Raises
    ------
    RecipeError
        If an input gets no array.
    """
    names = [spec.name for spec in specs]
    rest = [name for name in found if name != LABELS or LABELS in names]
    if all(name in rest for name in names):
        unused = [name for name in rest if name not in names]
        return {name: name for name in names}, (
            f"not an input, left out: {', '.join(unused)}",
        ) if unused else ()
    if len(names) == 1 and len(rest) == 1:
        return {names[0]: rest[0]}, ()
    shown = ", ".join(name or "one array without a name" for name in rest) or "nothing but labels"
    hint = listing(specs) + (f"; class indices are an array named {LABELS!r}" if LABELS not in found else "")
    raise RecipeError(f"{source}: expected arrays named {', '.join(names)}, found {shown}", hint=hint)


def arrays_table(specs: Sequence[InputSpec], rows: Mapping[str, Rows], source: str) -> Table:
    """Table of arrays with a row for every sample.

    Parameters
    ----------
    specs : sequence of InputSpec
    rows : mapping of Rows
        By input name, and ``labels``. For a model with one input the only other one may have any name.
    source : str
        Where they come from.

    Raises
    ------
    RecipeError
        Arrays that are not what the model takes: the message says which and what is expected.
    """
    assigned, notes = assign(list(rows), specs, source)
    fixed = fixed_batch(specs)
    batched = {spec.name: rows[assigned[spec.name]] for spec in specs if is_batched(spec, fixed)}
    constant = {spec.name: _whole(rows[assigned[spec.name]]) for spec in specs if not is_batched(spec, fixed)}
    labels = rows[LABELS] if LABELS in rows and LABELS not in batched and LABELS not in constant else None
    table = Table(batched, constant, source, None if labels is None else _whole(labels), notes=notes)
    check_shapes(specs, table)
    return table


def _whole(rows: Rows) -> Anything:
    return (
        rows
        if isinstance(rows, np.ndarray)
        else rows.whole()
        if hasattr(rows, "whole")
        else rows[np.arange(rows.shape[0])]
    )


def check_shapes(specs: Sequence[InputSpec], table: Table) -> None:
    """Raise RecipeError where an input does not have the model's shape, or inputs differ in samples, or there
    are none.
    """
    for spec in specs:
        batched = spec.name in table.batched
        rows: Rows = table.batched[spec.name] if batched else table.constant[spec.name]
        if not fits(rows.shape, spec, batched=batched):
            raise misfit(rows.shape, rows.dtype, spec, table.description, batched=batched)
    counts = {name: rows.shape[0] for name, rows in table.batched.items()}
    if len(set(counts.values())) > 1:
        raise RecipeError(
            f"{table.description}: inputs differ in samples: "
            + ", ".join(f"{name} has {n}" for name, n in counts.items())
        )
    if table.count == 0:
        raise RecipeError(f"{table.description}: no samples")


def fits(shape: Sequence[int], spec: InputSpec, *, batched: bool) -> bool:
    """Whether an array of this shape can be fed, whatever its number of samples."""
    first = 1 if batched else 0
    return len(shape) == len(spec.shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(spec.shape[first:], shape[first:], strict=True)
    )


def misfit(
    shape: Sequence[int], dtype: np.dtype[Any], spec: InputSpec, source: str, hint: str = "", *, batched: bool
) -> RecipeError:
    """What to raise for an array that cannot be fed; without a hint, with one that the shapes suggest."""
    want = ("n", *spec.shape[1:]) if batched else spec.shape
    have = tuple("?" if size < 0 else size for size in shape)
    return RecipeError(
        f"{source}: input {spec.name!r} expects {spec.dtype} {shape_text(want)}, the data has {dtype} {shape_text(have)}",
        hint=hint or _remedy(shape, spec, batched=batched),
    )


def _remedy(shape: Sequence[int], spec: InputSpec, *, batched: bool) -> str:
    """How an array would fit: with its channels on the other end, or as a batch of one."""
    last = len(shape) - 1
    for axes in ((0, last, *range(1, last)), (0, *range(2, last + 1), 1)) if last > 1 else ():
        if fits([shape[axis] for axis in axes], spec, batched=batched):
            return f"the axes are in another order: save array.transpose{axes}"
    if batched and fits((1, *shape), spec, batched=True):
        return "a single sample needs a batch axis: save array[None]"
    return (
        "preprocess the data (axis order, size, normalisation) as for training and save it with numpy.savez"
    )


def cast(array: Anything, spec: InputSpec, source: str) -> Anything:
    """Array in the dtype of the input.

    Raises
    ------
    RecipeError
        NaN, infinity, or values that the dtype does not have.
    """
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


def cast_note(array: Anything, spec: InputSpec) -> tuple[str, ...]:
    """Remark on what `cast` does, with the range of integers, which tells whether they were normalised."""
    if array.dtype == spec.dtype:
        return ()
    note = f"{spec.name}: cast from {array.dtype} to {spec.dtype}"
    if array.dtype.kind in "iu" and spec.dtype.kind == "f" and array.size:
        note += f", values {array.min()} to {array.max()} as they are (first batch)"
    return (note,)


def _can_cast(array: Anything, dtype: np.dtype[Any]) -> bool:
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.dtype.kind != "b"
    if array.dtype.kind == "f" and dtype.kind == "f":
        return bool(np.abs(array).max(initial=0.0) <= np.finfo(dtype).max)
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        return bool(array.min() >= limits.min and array.max() <= limits.max)
    return False


def check_labels(labels: Anything, count: int, source: str) -> NDArray[np.int64]:
    """Labels as int64, shape (count,).

    Parameters
    ----------
    labels : array, shape (count,) or (count, 1)
        Whole numbers, of whatever dtype they were saved with.
    count : int
    source : str

    Raises
    ------
    RecipeError
        If they are anything else than so many whole numbers.
    """
    column = labels[:, 0] if labels.shape == (count, 1) else labels
    whole = column.dtype.kind in "iu" or (
        column.dtype.kind == "f" and np.array_equal(column, np.rint(column))
    )
    if column.shape != (count,) or not whole:
        wide = labels.ndim == 2 and len(labels) == count
        raise RecipeError(
            f"{source}: expected {count} integers, one per sample, got {labels.dtype} {shape_text(labels.shape)}",
            hint="labels are class indices, counted from 0"
            + (": save labels.argmax(axis=1)" if wide else ""),
        )
    return column.astype(np.int64)

"""Samples ready to be fed, made batch by batch, so that memory stays bounded however many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import Table, cast, cast_note, check_labels
from onnx_dfmpc.inputs.labels import LabelSource, read_labels
from onnx_dfmpc.inputs.sources import DataSource, open_table
from onnx_dfmpc.inputs.specs import InputSpec, batch_size, fixed_batch, listing
from onnx_dfmpc.inputs.stored import Anything
from onnx_dfmpc.recipe import Preprocessing


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


def from_data(
    specs: Sequence[InputSpec],
    data: DataSource,
    labels: LabelSource | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    images: Preprocessing | None = None,
) -> Samples:
    """Check a source against the model's inputs and make samples of it.

    Parameters
    ----------
    specs : sequence of InputSpec
        The model's inputs.
    data : path, mapping of arrays, array, or callable
        See `Feeding`.
    labels : path of an .npz, .npy or text file, or int array of shape (n,), optional
        Wins over the data's own.
    samples : int, optional
        At most so many samples: drawn with `seed`, or, of a loader, the first ones; None takes all.
    seed : int
    batch : int, optional
        Samples per run, where the model leaves that open.
    images : Preprocessing, optional
        For a folder of images.

    Raises
    ------
    RecipeError
        A source that cannot be read, or arrays that are not what the model takes: the message says which and
        what is expected.
    """
    table = open_table(specs, data, images or Preprocessing(), limit=samples)
    targets = table.labels if labels is None else read_labels(labels, table)
    if targets is not None:
        targets = check_labels(targets, table.count, _labels_source(labels, table))
    chosen, description, notes = _choose(specs, table, samples, seed)
    if images not in (None, Preprocessing()) and not table.names:
        notes += ("how pictures become inputs was said, but these are arrays: they are taken as they are",)

    def rows(start: int, stop: int) -> dict[str, Anything]:
        return {name: array[chosen[start:stop]] for name, array in table.batched.items()} | dict(
            table.constant
        )

    def make(start: int, stop: int) -> dict[str, Anything]:
        feeds = rows(start, stop)
        return {spec.name: cast(feeds[spec.name], spec, table.description) for spec in specs}

    fixed = fixed_batch(specs)
    elements = max((int(np.prod(np.abs(array.shape[1:]))) for array in table.batched.values()), default=1)
    size = batch_size(fixed, elements, batch)
    if size > 1 and any(-1 in array.shape for array in table.batched.values()):
        if fixed is not None:
            raise RecipeError(
                f"{table.description}: samples differ in shape, the model takes {fixed} at a time",
                hint=listing(specs),
            )
        size, notes = 1, (*notes, "run one by one: samples differ in shape")
    first = rows(0, min(size, len(chosen)))
    notes += tuple(note for spec in specs for note in cast_note(first[spec.name], spec))
    found = Samples(
        len(chosen),
        size,
        make,
        description,
        False,
        None if targets is None else targets[chosen],
        (*table.notes, *notes),
    )
    for spec in specs:
        cast(first[spec.name], spec, table.description)
    return found


def _labels_source(labels: LabelSource | None, table: Table) -> str:
    if labels is None:
        return f"{table.description}: labels"
    return os.fspath(labels) if isinstance(labels, str | os.PathLike) else "labels"


def _choose(
    specs: Sequence[InputSpec], table: Table, samples: int | None, seed: int
) -> tuple[NDArray[np.intp], str, tuple[str, ...]]:
    """Which samples to take, in words too, and remarks."""
    available, fixed = table.count, fixed_batch(specs)
    notes: tuple[str, ...] = ()
    count = min(samples or available, available)
    if fixed is not None and count % fixed:
        count -= count % fixed
        if count == 0:
            raise RecipeError(
                f"{table.description}: the model takes {fixed} samples at a time, the data has {available}",
                hint=listing(specs),
            )
        notes = (f"{count} samples used, because the model takes {fixed} at a time",)
    if count == available:
        return np.arange(count), f"{table.description}, {count} sample{'' if count == 1 else 's'}", notes
    chosen = np.sort(np.random.default_rng(seed).choice(available, count, replace=False))
    return chosen, f"{table.description}, {count} of {available} samples drawn with seed {seed}", notes

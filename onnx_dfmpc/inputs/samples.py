"""Samples ready to be fed, made batch by batch, so that memory stays bounded however many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import Dataset, LabelSource, cast, cast_note, check_labels, read_labels
from onnx_dfmpc.inputs.sources import DataSource, open_dataset
from onnx_dfmpc.inputs.specs import batch_size, fixed_batch, listing
from onnx_dfmpc.inputs.stored import AnyArray
from onnx_dfmpc.recipe import Preprocessing
from onnx_dfmpc.spec import InputSpec


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds for one or two models: `count` samples, `batch` of them per run.

    ``make(start, stop)`` gives the feeds of these samples by input name. `synthetic` is True where they were
    drawn, not collected; `notes` say what was done to the data on the way (casts, samples left out).
    """

    count: int
    batch: int
    make: Callable[[int, int], dict[str, AnyArray]]
    description: str
    synthetic: bool
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def batches(self) -> Iterator[tuple[int, int, dict[str, AnyArray]]]:
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
    """Samples of a source, once it is checked against the model's inputs.

    `labels` win over the data's own. `samples` is the most to take: drawn with `seed`, or, of a loader, the
    first ones. `batch` is how many per run, where the model leaves that open.
    """
    dataset = open_dataset(specs, data, images or Preprocessing(), limit=samples)
    targets = dataset.labels if labels is None else read_labels(labels, dataset.count)
    if targets is not None:
        targets = check_labels(targets, dataset.count, _labels_source(labels, dataset))
    chosen, description, notes = _choose(specs, dataset, samples, seed)

    def rows(start: int, stop: int) -> dict[str, AnyArray]:
        batched = {name: array[chosen[start:stop]] for name, array in dataset.batched.items()}
        run = chosen[start : start + 1] // dataset.per_run
        varying = {name: array[run][0] for name, array in dataset.varying.items()}
        return batched | varying | dict(dataset.constant)

    def make(start: int, stop: int) -> dict[str, AnyArray]:
        feeds = rows(start, stop)
        return {spec.name: cast(feeds[spec.name], spec, dataset.description) for spec in specs}

    fixed = fixed_batch(specs)
    elements = max((int(np.prod(np.abs(array.shape[1:]))) for array in dataset.batched.values()), default=1)
    size = dataset.per_run if dataset.varying else batch_size(fixed, elements, batch)
    if size > 1 and any(-1 in array.shape for array in dataset.batched.values()):
        if fixed is not None:
            raise RecipeError(
                f"{dataset.description}: samples differ in shape, the model takes {fixed} at a time",
                hint=listing(specs),
            )
        size, notes = 1, (*notes, "run one by one: samples differ in shape")
    # Only the first batch is looked at here: bad values in it fail now, later ones when their batch is made.
    first = rows(0, min(size, len(chosen)))
    for spec in specs:
        cast(first[spec.name], spec, dataset.description)
        notes += cast_note(first[spec.name], spec)
    wanted = None if targets is None else targets[chosen]
    return Samples(len(chosen), size, make, description, False, wanted, (*dataset.notes, *notes))


def _labels_source(labels: LabelSource | None, dataset: Dataset) -> str:
    if labels is None:
        return f"{dataset.description}: labels"
    return os.fspath(labels) if isinstance(labels, str | os.PathLike) else "labels"


def _choose(
    specs: Sequence[InputSpec], dataset: Dataset, samples: int | None, seed: int
) -> tuple[NDArray[np.intp], str, tuple[str, ...]]:
    """Indices of the samples to take, in words too, and remarks."""
    available, fixed = dataset.count, fixed_batch(specs)
    notes: tuple[str, ...] = ()
    count = min(samples or available, available)
    if dataset.per_run > 1:
        count = max(count - count % dataset.per_run, dataset.per_run)
        return np.arange(count), f"{dataset.description}, {count} samples", notes
    if fixed is not None and count % fixed:
        count -= count % fixed
        if count == 0:
            raise RecipeError(
                f"{dataset.description}: the model takes {fixed} samples at a time, the data has {available}",
                hint=listing(specs),
            )
        notes = (f"{count} samples used, because the model takes {fixed} at a time",)
    if count == available:
        return np.arange(count), f"{dataset.description}, {count} sample{'' if count == 1 else 's'}", notes
    # sorted, so that a file is read forwards
    chosen = np.sort(np.random.default_rng(seed).choice(available, count, replace=False))
    return chosen, f"{dataset.description}, {count} of {available} samples drawn with seed {seed}", notes

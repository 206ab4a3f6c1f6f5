"""Where data may come from: arrays in memory, an .npz or .npy, images, or a loader."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import (
    LABELS,
    Dataset,
    arrays_dataset,
    assign_arrays,
    check_shapes,
    common_count,
    shape_error,
)
from onnx_dfmpc.inputs.images import SUFFIXES, image_dataset
from onnx_dfmpc.inputs.specs import fixed_batch, is_batched, listing
from onnx_dfmpc.inputs.stored import AnyArray, stored_arrays
from onnx_dfmpc.recipe import Preprocessing, nearest
from onnx_dfmpc.spec import InputSpec, shape_text

Loader = Callable[[], Iterable[Any]]
DataSource = str | os.PathLike[str] | Mapping[str, AnyArray] | AnyArray | Loader

DEFAULT_FUNCTION = "load_data"
"""Function of a loader script that does not say which, as in Polygraphy's --data-loader-script."""

SCRIPT = re.compile(r"(?P<file>.*\.py)(:(?P<function>\w+))?")


def open_dataset(
    specs: Sequence[InputSpec], data: DataSource, images: Preprocessing, *, limit: int | None = None
) -> Dataset:
    """Look at a source without loading its samples, as far as that is possible.

    `images` is for a folder of images, or one; of a loader, which can only be read from its beginning, no
    more than `limit` samples are looked at.
    """
    path = Path(data) if isinstance(data, str | os.PathLike) else None
    if path is not None and (path.is_dir() or (path.suffix.lower() in SUFFIXES and path.is_file())):
        return _images(specs, path, images)
    dataset = _arrays(specs, data, limit)
    if images == Preprocessing():
        return dataset
    note = "settings for images are not used: these are arrays, taken as they are"
    return replace(dataset, notes=(*dataset.notes, note))


def _images(specs: Sequence[InputSpec], path: Path, images: Preprocessing) -> Dataset:
    if path.is_file():
        return image_dataset(specs, path.parent, [path], images)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise RecipeError(
            f"{path}: there is no image in this folder",
            hint="arrays in several files need a loader script: FILE.py:FUNCTION",
        )
    return image_dataset(specs, path, files, images)


def _arrays(specs: Sequence[InputSpec], data: DataSource, limit: int | None) -> Dataset:
    if isinstance(data, Mapping):
        return arrays_dataset(specs, {str(name): np.asarray(rows) for name, rows in data.items()}, "arrays")
    if callable(data):
        return _loader_dataset(specs, data, "loader", limit)
    if not isinstance(data, str | os.PathLike):
        return arrays_dataset(specs, {"": np.asarray(data)}, "array")
    source = os.fspath(data)
    script = SCRIPT.fullmatch(source)
    if script is None:
        return arrays_dataset(specs, dict(stored_arrays(Path(data))), source)
    loader = load_script(Path(script["file"]), script["function"] or DEFAULT_FUNCTION)
    return _loader_dataset(specs, loader, source, limit)


def load_script(path: Path, function: str = DEFAULT_FUNCTION) -> Loader:
    """Function of a Python file, which is run for it. It is called without arguments, once for every pass
    over the data, and returns or yields feeds.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such loader script")
    spec = importlib.util.spec_from_file_location(f"_onnx_dfmpc_loader_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of a class
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.append(folder)  # for modules beside the script, also those that it imports when it is called
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"{path}: the loader script fails: {type(error).__name__}: {error}") from error
    loader: Loader | None = getattr(module, function, None)
    if not callable(loader):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RecipeError(
            f"{path}: there is no function {function!r}",
            hint=nearest(function, names) or f"{path}:FUNCTION names another",
        )
    return loader


_Feed = tuple[dict[str, AnyArray], AnyArray | None]

# Feeds of a loader are chunks of the data, each with one or several samples. They are counted in a first pass
# and loaded again when their samples are needed, so that one of them is in memory at a time.


@dataclass(frozen=True, eq=False)
class _Chunk:
    """What stays of a feed once it is counted: number of samples, shape and dtype of its arrays, labels."""

    source: str
    count: int
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    labels: AnyArray | None


def _loader_dataset(specs: Sequence[InputSpec], loader: Loader, source: str, limit: int | None) -> Dataset:
    """Samples of all feeds, in order.

    An array with as many dimensions as the input is a batch; with one fewer it is a single sample. Samples
    may differ in the dimensions that the model leaves open.
    """
    fixed = fixed_batch(specs)
    feeds = _Feeds(loader, source, labelled=all(spec.name != LABELS for spec in specs))
    chunks: list[_Chunk] = []
    first: dict[str, AnyArray] = {}
    changing: set[str] = set()
    assigned: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    for index, (arrays, labels) in enumerate(feeds):
        where = f"{source}, feed {index}"
        if not chunks:
            assigned, notes = assign_arrays(list(arrays), specs, where)
        for key in assigned.values():
            if key not in arrays:
                raise RecipeError(
                    f"{where}: there is no array {key!r}, as in {chunks[0].source}", hint=listing(specs)
                )
        outline = {key: (arrays[key].shape, arrays[key].dtype) for key in assigned.values()}
        counts = {
            spec.name: _samples_in(*outline[assigned[spec.name]], spec, where)
            for spec in specs
            if is_batched(spec, fixed)
        }
        for spec in specs:
            if not is_batched(spec, fixed):
                array = arrays[assigned[spec.name]]
                if not np.array_equal(first.setdefault(spec.name, array), array):
                    changing.add(spec.name)
        chunks.append(_Chunk(where, common_count(counts, where), outline, labels))
        if limit is not None and sum(chunk.count for chunk in chunks) >= limit:
            break
    if not chunks:
        raise RecipeError(f"{source}: no samples")
    batched, constant, varying = {}, {}, {}
    per_run = chunks[0].count
    if changing and (uneven := next((chunk for chunk in chunks if chunk.count != per_run), None)):
        raise RecipeError(
            f"{uneven.source}: has {uneven.count} samples, and the first feed {per_run}",
            hint=f"{', '.join(sorted(changing))} changes from feed to feed, so each feed is a run: "
            "give all the same number of samples",
        )
    for spec in specs:
        key = assigned[spec.name]
        if is_batched(spec, fixed):
            batched[spec.name] = _LoadedRows(feeds, chunks, key, len(spec.shape) - 1)
        elif spec.name in changing:
            varying[spec.name] = _LoadedRuns(feeds, chunks, key)
        else:
            constant[spec.name] = feeds.load(0, chunks[0])[key]
    labels = _chunk_labels(chunks)
    dataset = Dataset(batched, constant, source, labels, notes, varying, per_run if changing else 1)
    check_shapes(specs, dataset)
    return dataset


def _samples_in(shape: tuple[int, ...], dtype: np.dtype[Any], spec: InputSpec, source: str) -> int:
    """Samples in an array for a batched input."""
    if len(shape) not in (len(spec.shape), len(spec.shape) - 1):
        raise shape_error(shape, dtype, spec, source, batched=True)
    return shape[0] if len(shape) == len(spec.shape) else 1


def _chunk_labels(chunks: Sequence[_Chunk]) -> AnyArray | None:
    labels = [np.asarray(chunk.labels) for chunk in chunks if chunk.labels is not None]
    if not labels:
        return None
    if len(labels) < len(chunks):
        missing = next(chunk for chunk in chunks if chunk.labels is None)
        raise RecipeError(
            f"{missing.source}: has no labels, others have some", hint="give all of them labels, or none"
        )
    for chunk, own in zip(chunks, labels, strict=True):
        if own.shape != (chunk.count,) and not (chunk.count == 1 and own.shape == ()):
            raise RecipeError(
                f"{chunk.source}: expected {chunk.count} labels, one per sample, "
                f"got shape {shape_text(own.shape)}"
            )
    return np.concatenate([own.ravel() for own in labels])


class _Feeds:
    """Feeds of a loader by their number. The last one is kept, since batches read in ascending order; for an
    earlier one the loader is called anew.
    """

    def __init__(self, loader: Loader, source: str, *, labelled: bool) -> None:
        self._loader, self._source, self._labelled = loader, source, labelled
        self._rest: Iterator[_Feed] = iter(())
        self._index = -1
        self._arrays: dict[str, AnyArray] = {}

    def __iter__(self) -> Iterator[_Feed]:
        """Arrays by name, and labels, of all feeds from the first."""
        try:
            for item in self._loader():
                feed, labels = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
                named = feed if isinstance(feed, Mapping) else {"": feed}
                arrays = {str(name): np.asarray(value) for name, value in named.items()}
                if labels is None and self._labelled:
                    labels = arrays.get(LABELS)
                yield arrays, None if labels is None else np.asarray(labels)
        except Exception as error:
            raise RecipeError(f"{self._source}: the loader fails: {type(error).__name__}: {error}") from error

    def load(self, index: int, chunk: _Chunk) -> dict[str, AnyArray]:
        """Arrays of a feed, whose shapes and labels have to be those that were counted."""
        if self._index < 0 or index < self._index:
            self._rest, self._index = iter(self), -1
        labels: AnyArray | None = None
        while self._index < index:
            self._arrays = {}  # not two feeds at a time
            self._arrays, labels = next(self._rest, ({}, None))
            self._index += 1
        shapes = {
            key: (array.shape, array.dtype) for key, array in self._arrays.items() if key in chunk.arrays
        }
        shuffled = labels is not None and (chunk.labels is None or not np.array_equal(labels, chunk.labels))
        if shapes != chunk.arrays or shuffled:
            raise RecipeError(
                f"{self._source}: feed {index} is not what it was before",
                hint="the loader has to give the same samples at every call, unshuffled",
            )
        return self._arrays


class _LoadedRows:
    """One input's array in all chunks, as rows."""

    def __init__(self, feeds: _Feeds, chunks: Sequence[_Chunk], key: str, sample_axes: int) -> None:
        self._feeds, self._chunks, self._key = feeds, chunks, key
        self._starts = np.concatenate([[0], np.cumsum([chunk.count for chunk in chunks])])
        shapes = [shape[len(shape) - sample_axes :] for shape, _ in (chunk.arrays[key] for chunk in chunks)]
        common = (sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *common)
        self.dtype = chunks[0].arrays[key][1]

    def __getitem__(self, indices: NDArray[np.intp]) -> AnyArray:
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        parts = []
        for index in dict.fromkeys(owner.tolist()):
            array = self._feeds.load(index, self._chunks[index])[self._key]
            array = array if array.ndim == len(self.shape) else array[None]
            parts.append(array[indices[owner == index] - self._starts[index]])
        return np.concatenate(parts) if parts else np.zeros((0, *self.shape[1:]), self.dtype)


class _LoadedRuns:
    """One input's array in every feed, whole, as the row of that run."""

    def __init__(self, feeds: _Feeds, chunks: Sequence[_Chunk], key: str) -> None:
        self._feeds, self._chunks, self._key = feeds, chunks, key
        shape, self.dtype = chunks[0].arrays[key]
        self.shape: tuple[int, ...] = (len(chunks), *shape)

    def __getitem__(self, indices: NDArray[np.intp]) -> AnyArray:
        return np.stack([self._feeds.load(int(index), self._chunks[index])[self._key] for index in indices])

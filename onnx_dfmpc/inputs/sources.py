"""Where data may come from: arrays, .npz, .npy, a folder, Polygraphy's JSON, a loader script; images are in
`images`.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_dfmpc.errors import DfmpcError, RecipeError
from onnx_dfmpc.inputs.chunks import outline, pieces_table, samples_in
from onnx_dfmpc.inputs.dataset import LABELS, Table, arrays_table
from onnx_dfmpc.inputs.images import SUFFIXES, image_table
from onnx_dfmpc.inputs.specs import InputSpec
from onnx_dfmpc.inputs.stored import Anything, rows_of, stored_arrays
from onnx_dfmpc.recipe import Preprocessing, nearest

Loader = Callable[[], Iterable[Any]]
DataSource = str | os.PathLike[str] | Mapping[str, Anything] | Anything | Loader

DEFAULT_FUNCTION = "load_data"
"""Function of a loader script that does not say which; Polygraphy's scripts have it too."""

SCRIPT = re.compile(r"(?P<file>.*\.py)(:(?P<function>\w+))?")


def open_table(
    specs: Sequence[InputSpec], data: DataSource, images: Preprocessing, *, limit: int | None = None
) -> Table:
    """Look at a source, without loading its samples.

    Parameters
    ----------
    specs : sequence of InputSpec
        The model's inputs.
    data : path, mapping of arrays, array, or callable
        See `Feeding`.
    images : Preprocessing
        For a folder of images.
    limit : int, optional
        Nobody wants more samples of a loader, which can only be read from its beginning.

    Raises
    ------
    RecipeError
        A source that cannot be read, or arrays that are not what the model takes.
    """
    if isinstance(data, Mapping):
        return arrays_table(specs, rows_of(data), "arrays")
    if callable(data):
        return _loader_table(specs, data, "loader", limit)
    if not isinstance(data, str | os.PathLike):
        return arrays_table(specs, {"": np.asarray(data)}, "array")
    script = SCRIPT.fullmatch(os.fspath(data))
    if script is not None:
        return _loader_table(
            specs,
            load_script(Path(script["file"]), script["function"] or DEFAULT_FUNCTION),
            os.fspath(data),
            limit,
        )
    path = Path(data)
    if path.is_dir():
        return _folder_table(specs, path, images)
    if path.suffix.lower() == ".json":
        return _json_table(specs, path)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return image_table(specs, path.parent, [path], images)
    return arrays_table(specs, dict(stored_arrays(path)), str(path))


# -----------------------------------------------------------------------------------------------------------------------
# folders


def _folder_table(specs: Sequence[InputSpec], path: Path, images: Preprocessing) -> Table:
    """Arrays, of one file after the other in the order of their names, with ``labels.npy`` if it lies there,
    or pictures.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    labels = path / f"{LABELS}.npy"
    arrays = [file for file in files if file.suffix.lower() in (".npy", ".npz") and file != labels]
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    if arrays and pictures:
        raise RecipeError(f"{path}: has both arrays and images", hint="name a folder with one of them")
    if pictures:
        return image_table(specs, path, pictures, images)
    if not arrays:
        raise RecipeError(f"{path}: there is no .npy, no .npz and no image in this folder")
    pieces = []
    for file in arrays:
        stored = stored_arrays(file)
        pieces.append(outline(str(file), stored, stored[LABELS].whole() if LABELS in stored else None))
    table = pieces_table(
        specs,
        pieces,
        lambda index: {name: rows.whole() for name, rows in stored_arrays(arrays[index]).items()},
        str(path),
    )
    return replace(table, labels=stored_arrays(labels)[""].whole()) if labels in files else table


# -----------------------------------------------------------------------------------------------------------
# Polygraphy's JSON


def _json_table(specs: Sequence[InputSpec], path: Path) -> Table:
    """Feeds that ``polygraphy run --save-inputs`` wrote: a list of objects, in which an array is the base64
    of what numpy.save writes.
    """
    try:
        feeds = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such data file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read data: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        feeds = None
    if not isinstance(feeds, list) or not all(isinstance(feed, dict) for feed in feeds):
        raise RecipeError(
            f"{path}: not a list of feeds",
            hint="write it with: polygraphy run MODEL --onnxrt --save-inputs inputs.json",
        )

    def load(index: int) -> dict[str, Anything]:
        return {
            name: _decoded(value, f"{path}, feed {index}: {name!r}") for name, value in feeds[index].items()
        }

    loaded = (load(index) for index in range(len(feeds)))
    pieces = [outline(f"{path}, feed {index}", feed, feed.get(LABELS)) for index, feed in enumerate(loaded)]
    return pieces_table(specs, pieces, load, str(path))


def _decoded(value: Any, where: str) -> Anything:
    """Array of a value in Polygraphy's JSON; scalars are plain numbers there."""
    try:
        if isinstance(value, dict):
            return np.asarray(
                np.load(io.BytesIO(base64.b64decode(value["array"], validate=True)), allow_pickle=False)
            )
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
    except (KeyError, TypeError, ValueError, EOFError, binascii.Error):
        pass
    raise RecipeError(f"{where} is not an array", hint="write the file with polygraphy.json.save_json")


# -----------------------------------------------------------------------------------------------------------------------
# scripts


def load_script(path: Path, function: str = DEFAULT_FUNCTION) -> Loader:
    """Function of a Python file that gives the data.

    Parameters
    ----------
    path : Path
        It is run.
    function : str
        Called without arguments, once for every pass over the data; returns or yields feeds.

    Raises
    ------
    RecipeError
        A file that cannot be read or run, or has no such function.
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
    found = getattr(module, function, None)
    if not callable(found):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RecipeError(
            f"{path}: there is no function {function!r}",
            hint=nearest(function, known) or f"{path}:FUNCTION names another",
        )
    loader: Loader = found
    return loader


class _Replay:
    """Feeds of a loader by their number; asked for an earlier one, it is called anew."""

    def __init__(self, loader: Loader, source: str) -> None:
        self._loader, self._source = loader, source
        self._feeds: Iterator[tuple[dict[str, Anything], Anything | None]] = iter(())
        self._next = 0

    def __iter__(self) -> Iterator[tuple[dict[str, Anything], Anything | None]]:
        """Feeds with their labels, from the first."""
        try:
            for item in self._loader():
                feed, labels = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
                arrays = {
                    str(name): np.asarray(value)
                    for name, value in (feed.items() if isinstance(feed, Mapping) else [("", feed)])
                }
                own = arrays.get(LABELS) if labels is None else np.asarray(labels)
                yield arrays, own
        except DfmpcError:
            raise
        except Exception as error:
            raise RecipeError(f"{self._source}: the loader fails: {type(error).__name__}: {error}") from error

    def load(self, index: int, labels: Anything | None) -> dict[str, Anything]:
        """A feed, which has to have the labels that it had when it was counted."""
        if index < self._next or self._next == 0:
            self._feeds, self._next = iter(self), 0
        for feed, own in self._feeds:
            self._next += 1
            if self._next - 1 == index:
                if labels is not None and (own is None or not np.array_equal(labels, own)):
                    break
                return feed
        raise RecipeError(
            f"{self._source}: feed {index} is not what it was before",
            hint="the loader has to give the same samples at every call, unshuffled",
        )


def _loader_table(specs: Sequence[InputSpec], loader: Loader, source: str, limit: int | None) -> Table:
    """Feeds of a loader, run through once to count them."""
    replay, pieces, seen = _Replay(loader, source), [], 0
    for index, (feed, labels) in enumerate(replay):
        piece = outline(f"{source}, feed {index}", feed, labels)
        pieces.append(piece)
        seen += samples_in(piece, specs)
        if limit is not None and seen >= limit:
            break
    return pieces_table(specs, pieces, lambda index: replay.load(index, pieces[index].labels), source)

"""Arrays in files, read row by row: what is not asked for is never in memory."""

from __future__ import annotations

import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError

Anything = NDArray[Any]
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
UNREADABLE = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What NumPy and zipfile raise on files that are broken, or of another kind."""


class Rows(Protocol):
    """What can be asked for some of its rows: an array, or something that makes one. A dimension that varies
    from row to row is -1.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    def __getitem__(self, indices: NDArray[np.intp], /) -> Anything: ...


class StoredArray:
    """An array in NumPy's format.

    Parameters
    ----------
    source : Path
        For messages.
    open_file : callable
        Opens the file, or the member of an archive, at its beginning.

    Raises
    ------
    ValueError
        If it is not a plain array.
    """

    def __init__(self, source: Path, open_file: Callable[[], IO[bytes]]) -> None:
        self._source = source
        self._file = open_file()
        weakref.finalize(self, self._file.close)
        version = npy.read_magic(self._file)
        if version not in READERS:
            raise ValueError(f"version {version}")
        self.shape, self._fortran, self.dtype = READERS[version](self._file)
        if self.dtype.hasobject:
            raise ValueError("objects")
        self._start = self._file.tell()
        self._whole: Anything | None = None

    def __getitem__(self, indices: NDArray[np.intp]) -> Anything:
        try:
            if self._fortran or not self.shape:
                return self.whole()[indices]
            row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
            parts = [self._read(self._start + first * row, count * row) for first, count in _runs(indices)]
        except UNREADABLE as error:
            raise RecipeError(
                f"{self._source}: cannot read data: {error}", hint="write it again with numpy.savez"
            ) from None
        return np.frombuffer(b"".join(parts), self.dtype).reshape(len(indices), *self.shape[1:])

    def whole(self) -> Anything:
        """All of it; for arrays that are small, or that do not lie row by row."""
        if self._whole is None:
            count = int(np.prod(self.shape, dtype=np.int64))
            flat = np.frombuffer(self._read(self._start, count * self.dtype.itemsize), self.dtype)
            self._whole = flat.reshape(self.shape, order="F" if self._fortran else "C")
        return self._whole

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the file ends too early")
        return data


def _runs(indices: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each run of consecutive ones."""
    for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1):
        if run.size:
            yield int(run[0]), int(run.size)


def stored_arrays(path: Path, what: str = "data") -> dict[str, StoredArray]:
    """Arrays of an .npz by name, or that of an .npy under the name "".

    Parameters
    ----------
    path : Path
    what : str
        What to call the file in an error.

    Raises
    ------
    RecipeError
        A file that cannot be read, or that is of another kind.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"PK"
        if not packed:
            return {"": StoredArray(path, lambda: path.open("rb"))}
        archive = zipfile.ZipFile(path)
        return {
            name.removesuffix(".npy"): StoredArray(path, _opener(archive, name))
            for name in archive.namelist()
        }
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {what} file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read {what}: {error.strerror or error}") from None
    except UNREADABLE:
        raise RecipeError(
            f"{path}: not an .npz or .npy file of plain arrays", hint="write it with numpy.savez"
        ) from None


def _opener(archive: zipfile.ZipFile, name: str) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(name)


def rows_of(arrays: Mapping[str, Anything]) -> dict[str, Rows]:
    """Arrays in memory, as rows."""
    return {str(name): np.asarray(array) for name, array in arrays.items()}

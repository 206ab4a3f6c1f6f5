"""Arrays in files, read row by row: what is not needed is never in memory.

`numpy.load` maps an .npy, but reads a member of an .npz whole, and anew at every access. Here both are read
by rows, with NumPy's own parsers of their headers.
"""

from __future__ import annotations

import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError

AnyArray = NDArray[Any]

READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
SKIPPED = 1 << 20
"""Bytes that are read at a time to get over them."""

UNREADABLE = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What NumPy and zipfile raise on files that are broken, or of another kind."""


class Rows(Protocol):
    """Something that can be indexed by rows: an array, or what reads one. A dimension that varies from row to
    row is -1.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    def __getitem__(self, indices: NDArray[np.intp], /) -> AnyArray: ...


class StoredArray:
    """An array in NumPy's format; `open_file` opens the file, or the member of an archive, at its beginning.

    Raises ValueError if it is not a plain array.
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
        self._whole: AnyArray | None = None

    def __getitem__(self, indices: NDArray[np.intp]) -> AnyArray:
        if self._fortran or not self.shape:
            return self.whole()[indices]
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        parts = [self._read(self._start + first * row, count * row) for first, count in _runs(indices)]
        return np.frombuffer(b"".join(parts), self.dtype).reshape(len(indices), *self.shape[1:])

    def whole(self) -> AnyArray:
        """All of it; for arrays that are small, or that do not lie row by row."""
        if self._whole is None:
            count = int(np.prod(self.shape, dtype=np.int64))
            flat = np.frombuffer(self._read(self._start, count * self.dtype.itemsize), self.dtype)
            self._whole = flat.reshape(self.shape, order="F" if self._fortran else "C")
        return self._whole

    def _read(self, start: int, size: int) -> bytes:
        try:
            self._move(start)
            data = self._file.read(size)
            if len(data) < size:
                raise EOFError("the file ends too early")
        except UNREADABLE as error:
            raise RecipeError(
                f"{self._source}: cannot read data: {error}", hint="write it again with numpy.savez"
            ) from None
        return data

    def _move(self, start: int) -> None:
        """Go to a position. Members of an archive are read up to it, which a compressed one needs anyway, and
        backwards start anew: so rows are read in ascending order. Where members take turns, zipfile of Python
        3.13.0 seeks forward to a wrong place (CPython issue 127847).
        """
        if not isinstance(self._file, zipfile.ZipExtFile) or start < self._file.tell():
            self._file.seek(start)
            return
        while (left := start - self._file.tell()) > 0 and self._file.read(min(left, SKIPPED)):
            pass


def _runs(indices: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each run of consecutive ones."""
    for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1):
        if run.size:
            yield int(run[0]), int(run.size)


def stored_arrays(path: Path, what: str = "data") -> dict[str, StoredArray]:
    """Arrays of an .npz by name, or that of an .npy under the name ""; `what` it is, for messages."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        if not zipped:
            return {"": StoredArray(path, lambda: path.open("rb"))}
        archive = zipfile.ZipFile(path)
        return {
            name.removesuffix(".npy"): StoredArray(path, partial(archive.open, name))
            for name in archive.namelist()
        }
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {what} file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read {what}: {error.strerror or error}") from None
    except UNREADABLE:
        raise RecipeError(
            f"{path}: not an .npz or .npy file of plain arrays",
            hint="write it with numpy.savez or numpy.save",
        ) from None

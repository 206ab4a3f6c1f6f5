"""The values of one tensor, batch by batch: in memory while they are small, else in temporary files."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import DfmpcError

Value = NDArray[Any]

IN_MEMORY = 1 << 26
"""Bytes that all batches of a tensor may take in memory: a few such tensors live at a time, beside the model.
"""


class Batches(Sequence[Value]):
    """Arrays, one for each batch; every access to a stored one reads it anew.

    >>> batches = Batches(np.full(2, number) for number in (1.0, 2.0))
    >>> len(batches), batches[1], sum(batch.sum() for batch in batches)
    (2, array([2., 2.]), np.float64(6.0))
    """

    def __init__(self, values: Iterable[Value | Stored]) -> None:
        self._values = list(values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Value | Batches:
        if isinstance(index, slice):
            return Batches(self._values[index])
        value = self._values[index]
        return value.read() if isinstance(value, Stored) else value


class Stored:
    """An array in a temporary file, which the system removes when this object is forgotten."""

    def __init__(self, value: Value) -> None:
        try:
            # Without a name: nothing is left behind, however the process ends.
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this
            weakref.finalize(self, self._file.close)  # Python warns of files that it has to close by itself
            np.save(self._file, value, allow_pickle=False)
            self._file.flush()
        except OSError as error:
            raise DfmpcError(
                f"cannot write to the temporary directory {tempfile.gettempdir()}: {error.strerror}",
                hint="name another one with TMPDIR",
            ) from error

    def read(self) -> Value:
        """The array. Not from two threads at once: they share the position in the file."""
        self._file.seek(0)
        value: Value = np.load(self._file, allow_pickle=False)
        return value


def stored(value: Value, batches: int) -> Value | Stored:
    """A value, out of memory if all its batches, of about the same size, would take too much of it."""
    return Stored(value) if value.nbytes * batches > IN_MEMORY else value

"""Arrays out of memory: codes of a large model, between rounding and writing."""

from __future__ import annotations

import mmap
import tempfile
from contextlib import suppress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import DfmpcError

Number = TypeVar("Number", bound=np.generic)


def put_aside(array: NDArray[Number]) -> NDArray[Number]:
    """The array over a temporary file, read-only; the file has no name, and is gone with the array."""
    if not array.size:
        return array
    try:
        with tempfile.TemporaryFile() as file:
            # Written, not mapped, so that no page of it belongs to this process until it is read.
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)
    except OSError as error:
        raise DfmpcError(
            f"cannot write to the temporary directory {tempfile.gettempdir()}: {error.strerror}",
            hint="name another one with TMPDIR",
        ) from error


def release(array: NDArray[np.generic]) -> None:
    """Give back the memory that reading an array of `put_aside` took; it can be read again."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap):
        with suppress(AttributeError, OSError):  # Windows has no madvise
            mapped.madvise(mmap.MADV_DONTNEED)

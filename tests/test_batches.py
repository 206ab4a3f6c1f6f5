"""Values of a tensor in memory and in temporary files."""

import gc
import tempfile

import numpy as np
import pytest

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.runtime.batches import Batches, Stored, stored
from onnx_dfmpc.runtime import batches as room


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_what_is_stored_is_read_back_as_often_as_wanted(dtype):
    value = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype).transpose(2, 0, 1)
    batches = Batches([Stored(value), value])
    for batch in (batches[0], batches[1], *batches, *batches[:1]):
        assert batch.dtype == dtype
        np.testing.assert_array_equal(batch, value)
    assert len(batches) == 2


def test_only_large_tensors_leave_memory(monkeypatch):
    monkeypatch.setattr(room, "IN_MEMORY", 1000)
    value = np.zeros(100, np.uint8)
    assert stored(value, 10) is value
    assert isinstance(stored(value, 11), Stored)


@pytest.mark.filterwarnings("error")
def test_the_file_goes_with_the_value(monkeypatch):
    files = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(make()) or files[-1])
    kept = Stored(np.zeros(3))
    assert not files[0].closed
    del kept
    gc.collect()
    assert files[0].closed


def test_a_full_disk_is_said(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(DfmpcError, match="No space left on device") as caught:
        Stored(np.zeros(3))
    assert "TMPDIR" in caught.value.hint

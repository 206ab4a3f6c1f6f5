"""Rows of stored arrays are those that NumPy reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import from_data
from onnx_dfmpc.inputs.stored import stored_arrays
from onnx_dfmpc.spec import InputSpec
from tests.samples import RNG, SIGNAL, fed, signals


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 12),
    st.sampled_from([(), (3,), (2, 2)]),
    st.sampled_from(["f4", "f8", "u1", "i8", "?"]),
    st.sampled_from(["npy", "npz", "compressed", "fortran"]),
    st.data(),
)
def test_rows_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    shape: tuple[int, ...],
    dtype: str,
    kind: str,
    data: st.DataObject,
) -> None:
    array = RNG.integers(0, 2, (count, *shape)).astype(dtype)
    file = tmp_path_factory.mktemp("rows") / f"a.{kind[:3]}"
    if kind == "npy":
        np.save(file.with_suffix(".npy"), array)
        rows = stored_arrays(file.with_suffix(".npy"))[""]
    else:
        write = np.savez_compressed if kind == "compressed" else np.savez
        write(
            file.with_suffix(".npz"),
            other=np.zeros(2),
            a=np.asfortranarray(array) if kind == "fortran" else array,
        )
        rows = stored_arrays(file.with_suffix(".npz"))["a"]
    assert (rows.shape, rows.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(rows.whole(), array)
    for _ in range(3):  # backwards as well
        wanted = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1)))) if count else [], np.intp)
        np.testing.assert_array_equal(rows[wanted], array[wanted])


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    file = tmp_path / "s.npy"
    np.save(file, signals(100))
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(RecipeError, match=r"s\.npy: cannot read data"):
        fed(from_data([SIGNAL], file))


def test_whole_numbers_are_cast_where_they_fit() -> None:
    spec = InputSpec("s", np.dtype(np.int32), ("N", 5))
    found = from_data([spec], np.arange(10).reshape(2, 5))
    assert fed(found)["s"].dtype == np.int32
    assert found.notes == ("s: cast from int64 to int32",)
    with pytest.raises(RecipeError, match="expects int32, the data has int64"):
        from_data([spec], np.full((2, 5), 2**40))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_of_an_archive_take_turns(tmp_path: Path, save: Callable[..., None]) -> None:
    """Rows here and there, of one array and of the other, forwards and backwards."""
    arrays = {
        "a": np.arange(60_000, dtype=np.float32).reshape(60, 1000),
        "b": np.arange(60_000)[::-1].reshape(60, -1),
    }
    save(tmp_path / "two.npz", **arrays)
    stored = stored_arrays(tmp_path / "two.npz")
    for rows in ([3, 4, 9], [20, 40, 41], [59], [0, 1, 30], [31]):
        for name, whole in arrays.items():
            assert np.array_equal(stored[name][np.array(rows)], whole[rows])

"""Loader functions: feeds, single samples, endless ones, and those that fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import from_data
from onnx_dfmpc.spec import InputSpec
from tests.samples import SIGNAL, fed, signals

SCRIPT = """
import numpy as np
CALLS = []
def load_data():
    CALLS.append(1)
    for start in range(0, 10, 4):
        rows = np.arange(start, min(start + 4, 10))
        yield {"s": np.repeat(rows[:, None], 5, axis=1).astype(np.float32)}, rows % 3
def broken():
    yield {"s": np.zeros((1, 5), np.float32)}
    raise OSError("disk")
def fewer():
    CALLS.append(1)
    yield from [np.zeros((9, 5), np.float32)] if len(CALLS) == 1 else []
def shuffled():
    rng = np.random.default_rng()
    for _ in range(3):
        yield np.zeros((9, 5), np.float32), rng.integers(0, 1000, 9)
"""


def test_a_loader_script(tmp_path: Path) -> None:
    file = tmp_path / "loader.py"
    file.write_text(SCRIPT, encoding="utf-8")
    found = from_data([SIGNAL], file, batch=3)
    for _ in range(2):
        np.testing.assert_array_equal(fed(found)["s"][:, 0], np.arange(10))
    assert found.labels is not None
    assert found.labels.tolist() == [n % 3 for n in range(10)]
    first = from_data([SIGNAL], f"{file}:load_data", samples=5)
    assert first.count == 5


def test_a_loader_script_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_loader.py").write_text("COUNT = 3\n", encoding="utf-8")
    script = """
        from __future__ import annotations
        from dataclasses import dataclass
        import numpy as np
        @dataclass
        class Clip:
            samples: int
        def load_data():
            from beside_the_loader import COUNT
            return [np.zeros((Clip(COUNT).samples, 5), np.float32)]
    """
    file = tmp_path / "loader.py"
    file.write_text(inspect.cleandoc(script), encoding="utf-8")
    assert from_data([SIGNAL], file).count == 3


def test_an_endless_loader_of_single_samples() -> None:
    def load() -> Any:
        while True:
            yield {"s": np.arange(5, dtype=np.float32)}

    assert fed(from_data([SIGNAL], load, samples=7))["s"].shape == (7, 5)


def feeds(*items: Any) -> Callable[[], list[Any]]:
    return lambda: list(items)


def test_feeds_are_batches_and_single_samples() -> None:
    x = signals(6)
    load = feeds(
        {"s": x[:3], "labels": np.arange(3)}, ({"s": x[3]}, 3), {"s": x[4:], "labels": np.array([4, 5])}
    )
    found = from_data([SIGNAL], load)
    np.testing.assert_array_equal(fed(found)["s"], x)
    np.testing.assert_array_equal(found.labels, np.arange(6))


def test_several_inputs_and_one_that_all_samples_share() -> None:
    specs = [
        SIGNAL,
        InputSpec("labels", np.dtype(np.int64), ("N",)),
        InputSpec("scale", np.dtype(np.float32), (1, 2)),
    ]
    scale = np.ones((1, 2), np.float32)
    load = feeds(*({"s": signals(2), "labels": np.arange(2) + 2 * i, "scale": scale} for i in range(3)))
    found = from_data(specs, load, batch=5)
    sizes = [
        (feed["s"].shape, feed["labels"].tolist(), feed["scale"].shape) for _, _, feed in found.batches()
    ]
    assert sizes == [((5, 5), [0, 1, 2, 3, 4], (1, 2)), ((1, 5), [5], (1, 2))]
    assert found.labels is None


def test_samples_of_different_shapes_run_one_by_one() -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 1, "h", "w"))
    load = feeds(*(np.full((2, 1, *size), i, np.float32) for i, size in enumerate([(8, 8), (4, 8), (8, 8)])))
    found = from_data([spec], load)
    assert found.count == 6
    assert "one by one" in found.notes[-1]
    shapes = [feed["x"].shape for _, _, feed in found.batches()]
    assert shapes == [(1, 1, 8, 8)] * 2 + [(1, 1, 4, 8)] * 2 + [(1, 1, 8, 8)] * 2
    fixed = InputSpec("x", np.dtype(np.float32), (2, 1, "h", "w"))
    with pytest.raises(RecipeError, match="samples differ in shape, the model takes 2 at a time"):
        from_data([fixed], load)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "loader: no samples"),
        ([np.zeros((2, 5)), np.zeros((2, 4))], "(n, 5), the data has float64 (4, ?)"),
        ([np.zeros((2, 5)), np.zeros((1, 2, 5))], "feed 1: input 's' expects"),
        ([np.zeros((2, 5)), {"t": np.zeros((2, 5))}], "feed 1: there is no array '', as in loader, feed 0"),
        ([np.full((2, 5), np.nan)], "NaN"),
        ([(np.zeros((2, 5)), [0, 1]), np.zeros((2, 5))], "feed 1: has no labels, others have some"),
        ([(np.zeros((2, 5)), [0])], "expected 2 labels, one per sample, got shape (1,)"),
    ],
)
def test_feeds_that_do_not_fit(items: list[Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_data([SIGNAL], feeds(*items))
    assert words in str(caught.value)


def test_inputs_of_a_feed_that_differ_in_samples() -> None:
    specs = [SIGNAL, InputSpec("t", np.dtype(np.float32), ("N",))]
    with pytest.raises(RecipeError, match="feed 0: inputs differ in samples: s has 2, t has 3"):
        from_data(specs, feeds({"s": signals(2), "t": np.zeros(3)}))


def test_a_loader_replaces_a_folder_of_arrays(tmp_path: Path) -> None:
    x, folder = signals(6), tmp_path / "folder"
    folder.mkdir()
    for index in range(3):
        np.save(folder / f"{index}.npy", x[2 * index : 2 * index + 2])
    with pytest.raises(RecipeError, match="there is no image in this folder") as caught:
        from_data([SIGNAL], folder)
    assert "loader script" in caught.value.hint
    found = from_data([SIGNAL], lambda: (np.load(file) for file in sorted(folder.glob("*.npy"))))
    np.testing.assert_array_equal(fed(found)["s"], x)


@pytest.mark.parametrize(
    ("function", "words", "hint"),
    [
        ("broken", "loader fails: OSError: disk", ""),
        ("load_dat", "no function 'load_dat'", "did you mean load_data?"),
        ("shuffled", "feed 0 is not what it was before", "unshuffled"),
        ("fewer", "feed 0 is not what it was before", "unshuffled"),
    ],
)
def test_loaders_that_fail(tmp_path: Path, function: str, words: str, hint: str) -> None:
    file = tmp_path / "loader.py"
    file.write_text(SCRIPT, encoding="utf-8")
    with pytest.raises(RecipeError, match=words) as caught:
        fed(from_data([SIGNAL], f"{file}:{function}"))
    assert hint in caught.value.hint


def test_a_script_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.py: the loader script fails: ZeroDivisionError"):
        from_data([SIGNAL], tmp_path / "bad.py")
    with pytest.raises(RecipeError, match=r"no\.py: no such loader script"):
        from_data([SIGNAL], tmp_path / "no.py")


def test_a_function_is_a_source_and_gives_one_chunk_at_a_time() -> None:
    alive: list[int] = []

    def load() -> Any:
        for index in range(50):
            alive.append(index)
            yield {"s": np.full((2, 5), index, np.float32)}

    found = from_data([SIGNAL], load, batch=4)
    alive.clear()
    batches = found.batches()
    next(batches)
    assert max(alive) <= 2
    assert found.count == 100

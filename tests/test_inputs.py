"""Data sources: whatever the files look like, a model is fed the same arrays, and what does not fit is said."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.data import Feeding, samples_of
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.specs import InputSpec
from onnx_dfmpc.inputs.stored import stored_arrays
from onnx_dfmpc.recipe import Preprocessing

IMAGE = InputSpec("x", np.dtype(np.float32), ("N", 3, 4, 6))
SIGNAL = InputSpec("s", np.dtype(np.float32), ("N", 5))
RNG = np.random.default_rng(0)


def signals(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 5)).astype(np.float32)


def fed(found: Samples) -> dict[str, np.ndarray]:
    """Everything that a model would get to see."""
    batches = [feeds for _, _, feeds in found.batches()]
    return {name: np.concatenate([feeds[name] for feeds in batches]) for name in batches[0]}


# -----------------------------------------------------------------------------------------------------------------
# rows of files


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


# -----------------------------------------------------------------------------------------------------------------------
# folders


def test_a_folder_holds_batches_and_single_samples(tmp_path: Path) -> None:
    x, labels = signals(6), np.arange(6)
    np.savez(tmp_path / "a.npz", s=x[:3], labels=labels[:3])
    np.savez(tmp_path / "b.npz", s=x[3], labels=labels[3])
    (tmp_path / "deeper").mkdir()
    np.savez(tmp_path / "deeper" / "c.npz", s=x[4:], labels=labels[4:])
    found = from_data([SIGNAL], tmp_path)
    np.testing.assert_array_equal(fed(found)["s"], x)
    np.testing.assert_array_equal(found.labels, labels)
    some = from_data([SIGNAL], tmp_path, samples=4, seed=3)
    assert some.labels is not None
    np.testing.assert_array_equal(fed(some)["s"], x[some.labels])


def test_labels_in_the_folder(tmp_path: Path) -> None:
    for index, part in enumerate(np.split(signals(6), 3)):
        np.save(tmp_path / f"{index}.npy", part)
    np.save(tmp_path / "labels.npy", np.arange(6))
    found = from_data([SIGNAL], tmp_path, samples=4)
    assert found.labels is not None
    assert found.labels.shape == (4,)
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(RecipeError, match="expected 6 integers"):
        from_data([SIGNAL], tmp_path)


def test_several_inputs_and_one_that_all_samples_share(tmp_path: Path) -> None:
    specs = [
        SIGNAL,
        InputSpec("t", np.dtype(np.int64), ("N",)),
        InputSpec("scale", np.dtype(np.float32), (1, 2)),
    ]
    for index in range(3):
        np.savez(
            tmp_path / f"{index}.npz",
            s=signals(2),
            t=np.arange(2) + 2 * index,
            scale=np.ones((1, 2), np.float32),
        )
    found = from_data(specs, tmp_path, batch=5)
    sizes = [(feeds["s"].shape, feeds["t"].tolist(), feeds["scale"].shape) for _, _, feeds in found.batches()]
    assert sizes == [((5, 5), [0, 1, 2, 3, 4], (1, 2)), ((1, 5), [5], (1, 2))]


def test_samples_of_different_shapes_run_one_by_one(tmp_path: Path) -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 1, "h", "w"))
    for index, size in enumerate([(8, 8), (4, 8), (8, 8)]):
        np.save(tmp_path / f"{index}.npy", np.full((2, 1, *size), index, np.float32))
    found = from_data([spec], tmp_path)
    assert found.count == 6
    assert "one by one" in found.notes[-1]
    assert [feeds["x"].shape for _, _, feeds in found.batches()] == [(1, 1, 8, 8)] * 2 + [
        (1, 1, 4, 8)
    ] * 2 + [(1, 1, 8, 8)] * 2


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no .npy, no .npz and no image"),
        ({"a.npy": np.zeros((2, 5), np.float32), "b.png": b""}, "both arrays and images"),
        (
            {"a.npy": np.zeros((2, 5), np.float32), "b.npy": np.zeros((2, 4), np.float32)},
            "(n, 5), the data has float32 (4, ?)",
        ),
        (
            {"a.npy": np.zeros((2, 5), np.float32), "b.npy": np.zeros((1, 2, 5), np.float32)},
            "b.npy: input 's' expects",
        ),
        ({"a.npy": np.zeros((2, 5), np.float32), "b.npy": b"nothing"}, "b.npy: not an .npz"),
        ({"a.npy": np.zeros((2, 5), np.float32), "b.npy": np.full((2, 5), np.nan, np.float32)}, "NaN"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content) if isinstance(content, bytes) else np.save(
            tmp_path / name, content
        )
    with pytest.raises(RecipeError) as caught:
        fed(from_data([SIGNAL], tmp_path))
    assert words in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Polygraphy

# Written by polygraphy 0.53.6: save_json([{"s": np.arange(5, dtype=np.float32)[None], "scale": np.float32(2)
# * np.ones(())}], ...)
POLYGRAPHY = """[
    {
        "s": {
            "array": "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDEsIDUpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAACAPwAAAEAAAEBAAACAQA==",
            "polygraphy_class": "ndarray"
        },
        "scale": 2.0
    }
]"""  # noqa: E501


def test_inputs_saved_by_polygraphy(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(POLYGRAPHY, encoding="utf-8")
    specs = [SIGNAL, InputSpec("scale", np.dtype(np.float64), ())]
    _, _, feeds = next(from_data(specs, file).batches())
    np.testing.assert_array_equal(feeds["s"], np.arange(5, dtype=np.float32)[None])
    assert feeds["scale"] == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '[{"s": "text"}]',
        '[{"s": {"array": "!"}}]',
        '[{"s": {"polygraphy_class": "ndarray"}}]',
        "[]",
    ],
)
def test_json_that_is_something_else(tmp_path: Path, content: str) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"inputs\.json"):
        from_data([SIGNAL], file)


# ------------------------------------------------------------------------------------------------------------------------
# images


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Five pictures of the size that the model takes, in two classes."""
    pixels = [RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8) for _ in range(5)]
    for index, array in enumerate(pixels):
        folder = tmp_path / ("bird" if index < 2 else "cat")
        folder.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{index}.png")
    return tmp_path, pixels


def test_pictures_are_preprocessed(photos: tuple[Path, list[np.ndarray]]) -> None:
    folder, pixels = photos
    mean, std = (104.0, 117.0, 123.0), (1.0, 2.0, 4.0)
    found = from_data([IMAGE], folder, images=Preprocessing(mean=mean, std=std, scale=1, channels="bgr"))
    expected = np.stack([((array[..., ::-1] - np.array(mean)) / std).transpose(2, 0, 1) for array in pixels])
    np.testing.assert_allclose(fed(found)["x"], expected, rtol=1e-6)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.notes == ("labels: the sub-folders in order, bird = 0, cat = 1",)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec("x", np.dtype(np.float32), ("N", 4, 6, 3)), lambda pixels: pixels / 255),
        (InputSpec("x", np.dtype(np.uint8), (1, 4, 6, 3)), lambda pixels: pixels),
        (
            InputSpec("x", np.dtype(np.float32), (1, 3, "h", "w")),
            lambda pixels: pixels.transpose(0, 3, 1, 2) / 255,
        ),
    ],
)
def test_the_shape_says_what_a_model_wants(
    photos: tuple[Path, list[np.ndarray]], spec: InputSpec, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    folder, pixels = photos
    found = fed(from_data([spec], folder))["x"]
    assert found.dtype == spec.dtype
    np.testing.assert_allclose(found, expected(np.stack(pixels)), rtol=1e-6)


def test_gray_pictures(photos: tuple[Path, list[np.ndarray]]) -> None:
    folder, pixels = photos
    found = fed(from_data([InputSpec("x", np.dtype(np.float32), ("N", 1, 4, 6))], folder))["x"]
    luma = np.stack(pixels) @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(found[:, 0], luma, atol=1 / 255)


@pytest.mark.parametrize(
    ("recipe", "side"),
    [
        ({"size": 20}, "shorter"),
        ({"size": (20, 30)}, "both"),
        ({"size": 20, "crop": (4, 6)}, "shorter"),
        ({}, "exact"),
    ],
)
def test_resize_then_crop(tmp_path: Path, recipe: dict[str, Any], side: str) -> None:
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (40, 60, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    if side == "both":
        with pytest.raises(
            RecipeError, match=r"expects float32 \(n, 3, 4, 6\), the data has float32 \(1, 3, 20, 30\)"
        ):
            from_data([IMAGE], tmp_path, images=Preprocessing(**recipe))
        return
    found = fed(from_data([IMAGE], tmp_path, images=Preprocessing(**recipe)))["x"][0, 0, 0] * 255 / 4
    per_pixel = 60 / 30 if side == "shorter" else 60 / 6
    expected = 29.5 + (np.arange(6) - 2.5) * per_pixel
    np.testing.assert_allclose(found, expected, atol=0.5 if side == "shorter" else 1.5)


def test_a_crop_alone_does_not_resize(photos: tuple[Path, list[np.ndarray]]) -> None:
    folder, pixels = photos
    spec = InputSpec("x", np.dtype(np.uint8), (1, 2, 2, 3))
    np.testing.assert_array_equal(
        fed(from_data([spec], folder, images=Preprocessing(crop=2)))["x"], np.stack(pixels)[:, 1:3, 2:4]
    )


@pytest.mark.parametrize("crop", [0.5, [0.5]])
def test_a_share_is_cut_before_resizing(tmp_path: Path, crop: Any) -> None:
    """Of the middle half of a ramp, 30 pixels wide, six are left."""
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (40, 60, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    found = fed(from_data([IMAGE], tmp_path, images=Preprocessing(crop=crop)))["x"][0, 0, 0] * 255 / 4
    np.testing.assert_allclose(found[1:-1], 15 + np.arange(7.0, 25, 5), atol=0.3)


def test_a_single_picture(photos: tuple[Path, list[np.ndarray]]) -> None:
    folder, pixels = photos
    np.testing.assert_allclose(
        fed(from_data([IMAGE], folder / "cat" / "3.png"))["x"],
        pixels[3].transpose(2, 0, 1)[None] / 255,
        rtol=1e-6,
    )


def test_settings_for_pictures_are_not_for_arrays() -> None:
    assert "these are arrays" in from_data([SIGNAL], signals(3), images=Preprocessing(size=8)).notes[0]
    assert from_data([SIGNAL], signals(3), images=Preprocessing()).notes == ()


def test_pictures_that_do_not_fit(photos: tuple[Path, list[np.ndarray]]) -> None:
    folder, _ = photos
    with pytest.raises(RecipeError, match="one input of four dimensions"):
        from_data([SIGNAL], folder)
    with pytest.raises(RecipeError, match="expects") as caught:
        from_data([IMAGE], folder, images=Preprocessing(size=(8, 8)))
    assert "--image-size" in caught.value.hint
    with pytest.raises(RecipeError, match="crop 9,9"):
        from_data([IMAGE], folder, images=Preprocessing(size=(8, 8), crop=9))
    (folder / "bird" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(RecipeError, match=r"0\.png: not a picture"):
        fed(from_data([IMAGE], folder))


def test_without_pillow(photos: tuple[Path, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(RecipeError, match="needs Pillow") as caught:
        from_data([IMAGE], photos[0])
    assert "onnx-dfmpc[images]" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------------------
# labels


def test_numbers_of_folders_are_labels(tmp_path: Path) -> None:
    for name in ("7", "12"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / name / "a.png")
    found = from_data([IMAGE], tmp_path)
    assert found.labels is not None
    assert found.labels.tolist() == [12, 7]


def test_labels_by_file_name(
    photos: tuple[Path, list[np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, _ = photos
    file = tmp_path_factory.mktemp("labels") / "labels.csv"
    file.write_text("4.png,9\ncat/3.png 8\n\nbird/0.png\t5\n1.png 6\n2.png,7\n", encoding="utf-8")
    found = from_data([IMAGE], folder, file)
    assert found.labels is not None
    assert found.labels.tolist() == [5, 6, 7, 8, 9]
    file.write_text("4.png,9\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"no label for 'bird/0\.png'"):
        from_data([IMAGE], folder, file)


@pytest.mark.parametrize(
    ("content", "words"),
    [("1\n2\n", "expected 5 integers"), ("one\n", "not a label file"), ("a 1\n2\n", "not a label file")],
)
def test_label_files_that_do_not_fit(photos: tuple[Path, list[np.ndarray]], content: str, words: str) -> None:
    file = photos[0].parent / "labels.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=words):
        from_data([IMAGE], photos[0], file)


# -----------------------------------------------------------------------------------------------------------------------
# loaders

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


@pytest.mark.parametrize(
    ("function", "words", "hint"),
    [
        ("broken", "loader fails: OSError: disk", ""),
        ("load_dat", "no function 'load_dat'", "did you mean load_data?"),
        ("shuffled", "feed 0 is not what it was before", "unshuffled"),
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


def test_a_function_is_a_source_and_gives_one_piece_at_a_time() -> None:
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


# -------------------------------------------------------------------------------------------------------
# shapes and batches


def test_shapes_settle_what_a_model_leaves_open() -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, "h", "w"))
    found = samples_of([spec], Feeding(samples=4, shapes={"x": (2, 3, 8, 10)}))
    assert [feeds["x"].shape for _, _, feeds in found.batches()] == [(2, 3, 8, 10)] * 2
    with pytest.raises(RecipeError, match="expects"):
        samples_of([spec], Feeding(np.zeros((4, 3, 8, 8), np.float32), shapes={"x": (2, 3, 8, 10)}))
    with pytest.raises(RecipeError, match=r"\(1, 4, 8, 8\) does not fit the input x"):
        samples_of([spec], Feeding(shapes={"x": (1, 4, 8, 8)}))
    with pytest.raises(RecipeError, match="no input is named 'y'"):
        samples_of([spec], Feeding(shapes={"y": (1, 3, 8, 8)}))


def test_batch_size() -> None:
    assert [stop - start for start, stop, _ in from_data([SIGNAL], signals(7), batch=3).batches()] == [
        3,
        3,
        1,
    ]
    fixed = InputSpec("s", np.dtype(np.float32), (2, 5))
    assert from_data([fixed], signals(4), batch=2).batch == 2
    with pytest.raises(RecipeError, match="batch size 3: the model takes 2 at a time"):
        from_data([fixed], signals(4), batch=3)

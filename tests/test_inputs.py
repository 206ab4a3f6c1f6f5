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
from onnx import ModelProto, numpy_helper, parser
from PIL import Image

from onnx_dfmpc.errors import RecipeError, UnsupportedError
from onnx_dfmpc.inputs.data import real_inputs, samples_of
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.specs import is_image, model_inputs
from onnx_dfmpc.inputs.stored import stored_arrays
from onnx_dfmpc.inputs.synthetic import Hypothesis, Kind, draw, hypothetical, synthetic, synthetic_feeds
from onnx_dfmpc.recipe import Data, Preprocessing
from onnx_dfmpc.spec import InputSpec

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


def test_whole_numbers_are_cast_where_they_fit() -> None:
    spec = InputSpec("s", np.dtype(np.int32), ("N", 5))
    found = from_data([spec], np.arange(10).reshape(2, 5))
    assert fed(found)["s"].dtype == np.int32
    assert found.notes == ("s: cast from int64 to int32",)
    with pytest.raises(RecipeError, match="expects int32, the data has int64"):
        from_data([spec], np.full((2, 5), 2**40))


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
    assert "size, crop and layout" in caught.value.hint
    with pytest.raises(RecipeError, match="crop 9,9"):
        from_data([IMAGE], folder, images=Preprocessing(size=(8, 8), crop=9))
    (folder / "bird" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(RecipeError, match=r"0\.png: not a picture"):
        fed(from_data([IMAGE], folder))


def test_pictures_of_different_sizes_need_one(tmp_path: Path) -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, "h", "w"))
    for name, size in (("a", (6, 4)), ("b", (6, 5))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    with pytest.raises(RecipeError, match="pictures differ in size"):
        fed(from_data([spec], tmp_path))
    assert fed(from_data([spec], tmp_path, images=Preprocessing(size=(4, 4))))["x"].shape == (2, 3, 4, 4)


def test_many_classes_are_abridged_and_one_is_none(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / name / "1.png")
    assert from_data([IMAGE], tmp_path).notes == (
        "labels: the sub-folders in order, a = 0, b = 1, ..., d = 3",
    )
    (tmp_path / "all").mkdir()
    (tmp_path / "a").rename(tmp_path / "all" / "a")
    assert from_data([IMAGE], tmp_path / "all").labels is None


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


def test_labels_of_an_npz_with_other_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", other=np.zeros(3), labels=np.arange(3))
    found = from_data([SIGNAL], signals(3), tmp_path / "y.npz")
    np.testing.assert_array_equal(found.labels, np.arange(3))


@pytest.mark.filterwarnings("ignore:Stored array in format 3")
@pytest.mark.parametrize(
    ("name", "content", "words", "hint"),
    [
        (
            "y.npz",
            {"first": np.arange(5), "second": np.arange(5)},
            "has first, second, none of them",
            "5 integers",
        ),
        ("y.npy", np.arange(4), "expected 5 integers", "counted from 0"),
        ("y.txt", b"1\n2\n3\n4\n5\n", "not an .npz or .npy", "numpy.save"),
        ("no.npy", None, "no such labels file", ""),
        (".", None, "cannot read labels", ""),
        ("y.npy", np.zeros(5, [("\u03c0", int)]), "not an .npz or .npy", "numpy.save"),  # version 3
    ],
)
def test_label_files_that_do_not_fit(tmp_path: Path, name: str, content: Any, words: str, hint: str) -> None:
    file = tmp_path / name
    if isinstance(content, dict):
        np.savez(file, **content)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(RecipeError, match=words) as caught:
        from_data([SIGNAL], signals(5), file)
    assert hint in caught.value.hint


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


# -------------------------------------------------------------------------------------------------------
# shapes and batches


def test_shapes_settle_what_a_model_leaves_open() -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, "h", "w"))
    found = samples_of([spec], Data(samples=4, shapes={"x": (2, 3, 8, 10)}))
    assert [feeds["x"].shape for _, _, feeds in found.batches()] == [(2, 3, 8, 10)] * 2
    with pytest.raises(RecipeError, match="expects"):
        samples_of([spec], Data(data=np.zeros((4, 3, 8, 8), np.float32), shapes={"x": (2, 3, 8, 10)}))
    with pytest.raises(RecipeError, match=r"\(1, 4, 8, 8\) does not fit the input x"):
        samples_of([spec], Data(shapes={"x": (1, 4, 8, 8)}))
    with pytest.raises(RecipeError, match="no input is named 'y'"):
        samples_of([spec], Data(shapes={"y": (1, 3, 8, 8)}))


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


# --------------------------------------------------------------------------------------------------------
# synthetic inputs


def drawn(shape: tuple[int | str, ...], kind: Kind = "pictures", dtype: Any = np.float32, **how: Any) -> Any:
    return fed(synthetic([InputSpec("x", np.dtype(dtype), shape)], kind, **how))["x"]


@pytest.mark.parametrize(
    ("shape", "kind", "values"),
    [
        (("N", 3, 12, 10), "pictures", [0.54395, 2.7439, -0.25619, 0.36143, -0.40619, -1.45028]),
        (("N", 3, 12, 10), "spectrum", [-0.52598, 1.14427, 0.94383, 0.88719, 0.13502, 0.0282]),
        (("N", 6, 20), "pictures", [-2.28685, 0.72877, 1.30091, 0.55923, 1.40201, 0.27523]),
        (("N", 6, 20), "spectrum", [-0.80193, 1.1703, -1.28249, 0.42604, 0.63561, 0.23106]),
    ],
)
def test_synthetic_values_are_those_that_files_were_made_from(
    shape: tuple[int | str, ...], kind: Kind, values: list[float]
) -> None:
    x = drawn(shape, kind, samples=4, seed=5)[:2].reshape(2, -1)[:, [0, 40, 77]]
    np.testing.assert_allclose(x.ravel(), values, atol=2e-5)


TOKENS = """
<ir_version: 8, opset_import: ["": 17]>
g (int32[N, 6] tokens, int64[N, 6] places, int64[N] size) => (float[N, 6, 2] y)
<float[9, 2] words = {0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7}, float[4, 2] at = {0,1,2,3,4,5,6,7}, float[2, 5] shares = {0,1,2,3,4,5,6,7,8,9}> {
  wide = Cast <to = 7> (tokens)
  a = Gather (words, wide)
  b = Gather (at, places)
  c = Gather <axis = 1> (shares, places)
  y = Add (a, b)
}"""


@pytest.mark.parametrize("kind", ["pictures", "white", "spectrum"])
def test_indices_stay_within_their_table(kind: Kind) -> None:
    specs = model_inputs(parser.parse_model(TOKENS))
    assert [spec.rows for spec in specs] == [9, 4, None]
    drawn = fed(synthetic(specs, kind, samples=64))
    assert np.array_equal(np.unique(drawn["tokens"]), range(9))
    assert drawn["tokens"].dtype == np.int32
    assert np.array_equal(np.unique(drawn["places"]), range(4))
    some = fed(synthetic(specs, kind, samples=64, input_range=(2, 6)))
    assert np.array_equal(np.unique(some["tokens"]), range(2, 7))  # --input-range counts, within the table
    assert np.array_equal(np.unique(some["places"]), [2, 3])


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(
        [
            ("N", 3, 12, 10),
            (2, 3, 8, 8),
            ("N", 4, 20),
            (1, 5),
            ("N", 6, 6, 3),
            ("N", 1, 9, 9),
            ("N", 9, 9, 1),
            (),
        ]
    ),
    st.sampled_from([np.float32, np.float16, np.float64, np.uint8, np.int8, np.int64, np.bool_]),
    st.sampled_from(["pictures", "white", "spectrum"]),
    st.integers(0, 2**32 - 2),
)
def test_synthetic_inputs_fit_the_model(
    shape: tuple[int | str, ...], dtype: Any, kind: Kind, seed: int
) -> None:
    spec = InputSpec("x", np.dtype(dtype), shape)
    first, again, other = (synthetic([spec], kind, samples=8, seed=s) for s in (seed, seed, seed + 1))
    changed = False
    for one, same, another in zip(*(found.batches() for found in (first, again, other)), strict=True):
        x = one[2]["x"]
        assert x.dtype == dtype
        assert x.ndim == len(shape)
        sizes = zip(x.shape, shape, strict=True)
        assert all(size == wanted for size, wanted in sizes if isinstance(wanted, int))
        assert np.isfinite(x.astype(np.float64)).all()
        if x.dtype.kind in "iu":
            assert x.min() >= 0
        assert (x == same[2]["x"]).all()
        changed |= bool((x != another[2]["x"]).any())
    assert changed == bool(shape)


@pytest.mark.parametrize("kind", ["pictures", "white", "spectrum"])
@pytest.mark.parametrize("shape", [("N", 3, 8, 8), ("N", 6, 20)])
def test_a_sample_is_the_same_in_any_batch(shape: tuple[int | str, ...], kind: Kind) -> None:
    many = drawn(shape, kind, samples=12, batch=4)
    few = drawn(shape, kind, samples=6, batch=3)
    np.testing.assert_array_equal(few, many[:6])
    fixed = drawn((2, *shape[1:]), kind, samples=6)
    np.testing.assert_array_equal(fixed, few)


@pytest.mark.parametrize("shape", [("N", 3, 8, 8), ("N", 6, 20)])
def test_no_picture_is_there_twice(shape: tuple[int | str, ...]) -> None:
    x = drawn(shape, samples=16).reshape(16, -1)
    correlation = np.corrcoef(x) - np.eye(16)
    assert np.abs(correlation).max() < 0.99  # neither again nor as a negative


def test_pictures_fill_their_last_batch() -> None:
    assert len(drawn(("N", 3, 8, 8), samples=7, batch=3)) == 9
    assert len(drawn(("N", 3, 8, 8), "spectrum", samples=7, batch=3)) == 7
    assert len({len(feed["x"]) for feed in synthetic_feeds([InputSpec("x", np.dtype("f4"), ("N", 5))])}) == 1


def test_an_input_without_the_batch_axis_is_the_same_in_all_runs() -> None:
    specs = [
        InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8)),
        InputSpec("size", np.dtype(np.int64), (2,)),
        InputSpec("k", np.dtype(np.int64), ()),
    ]
    for kind in ("pictures", "spectrum"):
        feeds = [feed for _, _, feed in synthetic(specs, kind, samples=4, batch=2).batches()]
        assert [(len(feed["x"]), feed["size"].shape, int(feed["k"])) for feed in feeds] == [(2, (2,), 1)] * 2
        np.testing.assert_array_equal(feeds[0]["size"], feeds[1]["size"])


@pytest.mark.parametrize("kind", ["pictures", "spectrum"])
def test_flags_are_as_often_true_as_false(kind: Kind) -> None:
    flags = drawn(("N", 64), kind, np.bool_, samples=16)
    assert flags.dtype == np.bool_
    assert 0.3 < flags.mean() < 0.7


def test_synthetic_samples_say_what_they_are() -> None:
    specs = [IMAGE, SIGNAL]
    assert synthetic(specs, samples=4).description == "4 synthetic samples (1/f images, noise, seed 0)"
    found = synthetic(specs, "pictures", samples=4, input_range=(0, 1))
    assert found.description == "4 synthetic samples (pictures, smooth noise in 0 to 1, seed 0)"


@pytest.mark.parametrize("shape", [("N", 3, 16, 16), ("N", 6, 50), ("N", 20), ("N", 16, 16, 3)])
def test_synthetic_floats_have_mean_zero_and_variance_one(shape: tuple[int | str, ...]) -> None:
    values = drawn(shape)
    assert abs(values.mean()) < 0.2
    assert 0.7 < values.std() < 1.4
    assert values.reshape(len(values), -1).std(axis=0).min() > 0.5  # every input moves


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (10.0, 200.0)])
def test_input_range_is_respected_and_used(dtype: Any, interval: tuple[float, float]) -> None:
    values = drawn(("N", 3, 16, 16), dtype=dtype, samples=64, input_range=interval).astype(np.float64)
    assert values.min() >= interval[0]
    assert values.max() <= interval[1]
    assert values.max() - values.min() > 0.8 * (interval[1] - interval[0])


def test_pictures_are_smooth_and_their_colours_go_together() -> None:
    images = drawn(("N", 3, 32, 32))
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    far = np.corrcoef(images[..., 16:].ravel(), images[..., :-16].ravel())[0, 1]
    colours = np.corrcoef(images[:, 0].ravel(), images[:, 1].ravel())[0, 1]
    assert neighbours > 0.7
    assert neighbours > far + 0.2
    assert colours > 0.5


@pytest.mark.parametrize(("kind", "side"), [("pictures", 224), ("spectrum", 64)])
def test_dynamic_sizes_get_a_number(kind: Kind, side: int) -> None:
    assert drawn(("N", 3, "h", "w"), kind, samples=1).shape == (1, 3, 224, 224)
    assert drawn(("N", 2, "h", "w"), kind, samples=1).shape == (1, 2, side, side)
    assert drawn(("N", 2, "t"), kind, samples=1).shape == (1, 2, 64)


def test_white_noise_is_white() -> None:
    white = drawn(("N", 3, 16, 16), "white", samples=64)
    assert abs(white.mean()) < 0.03
    assert white.std() == pytest.approx(1, abs=0.03)
    for one, other in (
        (white[..., 1:], white[..., :-1]),
        (white[:, :, 1:], white[:, :, :-1]),
        (white[:, 0], white[:, 1]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("shape", [("N", 3, 12, 10), ("N", 6, 21), ("N", 4, 7, 20)])
@pytest.mark.parametrize("kind", ["pictures", "spectrum"])
def test_filtered_noise_keeps_its_variance(shape: tuple[int | str, ...], kind: Kind) -> None:
    """Of a real transform, the frequencies between the lowest and the highest stand for two: sides that are
    even and odd.
    """
    values = drawn(shape, kind, samples=400)
    assert np.square(values).mean(dtype=np.float64) == pytest.approx(1, abs=0.2)


# --------------------------------------------------------------------------------------------------------
# hypotheses on inputs


@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize("kind", ["pictures", "white", "spectrum"])
def test_a_hypothesis_is_a_range_four_deviations_wide(kind: Kind, picture: bool) -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, 16, 16))
    units = draw([spec], kind, 24, 5)
    plain = units.arrays["x"].astype(np.float64)
    feeds = hypothetical(units, Hypothesis(kind, 10.0, 50.0, picture))
    values = np.concatenate([feed["x"] for feed in feeds])
    assert values.dtype == np.float32
    expected = 30 + 10 * plain
    np.testing.assert_allclose(values, np.clip(expected, 10, 50) if picture else expected, atol=1e-5)
    assert bool(values.min() >= 10 and values.max() <= 50) is picture
    few = hypothetical(units, Hypothesis(kind, 10.0, 50.0, picture), 5)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in few]), values[:5])


def test_a_hypothesis_leaves_integers_and_what_all_samples_share() -> None:
    specs = [
        InputSpec("x", np.dtype(np.float32), (2, 3, 8, 8)),
        InputSpec("k", np.dtype(np.int64), (2,)),
        InputSpec("scale", np.dtype(np.float32), (1, 4)),
    ]
    units = draw(specs, "pictures", 5, 0)
    assert units.count == 6  # the model fixes its batch to 2
    feeds = hypothetical(units, Hypothesis("pictures", 0.0, 255.0), 3)
    assert [[feed[spec.name].shape for spec in specs] for feed in feeds] == [[(2, 3, 8, 8), (2,), (1, 4)]] * 2
    assert feeds[0]["k"].dtype == np.int64
    np.testing.assert_array_equal(feeds[0]["scale"], feeds[1]["scale"])
    np.testing.assert_array_equal(feeds[0]["k"], units.arrays["k"][:2])


@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [
        (Hypothesis("pictures", -2.0, 2.0), "pictures in -2 to 2"),
        (Hypothesis("pictures", -0.06, 0.06, False), "smooth noise in -0.06 to 0.06"),
        (Hypothesis("white", 0.0, 255.0), "white noise in 0 to 255"),
        (Hypothesis("spectrum", 0.0, 1.0), "1/f images in 0 to 1"),
    ],
)
def test_hypotheses_say_what_they_are(hypothesis: Hypothesis, words: str) -> None:
    assert str(hypothesis) == words


# --------------------------------------------------------------------------------------------------------
# inputs of a model


def parse(text: str, **initializers: np.ndarray) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()
    )
    return model


def test_inputs_as_the_file_declares_them() -> None:
    model = parse(
        "g (float[N, 3, 8, 8] x, int64[2] size, float[?, 4] z, float[4] w) => (float[] y) { y = Identity(x) }",
        w=np.zeros(4, np.float32),
    )
    assert [(spec.name, spec.dtype, spec.shape) for spec in model_inputs(model, {"z": (2, 4)})] == [
        ("x", np.float32, ("N", 3, 8, 8)),
        ("size", np.int64, (2,)),
        ("z", np.float32, (2, 4)),
    ]


@pytest.mark.parametrize("kind", ["string[N]", "seq(float[N])", "bfloat16[N]"])
def test_inputs_that_cannot_be_drawn(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="'x'"):
        model_inputs(parse(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}"))


SIGNALS = "g (float[N, 5] s) => (float[] y) { y = Relu(s) }"


def rows_of(feeds: Any) -> np.ndarray:
    return np.concatenate([feed["s"] for feed in feeds]) if feeds else np.zeros((0, 5), np.float32)


@pytest.mark.parametrize(
    ("count", "held_out"), [(1, 0), (2, 0), (15, 0), (16, 2), (30, 3), (128, 16), (400, 16)]
)
def test_real_inputs_are_the_users_rows_some_of_them_held_out(count: int, held_out: int) -> None:
    data = signals(count)
    found = real_inputs(parse(SIGNALS), Data(data={"s": data}))
    assert found.count == count - held_out
    np.testing.assert_array_equal(rows_of(found.feeds), data[: found.count])
    np.testing.assert_array_equal(rows_of(found.held_out), data[found.count :])


def test_real_inputs_are_not_more_than_a_few_hundred() -> None:
    data = signals(700)
    found = real_inputs(parse(SIGNALS), Data(data={"s": data}))
    many = np.concatenate([rows_of(found.feeds), rows_of(found.held_out)])
    assert (len(many), found.count) == (512, 496)
    assert len({row.tobytes() for row in many}) == 512  # none is on both sides
    assert {row.tobytes() for row in many} <= {row.tobytes() for row in data}
    loader = lambda: ({"s": data[start : start + 7]} for start in range(0, 14, 7))  # noqa: E731
    loaded = real_inputs(parse(SIGNALS), Data(data=loader, samples=3))
    np.testing.assert_array_equal(rows_of(loaded.feeds), data[:14])


def test_a_fixed_batch_is_held_out_as_a_whole_or_not_at_all() -> None:
    model = parse("g (float[4, 5] s) => (float[] y) { y = Relu(s) }")
    for count, held_out in ((16, 0), (32, 4), (64, 8)):
        found = real_inputs(model, Data(data={"s": signals(count)}))
        assert (found.count, len(rows_of(found.held_out))) == (count - held_out, held_out)
        assert {len(feed["s"]) for feed in [*found.feeds, *found.held_out]} == {4}


def test_the_span_of_real_inputs_is_four_deviations_about_their_mean() -> None:
    data = 3 * signals(40) + np.float32(1000)
    found = real_inputs(parse(SIGNALS), Data(data={"s": data}))
    mean, deviation = data[:35].mean(dtype=np.float64), data[:35].std(dtype=np.float64)
    assert found.span == pytest.approx((mean - 2 * deviation, mean + 2 * deviation), rel=1e-6)
    still = real_inputs(parse(SIGNALS), Data(data={"s": np.ones((3, 5), np.float32)}))
    assert still.span is None
    whole = parse("g (int64[N, 5] s) => (int64[] y) { y = Identity(s) }")
    assert real_inputs(whole, Data(data={"s": np.arange(10).reshape(2, 5)})).span is None


# --------------------------------------------------------------------------------------------------------
# what is a picture


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 32, 32), True),
        ((3, 224, 160), True),
        ((3, 4, 100), True),  # three colours, and sides that are longer than three
        ((3, 3, 32), False),
        ((32, 32, 3), True),
        ((3, "h", "w"), True),
        ((1, 64, 64), True),
        ((1, 28, 28), True),
        ((1, 8, 20), True),
        ((1, 8, 21), False),  # as a spectrogram
        ((1, 49, 10), False),
        ((1, 40, 101), False),
        ((1, 7, 7), False),  # as a window of a few sensors
        ((1, 1, 128), False),
        ((1, "h", "w"), True),  # nothing speaks against it
        ((1, "h", 64), True),
        ((64, 64, 1), False),
        ((6, 32, 32), False),
        ((3, 32), False),
        ((128,), False),
        ((), False),
    ],
)
def test_what_may_be_an_image(shape: tuple[int | str, ...], expected: bool) -> None:
    assert is_image(shape) is expected

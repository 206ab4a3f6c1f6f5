"""Pictures as data: sizes, crops, colours, and which inputs take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import from_data
from onnx_dfmpc.inputs.specs import is_image
from onnx_dfmpc.recipe import Preprocessing
from onnx_dfmpc.spec import InputSpec
from tests.samples import IMAGE, RNG, SIGNAL, fed, signals


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

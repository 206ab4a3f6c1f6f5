"""Images, preprocessed as the user says, one at a time (Pillow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import Dataset, shape_error
from onnx_dfmpc.inputs.specs import channel_axis, fits, listing
from onnx_dfmpc.inputs.stored import AnyArray
from onnx_dfmpc.recipe import Preprocessing
from onnx_dfmpc.spec import InputSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SHOWN_CLASSES = 3


def image_dataset(
    specs: Sequence[InputSpec], folder: Path, files: Sequence[Path], recipe: Preprocessing
) -> Dataset:
    """Images of a folder, for a model with one input of four dimensions. Where all are in sub-folders, these
    are the classes: by number, if their names are numbers, else in the order of their names.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise RecipeError(
            f"{folder}: reading images needs Pillow", hint="pip install 'onnx-dfmpc[images]'"
        ) from None
    if len(specs) != 1 or len(specs[0].shape) != 4:
        raise RecipeError(
            f"{folder}: images are for models with one input of four dimensions", hint=listing(specs)
        )
    spec = specs[0]
    labels, notes = _classes([file.relative_to(folder).as_posix() for file in files])
    rows, source = _ImageRows(files, spec, recipe), str(folder if len(files) > 1 else files[0])
    if not fits(rows.shape, spec, batched=True):
        hint = "what images become is set by their size, crop and layout"
        raise shape_error(rows.shape, rows.dtype, spec, source, hint, batched=True)
    return Dataset({spec.name: rows}, {}, source, labels, notes)


class _ImageRows:
    """Preprocessed images as rows; a file is read whenever its row is."""

    def __init__(self, files: Sequence[Path], spec: InputSpec, recipe: Preprocessing) -> None:
        self._files, self._recipe = files, recipe
        self._last = recipe.layout == "nhwc" or (recipe.layout == "auto" and channel_axis(spec.shape) == 3)
        self._size = spec.shape[1:3] if self._last else spec.shape[2:]
        self._gray = recipe.channels == "gray" or (
            recipe.channels == "auto" and spec.shape[3 if self._last else 1] == 1
        )
        self.dtype: np.dtype[Any] = spec.dtype
        first = self[np.zeros(1, np.intp)]
        self.shape: tuple[int, ...] = (len(files), *first.shape[1:])

    def __getitem__(self, indices: NDArray[np.intp]) -> AnyArray:
        images = [self._read(self._files[index]) for index in indices]
        if len({array.shape for array in images}) > 1:
            raise RecipeError(
                f"{self._files[0].parent}: pictures differ in size",
                hint="set one size for all images, such as 224,224",
            )
        return np.stack(images)

    def _read(self, file: Path) -> AnyArray:
        from PIL import Image

        try:
            with Image.open(file) as opened:
                picture = opened.convert("L" if self._gray else "RGB")
        except (OSError, ValueError, SyntaxError) as error:  # a broken PNG is a SyntaxError
            raise RecipeError(
                f"{file}: not a picture that can be read: {error}", hint="remove it, or convert it"
            ) from None
        return preprocess(picture, self._recipe, self.dtype, size=self._size, channels_last=self._last)


def preprocess(
    picture: Any,
    recipe: Preprocessing,
    dtype: np.dtype[Any],
    *,
    size: Sequence[int | str] = ("?", "?"),
    channels_last: bool = False,
) -> AnyArray:
    """Input of shape (channels, height, width), or channels last, from a Pillow image of mode RGB or L.

    `size` is the height and width that the model takes, with names for what it leaves open.
    """
    from PIL.Image import Resampling

    if isinstance(recipe.crop, float):
        sides = (max(1, round(side * recipe.crop)) for side in (picture.height, picture.width))
        picture = _centre(picture, *sides)
    resize, crop = _sides(recipe, *size)
    if resize is not None:
        picture = picture.resize(_resized(resize, picture.width, picture.height), Resampling.BILINEAR)
    if crop is not None:
        picture = _centre(picture, *crop)
    # in double precision, so that an input does not depend on how its scale was written
    pixels = np.asarray(picture, np.float64).reshape(picture.height, picture.width, -1)
    if recipe.channels == "bgr":
        pixels = pixels[..., ::-1]
    scale = recipe.scale if recipe.scale is not None else 1 / 255 if dtype.kind == "f" else 1.0
    values: AnyArray = (pixels * scale - np.asarray(recipe.mean)) / np.asarray(recipe.std)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return (values if channels_last else values.transpose(2, 0, 1)).astype(dtype, order="C")


def _sides(
    recipe: Preprocessing, height: int | str, width: int | str
) -> tuple[tuple[int, ...] | None, tuple[int, int] | None]:
    """What to resize to, (shorter side,) or (height, width), and what to crop then."""
    wanted = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if isinstance(recipe.crop, tuple):
        return recipe.size, (recipe.crop[0], recipe.crop[-1])
    if recipe.size is None:
        return wanted, None
    return recipe.size, wanted if len(recipe.size) == 1 else None


def _resized(size: tuple[int, ...], width: int, height: int) -> tuple[int, int]:
    """Width and height of a resized picture."""
    if len(size) == 2:
        return size[1], size[0]
    shorter = min(width, height)
    return max(1, round(width * size[0] / shorter)), max(1, round(height * size[0] / shorter))


def _centre(picture: Any, height: int, width: int) -> Any:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    if left < 0 or top < 0:
        raise RecipeError(
            f"crop {height},{width}: the picture has only {picture.height},{picture.width}",
            hint="resize to more",
        )
    return picture.crop((left, top, left + width, top + height))


def _classes(names: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels from the sub-folders of the files, and what they mean."""
    if not all("/" in name for name in names):
        return None, ()
    folders = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        return None, ()
    if all(name.isdecimal() for name in classes):
        labels = np.array([int(name) for name in folders], np.int64)
        return labels, ("labels: the numbers of the sub-folders",)
    numbers = {name: index for index, name in enumerate(classes)}
    shown = [f"{name} = {number}" for name, number in numbers.items()]
    if len(shown) > SHOWN_CLASSES:
        shown = [*shown[: SHOWN_CLASSES - 1], "...", shown[-1]]
    labels = np.array([numbers[name] for name in folders], np.int64)
    return labels, (f"labels: the sub-folders in order, {', '.join(shown)}",)

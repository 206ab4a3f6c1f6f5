"""Folders of pictures, preprocessed as the user says (Pillow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import Table, fits, misfit
from onnx_dfmpc.inputs.specs import InputSpec, channel_axis, listing
from onnx_dfmpc.inputs.stored import Anything
from onnx_dfmpc.recipe import Preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SHOWN_CLASSES = 3


class _Pictures:
    """Preprocessed pictures, read when they are asked for."""

    def __init__(self, files: Sequence[Path], spec: InputSpec, recipe: Preprocessing) -> None:
        self._files, self._recipe = files, recipe
        axis = channel_axis(spec.shape)
        self._last = recipe.layout == "nhwc" or (recipe.layout == "auto" and axis == 3)
        channels = spec.shape[3 if self._last else 1]
        self._mode = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}.get(
            recipe.channels, "L" if channels == 1 else "RGB"
        )
        height, width = spec.shape[1:3] if self._last else spec.shape[2:]
        self._size, self._crop = _sides(recipe, height, width)
        self._scale = recipe.scale if recipe.scale is not None else 1 / 255 if spec.dtype.kind == "f" else 1.0
        self.dtype: np.dtype[Any] = spec.dtype
        first = self[np.zeros(1, np.intp)]
        self.shape: tuple[int, ...] = (len(files), *first.shape[1:])

    def __getitem__(self, indices: NDArray[np.intp]) -> Anything:
        made = [self._picture(self._files[index]) for index in indices]
        if len({array.shape for array in made}) > 1:
            raise RecipeError(
                f"{self._files[0].parent}: pictures differ in size",
                hint="give them one, such as --image-size 224,224",
            )
        return np.stack(made)

    def _picture(self, file: Path) -> Anything:
        from PIL import Image

        try:
            with Image.open(file) as opened:
                picture = opened.convert(self._mode)
        except (OSError, ValueError, SyntaxError) as error:
            raise RecipeError(
                f"{file}: not a picture that can be read: {error}", hint="remove it, or convert it"
            ) from None
        if isinstance(self._recipe.crop, float):
            picture = _centre(
                picture,
                *(max(1, round(side * self._recipe.crop)) for side in (picture.height, picture.width)),
            )
        if self._size is not None:
            picture = picture.resize(
                _resized(self._size, picture.width, picture.height), Image.Resampling.BILINEAR
            )
        if self._crop is not None:
            picture = _centre(picture, *self._crop)
        return self._values(np.asarray(picture, np.float32))

    def _values(self, pixels: NDArray[np.float32]) -> Anything:
        recipe = self._recipe
        values: Anything = pixels.reshape(*pixels.shape[:2], -1)
        values = values[..., ::-1] if recipe.channels == "bgr" else values
        values = (values * np.float32(self._scale) - np.asarray(recipe.mean, np.float32)) / np.asarray(
            recipe.std, np.float32
        )
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return (values if self._last else values.transpose(2, 0, 1)).astype(self.dtype)


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


def image_table(
    specs: Sequence[InputSpec], folder: Path, files: Sequence[Path], recipe: Preprocessing
) -> Table:
    """Table of a folder of pictures.

    Where all of them are in sub-folders, these are the classes: by number, if their names are numbers, else
    in the order of their names.

    Parameters
    ----------
    specs : sequence of InputSpec
        One input, of four dimensions.
    folder : Path
    files : sequence of Path
    recipe : Preprocessing

    Raises
    ------
    RecipeError
        Without Pillow, a picture that cannot be read, or a model that does not take pictures.
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
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    labels, notes = _classes(names)
    rows, source = _Pictures(files, spec, recipe), str(folder if len(files) > 1 else files[0])
    if not fits(rows.shape, spec, batched=True):
        hint = "--image-size, --image-crop and --image-layout say what pictures become"
        raise misfit(rows.shape, rows.dtype, spec, source, hint, batched=True)
    return Table({spec.name: rows}, {}, source, labels, names, notes)


def _classes(names: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels from the sub-folders, and what they mean."""
    if not all("/" in name for name in names):
        return None, ()
    folders = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        return None, ()
    if all(name.isdecimal() for name in classes):
        return np.array([int(name) for name in folders], np.int64), (
            "labels: the numbers of the sub-folders",
        )
    known = {name: index for index, name in enumerate(classes)}
    shown = [f"{name} = {known[name]}" for name in classes]
    if len(shown) > SHOWN_CLASSES:
        shown = [*shown[: SHOWN_CLASSES - 1], "...", shown[-1]]
    return np.array([known[name] for name in folders], np.int64), (
        f"labels: the sub-folders in order, {', '.join(shown)}",
    )

"""How pictures become inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from onnx_dfmpc.recipe import checks
from onnx_dfmpc.recipe.checks import choice_knob, knob


def _sides(value: Any) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(value)
    checks.require(len(found) in (1, 2))
    return tuple(checks.integer(1)(side) for side in found)


def _crop(value: Any) -> tuple[int, ...] | float:
    found = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not isinstance(found, float):
        return _sides(found)
    checks.require(0 < found < 1)
    return found


def _per_channel(value: Any) -> tuple[float, ...]:
    found = (value,) if isinstance(value, int | float) else tuple(value)
    checks.require(len(found) in (1, 3))
    return tuple(checks.number()(item) for item in found)


def _deviations(value: Any) -> tuple[float, ...]:
    found = _per_channel(value)
    checks.require(all(item > 0 for item in found))
    return found


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become inputs: resized and cropped, then ``(pixel * scale - mean) / std``, with pixels
    from 0 to 255.

    Attributes
    ----------
    size : (int,) or (int, int) or None
        Resize (bilinear) so that the shorter side has so many pixels, or to height and width. None resizes to
        what the model takes, or, with pixels to `crop`, not at all.
    crop : (int,) or (int, int) or float or None
        Cut a square, or height and width, from the middle of the resized picture; or, below 1, keep so much
        of each side and resize then. None cuts what the model takes, where `size` gives only the shorter
        side.
    mean, std : tuple of 1 or 3 floats
        In the order of the channels that the model sees.
    scale : float or None
        None is 1/255, and 1 for a model that takes integers.
    layout : {"auto", "nchw", "nhwc"}
        "auto" is what the shape of the input says.
    channels : {"auto", "rgb", "bgr", "gray"}
        "auto" is gray for one channel, else RGB.

    Examples
    --------
    >>> Preprocessing(size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).crop
    (224,)
    """

    size: tuple[int, ...] | None = knob(None, "one or two numbers of pixels", _sides)
    crop: tuple[int, ...] | float | None = knob(
        None, "one or two numbers of pixels, or a share between 0 and 1", _crop
    )
    mean: tuple[float, ...] = knob((0.0,), "one number, or one for each of three channels", _per_channel)
    std: tuple[float, ...] = knob(
        (1.0,), "one positive number, or one for each of three channels", _deviations
    )
    scale: float | None = knob(None, "a number", checks.number())
    layout: Literal["auto", "nchw", "nhwc"] = choice_knob("auto", "auto", "nchw", "nhwc")
    channels: Literal["auto", "rgb", "bgr", "gray"] = choice_knob("auto", "auto", "rgb", "bgr", "gray")

    def __post_init__(self) -> None:
        checks.check_knobs(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what has its default is left out."""
        usual = Preprocessing()
        changed = {
            key.name: getattr(self, key.name)
            for key in fields(self)
            if getattr(self, key.name) != getattr(usual, key.name)
        }
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}


def preprocessing_from(value: Preprocessing | Mapping[str, Any]) -> Preprocessing:
    """Preprocessing from plain data.

    Raises
    ------
    RecipeError
        An unknown key, or a bad value.
    """
    if isinstance(value, Preprocessing):
        return value
    checks.require(isinstance(value, Mapping))
    checks.require_known(value, [key.name for key in fields(Preprocessing)])
    return Preprocessing(**value)

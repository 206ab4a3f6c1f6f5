"""What a model takes: name, dtype and shape of its inputs, and how many samples at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import nearest

MAX_BATCH = 64
MAX_BATCH_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of a model input; a dimension that is not fixed is its name, or "?"."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {shape_text(self.shape)}"


def shape_text(shape: Sequence[int | str]) -> str:
    """Shape as Python writes it, without quotes."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def listing(specs: Sequence[InputSpec]) -> str:
    """All inputs in one line, for a hint."""
    return "the model's inputs are " + "; ".join(map(str, specs))


def fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """Batch size the model insists on, None where it takes any."""
    first = next((spec.shape[0] for spec in specs if spec.shape), 1)
    return first if isinstance(first, int) else None


def is_batched(spec: InputSpec, fixed: int | None) -> bool:
    """Whether the first dimension of an input counts samples."""
    if not spec.shape:
        return False
    return not isinstance(spec.shape[0], int) if fixed is None else spec.shape[0] == fixed


def batch_size(fixed: int | None, elements: int, wanted: int | None = None) -> int:
    """Samples per run: what the model insists on, or what the user wants, or as many as make a batch of
    moderate size.

    Raises
    ------
    RecipeError
        If the user and the model want different ones.
    """
    if fixed is not None and wanted not in (None, fixed):
        raise RecipeError(
            f"batch size {wanted}: the model takes {fixed} at a time", hint=f"leave it out, or use {fixed}"
        )
    return fixed or wanted or max(1, min(MAX_BATCH, MAX_BATCH_ELEMENTS // max(elements, 1)))


def channel_axis(shape: Sequence[int | str]) -> int | None:
    """Axis with the colours of an image (N, C, H, W) or (N, H, W, C), None for anything else."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in (1, 3)), None)


def with_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> list[InputSpec]:
    """Inputs whose open dimensions are set by the user.

    Parameters
    ----------
    specs : sequence of InputSpec
    shapes : mapping
        Whole shapes by input name, the batch included.

    Raises
    ------
    RecipeError
        A name that is no input, or a shape that contradicts the model's.

    Examples
    --------
    >>> spec = InputSpec("x", np.dtype("float32"), (1, 3, "h", "w"))
    >>> str(with_shapes([spec], {"x": (1, 3, 224, 224)})[0])
    'x: float32 (1, 3, 224, 224)'
    """
    names = [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise RecipeError(
                f"shape: no input is named {name!r}", hint=nearest(name, names) or listing(specs)
            )
    return [_with_shape(spec, tuple(shapes[spec.name])) if spec.name in shapes else spec for spec in specs]


def _with_shape(spec: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    sizes = zip(spec.shape, shape, strict=False)
    fits = len(shape) == len(spec.shape) and all(
        not isinstance(want, int) or want == have for want, have in sizes
    )
    if not fits:
        raise RecipeError(
            f"shape {shape_text(shape)} does not fit the input {spec}",
            hint="only dimensions that have no size can be set",
        )
    return replace(spec, shape=shape)

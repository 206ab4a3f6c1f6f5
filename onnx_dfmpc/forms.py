"""Which storage forms make sense: one check, for recipes and for the graph alike."""

from __future__ import annotations

from typing import get_args, get_type_hints

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.spec import StorageFormat

NATIVE = StorageFormat()
"""DequantizeLinear straight on the narrowest element type."""


def check_format(form: StorageFormat) -> None:
    """Refuse words that mean nothing, and words that contradict each other.

    Parameters
    ----------
    form : StorageFormat

    Raises
    ------
    RecipeError
        With a hint at what to leave out.

    Examples
    --------
    >>> check_format(StorageFormat("compact", "int8"))
    >>> check_format(StorageFormat(unpack="float", weight_format="qdq"))
    Traceback (most recent call last):
    ...
    onnx_dfmpc.errors.RecipeError: weight_format = 'qdq' keeps float weights in the file: unpack = 'float' has
    nothing to unpack
    """
    for key, kind in get_type_hints(StorageFormat).items():
        value, allowed = getattr(form, key), get_args(kind)
        if value not in allowed:
            raise RecipeError(f"{key} = {value!r}: expected one of {', '.join(allowed)}")
    if form.weight_format == "qdq" and form.unpack != "none":
        raise RecipeError(
            f"weight_format = 'qdq' keeps float weights in the file: unpack = {form.unpack!r} has nothing to unpack",
            hint="leave one of them out",
        )
    if form.weight_format == "qdq" and form.storage == "compact":
        raise RecipeError(
            "weight_format = 'qdq' keeps float weights in the file: storage = 'compact' has nothing to pack",
            hint="leave one of them out, or choose storage = 'native' or 'portable'",
        )

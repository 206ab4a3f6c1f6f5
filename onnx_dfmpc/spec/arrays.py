"""Types and small functions that every room uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Value = NDArray[Any]
"""Value of a tensor, of whatever type."""

Feeds = Sequence[Mapping[str, Value]]
"""Inputs by name, of every batch."""

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: ``done`` of ``total`` parts of a stage are ready."""


def sqnr_db(noise: float) -> float:
    """Signal-to-noise ratio in dB of a noise power relative to the signal; infinite without noise."""
    return -10 * math.log10(noise) if noise > 0 else math.inf


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of a model input; a dimension that is not fixed is its name, or "?".

    ``rows`` is the length of the shortest table that integers look something up in (token ids, for one), None
    where they are no indices.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    rows: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {shape_text(self.shape)}"


def shape_text(shape: Sequence[int | str]) -> str:
    """Shape as Python writes it, without quotes."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"

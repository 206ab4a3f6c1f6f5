"""How a model is to be stored: bits and form, what every width would cost, what other budgets would buy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.spec.arrays import Array
from onnx_dfmpc.spec.matched import Layer, Skipped
from onnx_dfmpc.spec.runtimes import ANY, RUNTIMES, Runtime
from onnx_dfmpc.spec.vectors import MOST_INTEGER_BITS, VECTORS

Role = Literal["low", "high", "edge", "inner", "plain"]
Grid = Literal["ternary", "symmetric", "asymmetric", "vector"]
Rounding = str
"""A name in `rounding.ROUNDINGS`."""

Unpack = Literal["none", "int8", "float"]
YesNo = Literal["no", "yes"]

ACTIVATION_BITS = 8
"""What kernels of ONNX Runtime have for activations."""

STORAGE_FORMATS: dict[str, str] = {
    "vector": "indices of rows of a table, each the levels of 2 to 5 weights: for every runtime",
    "table": "codes as digits in bytes, unpacked by a table: for every runtime",
    "native": "codes in the narrowest ONNX type that holds them: for ONNX Runtime 1.24 and newer",
}
"""Storage formats that a recipe may name, in words; `storage.layouts.STORAGES` has what they do."""


REDUCED_BITS = 7
"""Bits of weights with a reduced range."""


def stored_bits(bits: float, grid: Grid) -> float:
    """Bits that codes of a grid need: around zero, 2 bits have three levels."""
    return 1.58 if bits == 2 and grid in ("symmetric", "ternary") else bits


@dataclass(frozen=True)
class StorageFormat:
    """How codes are put into the file. RecipeError where a choice is unknown.

    Attributes
    ----------
    storage : str
        Name of a storage format: "vector", "table", "native", or another that
        `onnx_dfmpc.storage.layouts.STORAGES` has.
    unpack : {"none", "int8", "float"}
        What ONNX Runtime makes of the codes when it loads the model.
    fold_batch_norm : {"no", "yes"}
        Whether batch norm goes into scales and biases, wherever it can.
    activations : {None, 8}
        Bits of activations; None leaves them float.
    slim : bool
        Whether shape arithmetic is folded, names are shortened, and what exporters leave goes.
    reduce_range : bool
        Whether codes stay within 7 bits, for integer kernels that saturate (see `most_bits`).
    target : str or None
        Name of the runtime that has to read the file, of `runtimes.RUNTIMES`; None for as many as can.
    """

    storage: str = "table"
    unpack: Unpack = "none"
    fold_batch_norm: YesNo = "no"
    activations: int | None = None
    slim: bool = False
    reduce_range: bool = False
    target: str | None = None

    def __post_init__(self) -> None:
        for key, kind in (("storage", str), ("unpack", Unpack), ("fold_batch_norm", YesNo)):
            value, allowed = getattr(self, key), get_args(kind)
            if not isinstance(value, str) or (allowed and value not in allowed):
                expected = f"one of {', '.join(allowed)}" if allowed else "the name of a storage format"
                raise RecipeError(f"{key} = {value!r}: expected {expected}")
        for key in ("slim", "reduce_range"):
            if not isinstance(getattr(self, key), bool):
                raise RecipeError(f"{key} = {getattr(self, key)!r}: expected true or false")
        if self.activations not in (None, ACTIVATION_BITS):
            raise RecipeError(f"activations = {self.activations!r}: expected {ACTIVATION_BITS} or nothing")
        if self.target is not None and self.target not in RUNTIMES:
            raise RecipeError(f"target = {self.target!r}: expected one of {', '.join(RUNTIMES)}")

    @property
    def runtime(self) -> Runtime:
        """The runtime that has to read the file."""
        return ANY if self.target is None else RUNTIMES[self.target]

    def grid(self, wanted: Grid, bits: float, layer: Layer) -> Grid:
        """Grid of a layer's weight, in place of an asymmetric one: vectors where the format has them and they
        suit the weight; integer kernels want no zero point, and the most bits leave no room to subtract one.
        """
        if wanted not in ("asymmetric", "vector"):
            return wanted
        most = MOST_INTEGER_BITS if self.reduce_range else max(VECTORS)
        if self.storage == "vector" and bits in layer.vectors and bits <= most:
            return "vector"
        integer = self.activations is not None and bits >= self.most_bits
        return "symmetric" if integer else "asymmetric"

    @property
    def most_bits(self) -> int:
        """Bits that a weight may have. Without VNNI, AVX2 adds two products of UINT8 and INT8 in 16 bits, and
        saturates: 2 x 255 x 64 fits, 2 x 255 x 127 does not.
        """
        return REDUCED_BITS if self.reduce_range else 8


DEFAULT = StorageFormat()
"""Scalar codes, unpacked by tables."""


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is to be stored.

    Attributes
    ----------
    reason : str
        Why it got its bits, in words.
    noise : float or None
        Predicted noise power at the network's output, relative to the signal there, when this layer alone is
        quantized.
    bytes : int or None
        Predicted bytes on disk of its weight: codes, scales, zero points, nodes.
    """

    name: str
    bits: float
    role: Role
    grid: Grid
    rounding: Rounding
    per_channel: bool
    reason: str = ""
    noise: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class QuantPlan:
    """Bits per layer for one model: plain data, JSON in and out (see `save_plan`). ``plan["name"]`` is the
    plan of a layer.

    Attributes
    ----------
    model_sha256 : str
        Of the model that the plan is for.
    layers : tuple of LayerPlan
        In topological order.
    plain : tuple of LayerPlan
        Weights that are rounded to nearest, whatever the bits of the layers.
    skipped : tuple of Skipped
        Every weighted node that stays float, and why.
    model_name : str
        Name of the model's file, for the reader.
    form : StorageFormat
        How codes are put into the file.
    recipe : mapping
        Plain data of the recipe that it was made with.
    predicted_bytes : int or None
        Bytes of the whole file.
    predicted_sqnr_db : float or None
        Of the network's worst output.
    predicted_low_db, predicted_high_db : float or None
        Interval of that: what the plausible kinds of inputs span. None where the model was not run on them.
    source : str
        Where the predicted noise comes from, as in `CostTable`; "" where there is none.
    """

    model_sha256: str
    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...] = ()
    model_name: str = ""
    form: StorageFormat = DEFAULT
    recipe: Mapping[str, Any] = field(default_factory=dict)
    predicted_bytes: int | None = None
    predicted_sqnr_db: float | None = None
    predicted_low_db: float | None = None
    predicted_high_db: float | None = None
    source: str = ""
    plain: tuple[LayerPlan, ...] = ()

    @property
    def weights(self) -> tuple[LayerPlan, ...]:
        """Layers, then the weights that are rounded to nearest."""
        return (*self.layers, *self.plain)

    @property
    def bits(self) -> dict[str, float]:
        """Bits of everything that is quantized, by name."""
        return {one.name: one.bits for one in self.weights}

    def __getitem__(self, name: str) -> LayerPlan:
        for layer in self.weights:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def without(self, skipped: Skipped) -> QuantPlan:
        """The same with one layer or weight float, and so of another size."""
        return replace(
            self,
            layers=tuple(one for one in self.layers if one.name != skipped.name),
            plain=tuple(one for one in self.plain if one.name != skipped.name),
            skipped=(*self.skipped, skipped),
            predicted_bytes=None,
            predicted_sqnr_db=None,
        )


@dataclass(frozen=True, eq=False)
class CostTable:
    """What every layer costs at every width, in predicted noise and in bytes.

    Attributes
    ----------
    layers : tuple of str
        Names, in topological order.
    widths : tuple of float
        Bits, ascending.
    noise : float64 array, shape (layers, widths)
        Predicted noise power at the network's output, relative to the signal there, when this layer alone has
        that width. Noise of several layers adds up.
    sizes : int64 array, shape (layers, widths)
        Bytes on disk of the layer's weight: codes, scales, zero points, nodes.
    base : int
        Bytes of everything else in the file, whatever the widths.
    source : str
        Where the noise comes from: "bn", "probe" or "measured".
    shared : int64 array, shape (widths,), or None for zeros
        Bytes of the tables that a width brings with it, however many layers have it.
    spare : int
        Bytes that are counted more than once when every layer has its smallest size.
    """

    layers: tuple[str, ...]
    widths: tuple[float, ...]
    noise: Array
    sizes: NDArray[np.int64]
    base: int
    source: str
    shared: NDArray[np.int64] | None = None
    spare: int = 0

    @property
    def brought(self) -> NDArray[np.int64]:
        """``shared``, zeros where there is nothing."""
        return np.zeros(len(self.widths), np.int64) if self.shared is None else self.shared


@dataclass(frozen=True)
class SweepPoint:
    """What one budget buys.

    Attributes
    ----------
    budget : int
        Bytes that were allowed.
    bytes : int or None
        Predicted bytes of the whole file; None where the budget cannot be met.
    nominal_bits : float or None
        Mean bits per quantized weight.
    predicted_sqnr_db : float or None
        Of the network's output.
    measured_sqnr_db, top1 : float or None
        Of the output and as a fraction, where it was quantized and measured.
    """

    budget: int
    bytes: int | None = None
    nominal_bits: float | None = None
    predicted_sqnr_db: float | None = None
    measured_sqnr_db: float | None = None
    top1: float | None = None

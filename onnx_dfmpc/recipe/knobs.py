"""Every knob of a quantization run in one frozen dataclass.

A recipe is checked when it is made: an unknown key or a bad value is a `RecipeError` that names the key, the
value and what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import checks
from onnx_dfmpc.recipe.checks import bits_knob, choice_knob, knob
from onnx_dfmpc.recipe.files import read_recipe, write_recipe
from onnx_dfmpc.recipe.gates import GATE_KEYS, Gates, output_gates
from onnx_dfmpc.recipe.images import Preprocessing, preprocessing_from
from onnx_dfmpc.recipe.rules import Rule, rule_list, shorthand
from onnx_dfmpc.spec import StorageFormat

Kind = Literal["pairs", "bits", "target_size", "target_bits", "target_sqnr_db", "preset"]

KINDS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("low_bits", "high_bits"),
    "bits": ("bits",),
    "target_size": ("target_size",),
    "target_bits": ("target_bits",),
    "target_sqnr_db": ("target_sqnr_db",),
    "preset": ("preset",),
}
"""The kinds of bits, of which a recipe has exactly one, and the knobs of each."""

DEFAULT_BITS: Mapping[str, Any] = {"target_bits": 4.0}
"""What a recipe without any kind of bits gets; the paper's method gets pairs."""

PAIR = {"low_bits": 3, "high_bits": 6}
"""Bits of the other layer of a pair, where one is given alone."""

EDGE_BITS = 8
"""Bits of the first and the last layer, where nothing decides for them."""

PRESETS = {"smallest": 15.0, "balanced": 20.0, "lossless": 30.0}
"""Predicted output SQNR of each preset, in dB."""

BITS_HINT = "low_bits and high_bits, bits, target_size, target_bits, target_sqnr_db, or preset"


def _flag_knob(default: bool) -> Any:
    return knob(default, "true or false", checks.flag)


def _path_knob() -> Any:
    return knob(None, "the path of a file", checks.path)


def _names_knob() -> Any:
    return knob((), "a list of node names", checks.names)


@dataclass(frozen=True)
class Recipe:
    """What to do to a model. Every default is the recommended value.

    It has exactly one kind of bits: pairs, `bits`, a target, or a preset; where none is given, the default
    kind.

    Attributes
    ----------
    low_bits, high_bits : int or None
        Bits of the two layers of each pair, 2 to 8. Where one is given alone, the other is 3 or 6.
    bits : int or None
        The same bits for every inner layer.
    target_size : int or None
        Bytes of the file, never more (weights in external data take a few more). Text such as "300KiB" or
        "1.5MB" is accepted (see `parse_size`).
    target_bits : float or None
        Mean nominal bits over all quantized weights, never more. What they take on disk is a matter of
        `storage`: natively 3 bits take as much as 4, and 5 to 7 as much as 8.
    target_sqnr_db : float or None
        Predicted output SQNR in dB, at least.
    preset : {"smallest", "balanced", "lossless"} or None
        A predicted output SQNR by name (`PRESETS`).
    min_bits, max_bits : int
        Bounds on the bits that a target or a preset gives a layer.
    low_position : {"auto", "first", "second"}
        Which layer of a pair takes the low bits.
    first_last_bits : int or None
        Bits of the first and the last layer of the network. None is 8 in pairs and where all others have the
        same bits; a target decides for them as for any layer.
    rules : tuple of Rule
        Bits, bounds and exclusion for single layers; the last match wins. Mappings are accepted too.
    set : tuple of (str, int)
        Regular expressions on layer names and the bits they give: rules for short, behind the others. A
        mapping is accepted too.
    nodes_to_exclude, nodes_to_quantize : tuple of str
        Node names that stay float; the only nodes to quantize (empty: all).
    cost : {"auto", "bn", "probe", "measured"}
        Where the predicted noise of a layer comes from.
    method : {"dfmpc", "paper"}
        The default method, or the paper's as written: per tensor, ternary or symmetric.
    lambda1, lambda2 : float
        Weights of the bias term and of the size of c in L(c); at least 0.
    absorb : {"producer", "consumer"}
        Which side of the chain takes the coefficients.
    rounding : {"nearest", "squant", "gptq"} or None
        How weights are rounded; None is the method's own.
    compensate, bias_correction : bool
        Switches for the coefficients c and for the re-estimated batch-norm mean.
    statistics : {"auto", "analytic", "probe", "calibration"}
        Where the mean and covariance of a layer's input come from.
    calibration_data : str or None
        Path of real inputs for ``statistics="calibration"``, of any kind that `data` takes.
    storage : {"auto", "native", "portable", "compact"}
        Element types of the codes, see `StorageFormat`. "auto" is compact where a target or a preset decides,
        since there 3, 5, 6 and 7 bits are worth having only if they take fewer bytes than 4 and 8; else
        native.
    unpack : str
        What ONNX Runtime unpacks when it loads the weights; see `StorageFormat`.
    fold_batch_norm : {"auto", "no", "yes"}
        Whether batch norm goes into scales and biases, which is exact and saves its parameters and nodes.
        "auto" is yes where a target or a preset decides, since bytes count there; else no, and the graph
        stays as it was.
    data, labels : str or None
        Paths of validation inputs (see `inputs.Feeding`) and labels; None validates on synthetic inputs.
    images : Preprocessing
        How pictures become inputs; a mapping is accepted too.
    shapes : tuple of (str, tuple of int)
        Inputs with open dimensions, and their shapes. A mapping is accepted too.
    batch_size : int or None
        Samples per run, where the model leaves that open.
    providers : tuple of str
        Execution providers of ONNX Runtime for validation; empty is the CPU's.
    input_range : (float, float) or None
        Range of synthetic inputs, such as (0, 255).
    samples : int or None
        Number of validation samples; None takes all of `data`, or a default number of synthetic ones.
    seed : int
        Seed of everything random.
    min_cosine, min_sqnr_db, max_top1_drop, min_top1_agreement : float or None
        Gates on the validation, for the worst output; shares are fractions (0.01 is one percentage point).
    output_gates : tuple of (str, str, float)
        Output, gate and limit. A mapping of outputs to mappings is accepted too.
    per_layer : bool
        Whether to measure what every layer alone does to the outputs.
    latency : bool
        Whether to measure inference.

    Raises
    ------
    RecipeError
        A value that is not allowed, or values that exclude each other.

    Examples
    --------
    >>> recipe = Recipe(low_bits=2)
    >>> recipe.low_bits, recipe.high_bits
    (2, 6)
    >>> Recipe(target_size="300KiB").target_size
    307200
    """

    low_bits: int | None = bits_knob(None)
    high_bits: int | None = bits_knob(None)
    bits: int | None = bits_knob(None)
    target_size: int | None = knob(None, "bytes, 1 or more", checks.size)
    target_bits: float | None = knob(None, "a number from 2 to 8", checks.number(2, 8))
    target_sqnr_db: float | None = knob(None, "a number of decibels", checks.number())
    preset: Literal["smallest", "balanced", "lossless"] | None = choice_knob(None, *PRESETS)
    min_bits: int = bits_knob(2)
    max_bits: int = bits_knob(8)
    low_position: Literal["auto", "first", "second"] = choice_knob("auto", "auto", "first", "second")
    first_last_bits: int | None = bits_knob(None)
    rules: tuple[Rule, ...] = knob((), "a list of rules, each with node, regex or op_type", rule_list)
    set: tuple[tuple[str, int], ...] = knob((), "regular expressions with bits from 2 to 8", shorthand)
    nodes_to_exclude: tuple[str, ...] = _names_knob()
    nodes_to_quantize: tuple[str, ...] = _names_knob()
    cost: Literal["auto", "bn", "probe", "measured"] = choice_knob("auto", "auto", "bn", "probe", "measured")
    method: Literal["dfmpc", "paper"] = choice_knob("dfmpc", "dfmpc", "paper")
    lambda1: float = knob(0.5, "a number, 0 or more", checks.number(0))
    lambda2: float = knob(0.0, "a number, 0 or more", checks.number(0))
    absorb: Literal["producer", "consumer"] = choice_knob("producer", "producer", "consumer")
    rounding: Literal["nearest", "squant", "gptq"] | None = choice_knob(None, "nearest", "squant", "gptq")
    compensate: bool = _flag_knob(True)
    bias_correction: bool = _flag_knob(True)
    statistics: Literal["auto", "analytic", "probe", "calibration"] = choice_knob(
        "auto", "auto", "analytic", "probe", "calibration"
    )
    calibration_data: str | None = _path_knob()
    storage: Literal["auto", "native", "portable", "compact"] = choice_knob(
        "auto", "auto", "native", "portable", "compact"
    )
    unpack: Literal["none", "int8", "float"] = choice_knob("none", "none", "int8", "float")
    fold_batch_norm: Literal["auto", "no", "yes"] = choice_knob("auto", "auto", "no", "yes")
    data: str | None = _path_knob()
    labels: str | None = _path_knob()
    images: Preprocessing = knob(Preprocessing(), "how pictures become inputs", preprocessing_from)
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = knob((), "shapes by input name", checks.shapes)
    batch_size: int | None = knob(None, "an integer, 1 or more", checks.integer(1))
    providers: tuple[str, ...] = knob((), "a list of execution providers", checks.names)
    input_range: tuple[float, float] | None = knob(
        None, "two numbers, the smaller one first", checks.interval
    )
    samples: int | None = knob(None, "an integer, 1 or more", checks.integer(1))
    seed: int = knob(0, "an integer, 0 or more", checks.integer(0))
    min_cosine: float | None = knob(None, "a number from -1 to 1", checks.number(-1, 1))
    min_sqnr_db: float | None = knob(None, "a number of decibels", checks.number())
    max_top1_drop: float | None = knob(
        None, "a fraction from 0 to below 1 (0.01 is one percentage point)", checks.number(0, below=1)
    )
    min_top1_agreement: float | None = knob(
        None, "a fraction from 0 to 1 (0.98 is 98 %)", checks.number(0, 1)
    )
    output_gates: tuple[tuple[str, str, float], ...] = knob((), "limits by output and gate", output_gates)
    per_layer: bool = _flag_knob(False)
    latency: bool = _flag_knob(False)

    def __post_init__(self) -> None:
        checks.check_knobs(self)
        self._settle_bits()
        self._settle_statistics()
        self._settle_cost()

    def _given(self, kind: Kind) -> str:
        """The knobs of a kind of bits that are set, in words."""
        return " and ".join(
            f"{key} = {getattr(self, key)!r}" for key in KINDS[kind] if getattr(self, key) is not None
        )

    def _settle_bits(self) -> None:
        kinds = [given for kind in KINDS if (given := self._given(kind))]
        if len(kinds) > 1:
            raise RecipeError(
                f"{', '.join(kinds[:-1])} and {kinds[-1]} exclude each other",
                hint="give one kind of bits: " + BITS_HINT,
            )
        if self.min_bits > self.max_bits:
            raise RecipeError(f"min_bits = {self.min_bits} is more than max_bits = {self.max_bits}")
        if not kinds:
            bits = {key: min(max(value, self.min_bits), self.max_bits) for key, value in DEFAULT_BITS.items()}
            self._fill(bits if self.method == "dfmpc" else PAIR)
        if self.kind == "pairs":
            self._settle_pairs()
        for key in ("low_bits", "high_bits", "bits"):
            bits = getattr(self, key)
            if bits is not None and not self.min_bits <= bits <= self.max_bits:
                raise RecipeError(
                    f"{key} = {bits} is not between min_bits = {self.min_bits} and max_bits = {self.max_bits}"
                )

    def _settle_pairs(self) -> None:
        given = [key for key in PAIR if getattr(self, key) is not None]
        self._fill({key: bits for key, bits in PAIR.items() if key not in given})
        assert self.low_bits is not None
        assert self.high_bits is not None
        if self.low_bits > self.high_bits:
            raise RecipeError(
                f"low_bits = {self.low_bits} is more than high_bits = {self.high_bits}"
                + ("" if len(given) == 2 else " (one of them by default)"),
                hint="give both low_bits and high_bits, or bits for the same bits everywhere",
            )

    def _fill(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def _settle_statistics(self) -> None:
        if self.statistics == "calibration" and self.calibration_data is None:
            raise RecipeError(
                "statistics = 'calibration' needs calibration_data", hint="name an .npz with real inputs"
            )
        if self.calibration_data is not None and self.statistics not in ("auto", "calibration"):
            raise RecipeError(
                f"calibration_data is not used with statistics = {self.statistics!r}",
                hint="leave one of them out, or choose statistics = 'calibration'",
            )

    def _settle_cost(self) -> None:
        if self.cost == "measured" and self.calibration_data is None and self.data is None:
            raise RecipeError(
                "cost = 'measured' needs data", hint="name real inputs: calibration_data, or data"
            )

    @property
    def kind(self) -> Kind:
        """The kind of bits: a key of `KINDS`."""
        return next(kind for kind in KINDS if self._given(kind))

    @property
    def edge_bits(self) -> int | None:
        """Bits of the first and the last layer; None where a target decides."""
        fixed = EDGE_BITS if self.kind in ("pairs", "bits") else None
        return self.first_last_bits or fixed

    @property
    def wanted_sqnr_db(self) -> float | None:
        """Predicted output SQNR that is asked for, by number or by preset; None for the other kinds of bits."""
        return self.target_sqnr_db if self.preset is None else PRESETS[self.preset]

    @property
    def ordered_rules(self) -> tuple[Rule, ...]:
        """All rules in the order in which they apply, those of `set` last."""
        return (*self.rules, *(Rule(regex=pattern, bits=bits) for pattern, bits in self.set))

    @property
    def corrects(self) -> tuple[str, ...]:
        """Parameters of batch norm that change; where there are any, a layer without batch norm gets a new
        bias.
        """
        if self.method == "paper" and self.compensate:
            return "gamma", "beta", "mean", "var"
        return ("mean",) if self.bias_correction else ()

    @property
    def form(self) -> StorageFormat:
        """How codes are put into the file."""
        fixed = self.kind in ("pairs", "bits")
        storage, fold = self.storage, self.fold_batch_norm
        if storage == "auto":
            storage = "native" if fixed else "compact"
        if fold == "auto":
            fold = "no" if fixed else "yes"
        return StorageFormat(storage, self.unpack, fold)

    @property
    def gates(self) -> Gates:
        """The validation gates that are set, by name and output; None is the worst output."""
        found: dict[str, dict[str | None, float]] = {
            key: {None: getattr(self, key)} for key in GATE_KEYS if getattr(self, key) is not None
        }
        for output, key, limit in self.output_gates:
            found.setdefault(key, {})[output] = limit
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Recipe from plain data.

        Parameters
        ----------
        values : mapping
            Attribute names and values; what is missing takes its default.

        Returns
        -------
        Recipe

        Raises
        ------
        RecipeError
            An unknown key (with the nearest known one as a hint) or a bad value.

        Examples
        --------
        >>> Recipe.from_dict({"bits": 4}).bits
        4
        >>> Recipe.from_dict({"bit": 4})
        Traceback (most recent call last):
        ...
        onnx_dfmpc.errors.RecipeError: unknown key 'bit'
        """
        checks.require_known(values, [key.name for key in fields(cls)])
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Recipe from a TOML file, with sections or flat.

        Parameters
        ----------
        path : path
            The file. Paths inside it are relative to it.
        overrides : mapping, optional
            Values that win over the file's. Bits of one kind replace those of the others; ``rules`` and
            ``set`` are added behind the file's, so that they win.

        Returns
        -------
        Recipe

        Raises
        ------
        RecipeError
            A file that cannot be read, is not TOML, or holds an unknown section, an unknown key or a bad
            value.
        """
        overrides = dict(overrides or {})
        values = read_recipe(path, [key.name for key in fields(cls)])
        try:
            base = cls.from_dict(values)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}", hint=error.hint) from None
        kinds = [keys for keys in KINDS.values() if any(key in overrides for key in keys)]
        if kinds:
            replaced = {key for keys in KINDS.values() if keys not in kinds for key in keys}
            values = {key: value for key, value in values.items() if key not in replaced}
        for key in ("rules", "set"):
            values[key] = [*getattr(base, key), *overrides.pop(key, ())]
        values["images"] = base.images.to_dict() | overrides.pop("images", {})
        return cls.from_dict(values | overrides)

    def to_toml(self) -> str:
        """Text of a recipe file that `from_toml` turns back into an equal recipe; its paths are absolute."""
        return write_recipe(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON and TOML types only) that `from_dict` turns back into an equal recipe; keys
        without a value are left out.
        """
        plain: dict[str, Any] = {}
        for key in fields(self):
            value = getattr(self, key.name)
            if isinstance(value, Preprocessing):
                value = value.to_dict() or None
            elif isinstance(value, tuple):
                value = [_plain(item) for item in value]
            if value is not None:
                plain[key.name] = value
        return plain

    def to_text(self) -> str:
        """The kind of bits and everything that differs from the default, on one line."""
        usual = {key.name: key.default for key in fields(self)}
        changed = {key: value for key, value in self.to_dict().items() if getattr(self, key) != usual[key]}
        return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())


def _plain(item: Any) -> Any:
    return (
        item.to_dict()
        if isinstance(item, Rule)
        else [_plain(part) for part in item]
        if isinstance(item, tuple)
        else item
    )

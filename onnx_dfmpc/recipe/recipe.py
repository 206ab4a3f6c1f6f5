"""Everything a user can ask for: five groups of settings, and the `Recipe` that has them all.

A setting is one field: its default, the kind of value with its check, and its flag with help. So a new one is
in the constructor, in recipe files, in documents and on the command line at once. Values are checked when a
group is made: a bad one is a `RecipeError` that names the setting, the value and what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, replace
from typing import Any, Literal

from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.methods import METHODS
from onnx_dfmpc.recipe import toml, values
from onnx_dfmpc.recipe.rules import Rule, rule_list
from onnx_dfmpc.recipe.values import (
    BITS,
    PATH,
    Settings,
    Value,
    count,
    named,
    one_of,
    real,
    setting,
    settings,
)
from onnx_dfmpc.rounding.rounding import ROUNDINGS
from onnx_dfmpc.spec import StorageFormat
from onnx_dfmpc.spec.moments import STATISTICS
from onnx_dfmpc.spec.planned import ACTIVATION_BITS, STORAGE_FORMATS
from onnx_dfmpc.spec.runtimes import ANY, RUNTIMES, Runtime
from onnx_dfmpc.spec.widths import WIDTHS, WIDTHS_IN_WORDS

DataSource = str | os.PathLike[str] | Mapping[str, NDArray[Any]] | NDArray[Any] | Callable[[], Iterable[Any]]
LabelSource = str | os.PathLike[str] | NDArray[Any]
Kind = Literal["pairs", "bits", "target_size", "target_ratio", "target_bits", "target_sqnr_db", "preset"]

KINDS: Mapping[Kind, tuple[str, ...]] = {
    "pairs": ("low_bits", "high_bits"),
    "bits": ("bits",),
    "target_size": ("target_size",),
    "target_ratio": ("target_ratio",),
    "target_bits": ("target_bits",),
    "target_sqnr_db": ("target_sqnr_db",),
    "preset": ("preset",),
}
"""The kinds of bits, of which one is given, and the keywords of each; a preset becomes its target_sqnr_db."""

SIZES: tuple[Kind, ...] = ("target_size", "target_ratio")
"""Kinds that ask for bytes of the file, so that every one counts."""

DEFAULT_BITS: Mapping[str, Any] = {"target_bits": 4.0}
"""Without any kind of bits; the paper's method gets `PAIR` instead."""

MIN_BITS = 2
"""Fewest bits that a target gives a layer by itself. At 1.58 predictions are too good: allowed to use
them, in a tenth and a twelfth of its float bytes, ResNet-20 loses 0.5 and 0.8 dB.
"""

PAIR: Mapping[str, int] = {"low_bits": 3, "high_bits": 6}
"""Bits of the other layer of a pair, where one is given alone. The paper's pairs are 2/6 and 3/6."""

EDGE_BITS = 8
"""Bits of the first and the last layer where no target decides for them, as in the paper."""

PRESETS = {"smallest": 15.0, "balanced": 20.0, "lossless": 30.0}
"""Predicted output SQNR of each preset, in dB; docs/bits.md has what they give on real networks."""

FLAG = Value(values.flag, "true or false", action="flag")
DECIBELS = real("a number of decibels", metavar="DB")


@dataclass(frozen=True, kw_only=True)
class Bits(Settings):
    """One kind of bits, and what holds for single layers whatever the kind."""

    low_bits: float | None = setting(BITS, None, "--low-bits", "pairs: bits of one layer of each")
    high_bits: float | None = setting(BITS, None, "--high-bits", "pairs: bits of the other layer")
    bits: float | None = setting(
        BITS, None, "--bits", "uniform: the same for every inner layer: 1.58, 2, 2.58, 3, ... 8"
    )
    target_size: int | None = setting(
        Value(values.size, "bytes, 1 or more", "SIZE"),
        None, "--target-size", "largest size of the file, such as 300KiB or 1.5MB",
    )  # fmt: skip
    target_ratio: float | None = setting(
        real("a number above 1", above=1), None, "--target-ratio", "times smaller than the model, such as 8"
    )
    target_bits: float | None = setting(
        real("a number from 1.58 to 8", 1.58, 8), None, "--target-bits", "largest mean bits per weight"
    )
    target_sqnr_db: float | None = setting(DECIBELS, None, "--target-sqnr-db", "lowest predicted output SQNR")
    preset: InitVar[Literal["smallest", "balanced", "lossless"] | None] = setting(
        one_of(*PRESETS), None, "--preset",
        "a predicted output SQNR by name: " + ", ".join(f"{name} {db:g} dB" for name, db in PRESETS.items()),
    )  # fmt: skip
    min_bits: float = setting(BITS, MIN_BITS, "--min-bits", "fewest bits that a target gives a layer (2)")
    max_bits: float = setting(BITS, 8, "--max-bits", "most bits that a target gives a layer (8)")
    first_last_bits: float | None = setting(BITS, None)
    rules: tuple[Rule, ...] = setting(Value(rule_list, "a list of rules, with node, regex or op_type"), ())
    set: InitVar[Mapping[str, float] | Iterable[tuple[str, float]]] = setting(
        Value(
            values.pairs(values.regex, values.bits), f"regular expressions with bits: {WIDTHS_IN_WORDS}",
            "REGEX=BITS", values.key_value(values.whole_or_fraction), "append",
        ),
        (), "--set", "bits for layers by name; repeatable, the last match wins",
    )  # fmt: skip
    nodes_to_exclude: InitVar[Iterable[str]] = setting(
        Value(values.names, "a list of node names", "NAME", action="extend"),
        (), "--nodes-to-exclude", "nodes that stay float",
    )  # fmt: skip

    def __post_init__(self, *constructor_only: Any) -> None:
        super().__post_init__()  # in a recipe, the checks of all its groups
        keys = [settings(Bits)[name] for name in ("preset", "set", "nodes_to_exclude")]
        preset, by_regex, excluded = map(values.checked, keys, constructor_only)
        self._require_one_kind(preset)
        if preset is not None:
            self._fill({"target_sqnr_db": PRESETS[preset]})
        if self.kind == "pairs":
            self._complete_pair()
        for key in ("low_bits", "high_bits", "bits"):
            bits = getattr(self, key)
            if bits is not None and not self.least_bits <= bits <= self.max_bits:
                raise RecipeError(
                    f"{key} = {bits} is not between min_bits = {self.min_bits} and max_bits = {self.max_bits}"
                )
        rules = [Rule(regex=regex, bits=bits) for regex, bits in by_regex]
        rules += [Rule(node=node, exclude=True) for node in excluded]
        self._fill({"rules": (*self.rules, *rules)})

    def _require_one_kind(self, preset: str | None) -> None:
        """Refuse several kinds of bits, and fill in the default one where there is none."""
        given = {key: getattr(self, key) for keys in KINDS.values() for key in keys} | {"preset": preset}
        texts = [
            " and ".join(f"{key} = {given[key]!r}" for key in keys if given[key] is not None)
            for keys in KINDS.values()
        ]
        *others, last = list(filter(None, texts)) or [""]
        if others:
            raise RecipeError(
                f"{', '.join(others)} and {last} exclude each other",
                hint="give one kind of bits: low_bits and high_bits, bits, target_size, target_ratio, "
                "target_bits, target_sqnr_db, or preset",
            )
        if self.min_bits > self.max_bits:
            raise RecipeError(f"min_bits = {self.min_bits} is more than max_bits = {self.max_bits}")
        if not last:
            self._fill(self._default_bits())

    def _default_bits(self) -> Mapping[str, Any]:
        return {key: min(max(bits, self.min_bits), self.max_bits) for key, bits in DEFAULT_BITS.items()}

    def _complete_pair(self) -> None:
        missing = {key: bits for key, bits in PAIR.items() if getattr(self, key) is None}
        self._fill(missing)
        assert self.low_bits is not None
        assert self.high_bits is not None
        if self.low_bits > self.high_bits:
            raise RecipeError(
                f"low_bits = {self.low_bits} is more than high_bits = {self.high_bits}"
                + (" (one of them by default)" if missing else ""),
                hint="give both low_bits and high_bits, or bits for the same bits everywhere",
            )

    def _fill(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            object.__setattr__(self, key, value)

    @property
    def kind(self) -> Kind:
        """The kind of bits: a key of `KINDS`, never "preset"."""
        return next(
            kind for kind, keys in KINDS.items() if any(getattr(self, key) is not None for key in keys)
        )

    @property
    def most_bits(self) -> int:
        """Bits that no layer may exceed, whatever it is given."""
        return 8

    @property
    def least_bits(self) -> float:
        """Fewest bits of any layer: those of a target, or all that there are where nobody asked for more."""
        return WIDTHS[0] if self.kind in ("pairs", "bits") and self.min_bits == MIN_BITS else self.min_bits

    @property
    def edge_bits(self) -> float | None:
        """Bits of the first and the last layer; None where a target decides."""
        return self.first_last_bits or (EDGE_BITS if self.kind in ("pairs", "bits") else None)


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """How weights are rounded and repaired, and where the statistics come from that both need."""

    method: str = setting(
        named(METHODS), "dfmpc",
        "--method", "the default method, or the paper's as written (dfmpc)",
    )  # fmt: skip
    lambda1: float = setting(real("a number, 0 or more", 0), 0.5)
    lambda2: float = setting(real("a number, 0 or more", 0), 0.0)
    absorb: Literal["producer", "consumer"] = setting(one_of("producer", "consumer"), "producer")
    rounding: str | None = setting(named(ROUNDINGS), None)
    repair: Literal["both", "gain", "mean", "none"] = setting(one_of("both", "gain", "mean", "none"), "both")
    statistics: str = setting(
        named(STATISTICS, "auto"), "auto",
        "--statistics", "where mean and covariance of the layers' inputs come from (auto)",
    )  # fmt: skip
    calibration_data: str | None = setting(
        PATH, None, "--calibration-data", "real inputs for the statistics, as --data takes them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_data is not None and self.statistics != "auto":
            raise RecipeError(
                f"calibration_data is not used with statistics = {self.statistics!r}",
                hint="leave one of them out",
            )

    @property
    def repairs_gain(self) -> bool:
        """Whether the gain of every channel is repaired: by the paper's c, or by the default's own."""
        return self.repair in ("both", "gain")

    @property
    def repairs_mean(self) -> bool:
        """Whether the mean of every channel is repaired."""
        return self.repair in ("both", "mean")

    @property
    def corrects(self) -> tuple[str, ...]:
        """Parameters of batch norm that change; if any, a layer without batch norm gets a new bias."""
        return METHODS[self.method].corrects(self.repairs_gain, self.repairs_mean)

    @property
    def half(self) -> bool:
        """Whether new scales and biases are rounded to float16 numbers."""
        return METHODS[self.method].half


@dataclass(frozen=True, kw_only=True)
class Storage(Settings):
    """How codes are put into the file."""

    target: str | None = setting(
        one_of(*RUNTIMES, metavar="RUNTIME"), None,
        "--target", "the runtime that has to read the file: " + ", ".join(RUNTIMES) + " (any)",
    )  # fmt: skip
    storage: str | None = setting(
        named(STORAGE_FORMATS), None,
        "--storage", "how codes lie in the file (vector)",
    )  # fmt: skip
    unpack: Literal["none", "int8", "float"] | None = setting(
        one_of("none", "int8", "float"), None,
        "--unpack", "what ONNX Runtime unpacks when it loads them (none)",
    )  # fmt: skip
    fold_batch_norm: Literal["auto", "no", "yes"] = setting(
        one_of("auto", "no", "yes"), "auto",
        "--fold-batch-norm", "put batch norm into scales and biases (auto: yes for a target, else no)",
    )  # fmt: skip
    activations: int | None = setting(
        Value(values.integer(ACTIVATION_BITS, ACTIVATION_BITS), "8", "8", int), None,
        "--activations", "bits of activations, for integer kernels (float); only 8",
    )  # fmt: skip
    reduce_range: bool = setting(
        FLAG, False,
        "--reduce-range", "with --activations: weights within 7 bits, for processors without VNNI",
    )  # fmt: skip
    slim: bool | None = setting(
        FLAG, None,
        "--slim", "fold shape arithmetic, shorten names in the graph (default: for a size and --activations)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storage == "native" and not self._runtime.native and self.target is not None:
            raise RecipeError(
                f"storage = 'native' does not go with target = {self.target!r}: "
                f"{self._runtime.title} does not read 2- and 4-bit types",
                hint="leave out storage: every runtime reads vector and table",
            )
        if self.activations is None:
            if self.reduce_range:
                raise RecipeError(
                    "reduce_range is for integer kernels, and activations are float",
                    hint="give activations = 8 (--activations 8) as well, or leave reduce_range out",
                )
            return
        if self._runtime.no_activations:
            raise RecipeError(
                f"activations = {self.activations} does not go with target = {self.target!r}: "
                f"{self._runtime.no_activations}",
                hint="leave out activations",
            )
        for key, fits in (("unpack", (None, "none", "int8")), ("fold_batch_norm", ("auto", "yes"))):
            if getattr(self, key) not in fits:
                raise RecipeError(
                    f"{key} = {getattr(self, key)!r} does not go with activations = {self.activations}",
                    hint=f"integer kernels need {key} = {fits[-1]!r}, which is what you get without {key}",
                )

    @property
    def _runtime(self) -> Runtime:
        return ANY if self.target is None else RUNTIMES[self.target]


def _several(check: values.Check, *lengths: int) -> values.Check:
    """One value, or as many as one of the lengths says: as a tuple."""

    def check_all(value: Any) -> tuple[Any, ...]:
        items = (value,) if isinstance(value, int | float) else tuple(value)
        values.require(len(items) in lengths)
        return tuple(map(check, items))

    return check_all


_sides = _several(values.integer(1), 1, 2)


def _crop(value: Any) -> Any:
    value = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    return values.number(above=0, below=1)(value) if isinstance(value, float) else _sides(value)


@dataclass(frozen=True)
class Preprocessing(Settings):
    """How pictures become inputs: resized and cropped, then ``(pixel * scale - mean) / std``, with pixels
    from 0 to 255.

    `size` resizes (bilinear) so that the shorter side has this many pixels, or to height and width; None
    resizes to what the model takes, or, with pixels to `crop`, not at all. `crop` cuts a square, or height
    and width, from the middle; below 1, it keeps this share of each side and resizes then; None cuts what the
    model takes, where `size` gives only the shorter side. `mean` and `std` are in the order of the channels
    that the model sees. `scale` None is 1/255, and 1 for a model that takes integers. "auto" follows the
    shape of the input, and is gray for one channel, else RGB.
    """

    size: tuple[int, ...] | None = setting(Value(_sides, "one or two numbers of pixels"), None)
    crop: tuple[int, ...] | float | None = setting(
        Value(_crop, "one or two numbers of pixels, or a share between 0 and 1"), None
    )
    mean: tuple[float, ...] = setting(
        Value(_several(values.number(), 1, 3), "one number, or one for each of three channels"), (0.0,)
    )
    std: tuple[float, ...] = setting(
        Value(_several(values.number(above=0), 1, 3), "one positive number, or one for each channel"), (1.0,)
    )
    scale: float | None = setting(real("a number"), None)
    layout: Literal["auto", "nchw", "nhwc"] = setting(one_of("auto", "nchw", "nhwc"), "auto")
    channels: Literal["auto", "rgb", "bgr", "gray"] = setting(one_of("auto", "rgb", "bgr", "gray"), "auto")


def _preprocessing(value: Any) -> Any:
    """Itself, a mapping, or pairs as the command line gives them."""
    return values.from_mapping(Preprocessing, dict(value) if isinstance(value, list) else value)


def _shapes(value: Any) -> dict[str, tuple[int, ...]]:
    shapes = values.pairs(values.name, lambda sizes: tuple(map(values.integer(1), sizes)))(value)
    return dict(shapes)


def _data_source(value: Any) -> Any:
    return value if callable(value) or isinstance(value, Mapping) else _path_or_array(value)


def _path_or_array(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return values.path(value)
    values.require(isinstance(value, list) or hasattr(value, "__array__"))
    return value


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """The inputs that models are run on: the user's, or seeded synthetic ones."""

    data: DataSource | None = setting(
        Value(_data_source, "a path, arrays by input name, an array, or a function", "PATH"),
        None, "--data", "inputs: .npz, .npy, a folder of these or of images, or loader.py:FUNCTION",
    )  # fmt: skip
    labels: LabelSource | None = setting(
        Value(_path_or_array, "a path, or an array of class indices", "FILE"),
        None, "--labels", "class indices of the samples",
    )  # fmt: skip
    images: Preprocessing = setting(
        Value(
            _preprocessing, "how pictures become inputs",
            "KEY=VALUE", values.key_value(values.number_or_text), "extend",
        ),
        Preprocessing(), "--images",
        "how pictures become inputs, (pixel * scale - mean) / std: size=256 crop=224 (or 0.875) "
        "mean=0.485,0.456,0.406 std=X,X,X scale=X layout=nhwc channels=bgr",
    )  # fmt: skip
    shapes: Mapping[str, tuple[int, ...]] = setting(
        Value(
            _shapes, "shapes by input name", "NAME=SHAPE", values.key_value(values.numbers), "append"
        ),
        dict, "--shape", "shape of an input with open dimensions, such as input=1,3,224,224; repeatable",
    )  # fmt: skip
    input_range: tuple[float, float] | None = setting(
        Value(values.interval, "two numbers, the smaller one first", "A,B", values.numbers),
        None, "--input-range", "range of synthetic inputs, such as 0,255",
    )  # fmt: skip
    samples: int | None = setting(count(1), None, "--samples", "largest number of samples")
    seed: int = setting(count(0), 0, "--seed", "seed of synthetic inputs and of the choice of samples (0)")


@dataclass(frozen=True, kw_only=True)
class Gates(Settings):
    """Limits on how far the outputs may move; each holds for the worst output."""

    min_cosine: float | None = setting(
        real("a number from -1 to 1", -1, 1), None, "--min-cosine", "lowest cosine"
    )
    min_sqnr_db: float | None = setting(
        DECIBELS, None, "--min-sqnr-db", "lowest signal-to-quantization-noise ratio"
    )
    max_top1_drop: float | None = setting(
        real("a fraction from 0 to below 1 (0.01 is one percentage point)", 0, below=1),
        None, "--max-top1-drop", "largest loss of top-1; needs labels",
    )  # fmt: skip
    min_top1_agreement: float | None = setting(
        real("a fraction from 0 to 1 (0.98 is 98 %)", 0, 1),
        None, "--min-top1-agreement", "lowest share of samples with the same top-1",
    )  # fmt: skip
    no_gate: bool | None = setting(
        Value(values.flag, "true or false", action="store_true"),
        None, "--no-gate", "let outputs pass that are not finite, or useless on synthetic inputs",
    )  # fmt: skip

    @property
    def limits(self) -> dict[str, float]:
        """The gates that are set, by name."""
        return {name: limit for name, limit in values.plain(self, Gates).items() if name != "no_gate"}


@dataclass(frozen=True, kw_only=True)
class Recipe(Bits, Method, Storage, Data, Gates):
    """What to do to a model. Every default is the recommended value.

    Parameters
    ----------
    low_bits, high_bits : float, optional
        Bits of the two layers of each pair: 2 to 8, or 1.58 and 2.58 for 3 and 6 levels. Where one is given
        alone, the other is 3 or 6.
    bits : float, optional
        The same bits for every inner layer.
    target_size : int or str, optional
        Bytes of the file, never more (weights in external data take a few more): 307200, or "300KiB".
    target_ratio : float, optional
        Times that the file has to be smaller than the model, at least; its `target_size` is known once the
        model is.
    target_bits : float, optional
        Mean nominal bits over all quantized weights, never more; `storage` decides what they take on disk. Of
        the kinds of bits, one is given; without any it is 4 of these, or, for the paper's method, pairs.
    target_sqnr_db : float, optional
        Predicted output SQNR in dB, at least; `preset` is one by name: "smallest", "balanced", "lossless".
    min_bits, max_bits : float
        Bounds on the bits that a target gives a layer.
    first_last_bits : float, optional
        Bits of the first and the last layer; by default 8, but where a target decides for all layers.
    rules : sequence of Rule or mapping
        Bits, bounds and exclusion for single layers, in order: the last match wins. `set`, a mapping of
        regular expressions to bits, and `nodes_to_exclude`, a list of names, append to them.
    method : {"dfmpc", "paper"}
        The default method, or the paper's as written: per tensor, ternary or symmetric, with `lambda1` and
        `lambda2` as the weights in its L(c), and `absorb`, "producer" or "consumer", the side of a chain that
        takes its coefficients.
    rounding : {"nearest", "squant", "gptq"}, optional
        How weights are rounded; by default the method's own way.
    repair : {"both", "gain", "mean", "none"}
        What is repaired after rounding, in every channel.
    statistics : {"auto", "probe", "closed_form"}
        Where mean and covariance of a layer's input come from, if not from `calibration_data`.
    calibration_data : path, optional
        Real inputs for the statistics, of any kind that `data` takes.
    target : str, optional
        Name of the runtime that has to read the file, such as "ort-1.18" or "openvino": it decides opset, IR
        version, `storage` and `unpack`, and what it cannot read is refused. Without one, every runtime that
        was tried reads the codes (docs/runtimes.md).
    storage : {"vector", "table", "native"}, optional
        How codes lie in the file: packed into bytes that every runtime unpacks, or in the narrowest element
        type.
    unpack : {"none", "int8", "float"}, optional
        What ONNX Runtime unpacks when it loads the weights.
    fold_batch_norm : {"auto", "no", "yes"}
        Whether batch norm goes into scales and biases, which is exact and saves its parameters and nodes.
        "auto" is yes where a target decides, since bytes count there, and for integer kernels; else no, and
        the graph stays as it was.
    activations : {None, 8}
        Bits of activations. 8 makes ONNX Runtime compute in integers; weights are unpacked to INT8 for it and
        batch norm is folded.
    reduce_range : bool
        Whether weights stay within 7 bits, with `activations`: integer kernels of processors without VNNI
        saturate where they use 8.
    slim : bool, optional
        Whether shape arithmetic is folded, names inside of the graph are shortened, and what exporters leave
        goes; outputs stay the same, bit for bit. By default where a size, a ratio or
        integer kernels are asked for.
    data, labels : path or arrays, optional
        Inputs for the validation: an .npz, .npy, folder or ``loader.py:function`` (see docs/validate.md);
        arrays by input name; or a function that yields such mappings, or pairs of one and labels. By default
        synthetic, in `input_range`. `labels` are class indices from 0 and win over the data's own.
    images : Preprocessing or mapping
        How pictures become inputs.
    shapes : mapping of str to tuple of int
        Whole shapes of inputs with open dimensions.
    samples : int, optional
        Largest number of samples; by default all of `data`, or some synthetic ones.
    seed : int
        Seed of everything random.
    min_cosine, min_sqnr_db, max_top1_drop, min_top1_agreement : float, optional
        Limits that the validation has to meet at the worst output; shares are fractions (0.01 is one
        percentage point).
    no_gate : bool, optional
        Let outputs pass that are not finite, or below 6 dB on synthetic inputs, which else fail.

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

    @property
    def most_bits(self) -> int:
        """Bits that no layer may exceed, whatever it is given."""
        return self.form.most_bits

    def _default_bits(self) -> Mapping[str, Any]:
        return PAIR if METHODS[self.method].pairs else super()._default_bits()

    @property
    def form(self) -> StorageFormat:
        """How codes are put into the file, with every "auto" decided."""
        fixed = self.kind in ("pairs", "bits")
        fold = self.fold_batch_norm
        return StorageFormat(
            storage=self._storage,
            unpack="int8" if self.activations is not None else self.unpack or self._runtime.unpack,
            fold_batch_norm=fold if fold != "auto" else "no" if fixed and self.activations is None else "yes",
            activations=self.activations,
            slim=self._slim,
            reduce_range=self.reduce_range,
            target=self.target,
        )

    @property
    def _storage(self) -> str:
        wanted = self.storage or "vector"
        rounding = ROUNDINGS[self.rounding or METHODS[self.method].rounding]
        return "table" if wanted == "vector" and rounding.vectors is None else wanted

    @property
    def _slim(self) -> bool:
        # Arithmetic on shapes takes time as well: integers make ShuffleNetV2 faster only without it.
        wanted = self.kind in SIZES or self.activations is not None
        return wanted if self.slim is None else self.slim

    def for_model(self, size: int) -> Recipe:
        """Recipe for a model of so many bytes: a ratio becomes the size that it is.

        Examples
        --------
        >>> Recipe(target_ratio=8).for_model(1_000_001).target_size
        125000
        """
        if self.target_ratio is None:
            return self
        return replace(self, target_ratio=None, target_size=max(1, int(size / self.target_ratio)))

    @classmethod
    def from_dict(cls, keywords: Mapping[str, Any]) -> Recipe:
        """Recipe from plain data: keywords of the constructor and their values.

        Examples
        --------
        >>> Recipe.from_dict({"bits": 4}).bits
        4
        >>> Recipe.from_dict({"bit": 4})
        Traceback (most recent call last):
        ...
        onnx_dfmpc.errors.RecipeError: unknown key 'bit'
        """
        values.require_known(keywords, KEYWORDS)
        return cls(**keywords)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Recipe from a TOML file with sections (see docs/bits.md); paths inside it are relative to it.

        `overrides` are keywords that win over the file's: bits of one kind replace those of the others, and
        rules are added after the file's.
        """
        overrides = dict(overrides or {})
        from_file = read_recipe(path)
        try:
            base = cls.from_dict(from_file)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}", hint=error.hint) from None
        if kinds := [keys for keys in KINDS.values() if any(key in overrides for key in keys)]:
            dropped = [key for keys in KINDS.values() if keys not in kinds for key in keys]
            from_file = {key: value for key, value in from_file.items() if key not in dropped}
        from_file |= {
            "rules": (*base.rules, *overrides.pop("rules", ())),
            "set": (),  # like the nodes to exclude, among the rules by now
            "nodes_to_exclude": (),
            "images": base.images.to_dict(changed_only=True) | dict(overrides.pop("images", {})),
        }
        return cls.from_dict(from_file | overrides)

    def to_toml(self) -> str:
        """Text of a recipe file that `from_toml` turns back into an equal recipe; its paths are absolute."""
        return toml.write(self.to_dict(), SECTIONS, PATHS)

    def to_text(self) -> str:
        """The kind of bits and everything else that differs from the default, on one line."""
        changed = self.to_dict(changed_only=True)
        return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())


KEYWORDS = tuple(settings(Recipe))
"""What the constructor of a recipe takes."""

PATHS = ("calibration_data", "data", "labels")
TARGET = {
    "size": "target_size",
    "ratio": "target_ratio",
    "bits": "target_bits",
    "sqnr_db": "target_sqnr_db",
    "preset": "preset",
    "low_bits": "low_bits",
    "high_bits": "high_bits",
    "uniform_bits": "bits",
}
"""Keys of ``[target]`` in a recipe file, and the keywords that they are; elsewhere both are the same."""

SECTIONS: toml.Sections = {"target": TARGET} | {
    section: {
        name: name
        for group in groups
        for name in settings(group)
        if name not in (*TARGET.values(), *toml.WHOLE.values())
    }
    for section, groups in {"defaults": (Bits, Method, Storage), "validate": (Data, Gates)}.items()
}


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keywords and values that a recipe file gives, not yet checked."""
    return toml.read(path, SECTIONS, PATHS)

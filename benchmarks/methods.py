"""Every way to quantize that the benchmarks compare, by name, and the bit settings they are compared at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from benchmarks import package
from benchmarks.baselines import Unavailable, dfq
from onnx_dfmpc import QuantizeResult, Recipe
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.model.files import load

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Setting:
    """Bits: a label for the reader, and what it is in a recipe. First and last layer have 8 bits."""

    label: str
    bits: Mapping[str, Any]

    def recipe(self, **knobs: Any) -> Recipe:
        """The recipe of a method at these bits."""
        return Recipe(**{**self.bits, **knobs})


def settings(text: str) -> list[Setting]:
    """Settings from text such as ``"2/6,3"``: pairs of low and high bits, and uniform bits.

    Examples
    --------
    >>> [setting.label for setting in settings("2/6,3")]
    ['2/6', '3']
    """
    found = []
    for part in text.split(","):
        numbers = part.strip().split("/")
        if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
            raise RecipeError(
                f"setting {part!r}: expected bits such as 2/6 (pairs) or 3 (the same everywhere)"
            )
        bits = [int(number) for number in numbers]
        if len(bits) == 1:
            found.append(Setting(str(bits[0]), {"bits": bits[0]}))
        else:
            pair = {"low_bits": bits[0], "high_bits": bits[1]}
            found.append(Setting(part.strip(), pair))
    for setting in found:
        setting.recipe()  # refuses bits that there are not
    return found


@dataclass(frozen=True)
class Task:
    """What a method has to quantize. ``calibration`` is an .npz with real inputs, where there is one."""

    path: Path
    setting: Setting
    calibration: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """A quantized model and, where the package made it, the providers of its statistics."""

    model: ModelProto
    providers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A way to quantize; ``run`` raises `Unavailable` or a `DfmpcError` where it cannot."""

    name: str
    about: str
    run: Callable[[Task], Outcome] = field(repr=False)


def from_recipe(name: str, about: str, changes: Mapping[str, Any] = NOTHING, **knobs: Any) -> Method:
    """A method of the package: knobs of the recipe, and changes to the plan of every layer."""

    def run(task: Task) -> Outcome:
        values = dict(knobs)
        if knobs.get("statistics") == "calibration":
            del values["statistics"]
            if task.calibration is None:
                raise Unavailable("no real calibration inputs for this network")
            values["calibration_data"] = str(task.calibration)
        outcome = _outcome(package.quantize(task.path, task.setting.recipe(**values), changes))
        wanted = str(knobs.get("statistics", "")).replace("_", " ")
        if wanted and not any(provider.startswith(wanted) for provider in outcome.providers):
            raise Unavailable(f"statistics came from {', '.join(outcome.providers)}")
        return outcome

    return Method(name, about, run)


def _dfq(name: str, about: str, *, per_channel: bool) -> Method:
    def run(task: Task) -> Outcome:
        return _outcome(dfq.quantize(load(task.path).proto, task.setting.recipe(), per_channel=per_channel))

    return Method(name, about, run)


def _outcome(result: QuantizeResult) -> Outcome:
    return Outcome(result.model, tuple(sorted({layer.source for layer in result.layers})))


def _paper(lambda1: float, lambda2: float) -> Method:
    about = f"the paper's with lambda1 {lambda1:g} and lambda2 {lambda2:g}"
    return from_recipe(
        f"paper-{lambda1:g}-{lambda2:g}", about, method="paper", lambda1=lambda1, lambda2=lambda2
    )


NO_COMPENSATION: Mapping[str, Any] = {"repair": "mean"}
NO_BIAS: Mapping[str, Any] = {"repair": "gain"}
BARE: Mapping[str, Any] = {"repair": "none"}
SWITCHES = (("", NOTHING), ("-nocomp", NO_COMPENSATION), ("-nobias", NO_BIAS), ("-neither", BARE))
SAYS = {
    "": "",
    "-nocomp": ", no compensation",
    "-nobias": ", no bias correction",
    "-neither": ", neither compensation nor bias correction",
}

LAMBDAS = ((0.0, 0.0), (0.05, 0.0), (0.5, 0.0), (5.0, 0.0), (50.0, 0.0), (0.5, 0.5), (0.5, 5.0))

GROUPS: Mapping[str, tuple[Method, ...]] = {
    "dfmpc": tuple(from_recipe(f"dfmpc{suffix}", f"the default{SAYS[suffix]}", **knobs) for suffix, knobs in SWITCHES),
    "paper": (
        *(from_recipe(f"paper{suffix}", f"the paper's{SAYS[suffix]}", method="paper", **knobs) for suffix, knobs in SWITCHES),
        from_recipe("paper-consumer", "the paper's, compensated in the consumers' weights", method="paper", absorb="consumer"),
    ),
    "lambda": tuple(
        _paper(one, two)
        for one, two in LAMBDAS
    ),
    "rounding": tuple(
        from_recipe(f"rounding-{rounding}", f"the default with {rounding} rounding", rounding=rounding)
        for rounding in ("nearest", "squant", "gptq")
    ),
    "statistics": tuple(
        from_recipe(f"statistics-{provider}", f"the default with {provider} statistics", statistics=provider)
        for provider in ("probe", "closed_form", "calibration")
    ),
    "baselines": (
        from_recipe("nearest", "plain rounding, per channel, min-max", rounding="nearest", **BARE),
        from_recipe("squant", "SQuant, per channel, min-max", rounding="squant", **BARE),
        from_recipe("squant-bias", "SQuant and bias correction", rounding="squant", **NO_COMPENSATION),
        _dfq("dfq", "DFQ: equalization, per tensor, bias correction", per_channel=False),
        _dfq("dfq-channel", "the same, per channel", per_channel=True),
    ),
}  # fmt: skip

METHODS: Mapping[str, Method] = {method.name: method for methods in GROUPS.values() for method in methods}


def methods(text: str) -> list[Method]:
    """Methods from names with commas in between; the name of a group, with a colon behind it, means all in
    it, and ``all`` everything.
    """
    found: list[Method] = []
    for name in (part.strip() for part in text.split(",")):
        if name == "all":
            found += METHODS.values()
        elif name.removesuffix(":") in GROUPS and name.endswith(":"):
            found += GROUPS[name.removesuffix(":")]
        elif name in METHODS:
            found.append(METHODS[name])
        else:
            known = ", ".join([*METHODS, *(f"{group}:" for group in GROUPS), "all"])
            raise RecipeError(f"no method is named {name!r}", hint=f"known: {known}")
    return list({method.name: method for method in found}.values())


@dataclass(frozen=True)
class Ingredient:
    """A part of the default that can be taken out: by knobs of the recipe, or by changes to the plan of every
    layer.
    """

    name: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


INGREDIENTS = (
    Ingredient("gptq rounding", {"rounding": "nearest"}),
    Ingredient("gain", NO_COMPENSATION),
    Ingredient("bias correction", NO_BIAS),
    Ingredient("grid per channel", changes={"per_channel": False}),
    Ingredient("zero point", changes={"grid": "symmetric"}),
)


def ablation(ingredients: Sequence[Ingredient] = INGREDIENTS) -> list[Method]:
    """The default, each ingredient removed from it; nothing but plain rounding, each ingredient added to
    that.
    """

    def without(name: str, about: str, missing: Sequence[Ingredient]) -> Method:
        knobs = {key: value for ingredient in missing for key, value in ingredient.knobs.items()}
        changes = {key: value for ingredient in missing for key, value in ingredient.changes.items()}
        return from_recipe(name, about, changes, **knobs)

    removed = [without(f"default - {one.name}", "removed", [one]) for one in ingredients]
    added = [
        without(f"bare + {one.name}", "added alone", [other for other in ingredients if other is not one])
        for one in ingredients
    ]
    return [without("default", "everything", []), *removed, without("bare", "nothing", ingredients), *added]

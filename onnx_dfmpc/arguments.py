"""The flags of the command line, and how a mistake in them is said: one line and a hint."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NoReturn

from onnx_dfmpc.document import tool_version
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import DEFAULT_BITS, KINDS, PRESETS, Recipe, nearest, parse_size, read_recipe
from onnx_dfmpc.spec import QuantPlan

__all__ = ["PROGRAM", "parse", "planned_recipe_of", "recipe_of"]

PROGRAM = "onnx-dfmpc"
DEFAULT_TEXT = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in DEFAULT_BITS.items())
PRESET_TEXT = ", ".join(f"{name} {decibels:g} dB" for name, decibels in PRESETS.items())
KNOBS = tuple(knob.name for knob in fields(Recipe))
SWEEP = 12
"""Budgets of a sweep that does not say how many."""

DECIDED = (
    *(key for keys in KINDS.values() for key in keys),
    *("min_bits", "max_bits", "low_position", "first_last_bits", "rules", "set", "nodes_to_exclude", "nodes_to_quantize"),
    *("cost", "method", "rounding"),
)
"""Knobs that a plan has decided."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r".*invalid choice: '(.*?)' \(choose from (.*)\)", message)
        suggestion = nearest(choice[1], re.split(r",\s*", choice[2].replace("'", ""))) if choice else ""
        raise RecipeError(message, hint=suggestion or f"{self.prog} --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Raises
    ------
    RecipeError
        An unknown flag or command, a missing or malformed value.
    SystemExit
        With code 0, after ``--help`` and ``--version``.
    """
    parser, commands = _parser()
    args, extra = parser.parse_known_args(list(_glued(argv)))
    if extra:
        command = commands[args.command]
        flag = extra[0].split("=", 1)[0]
        if not flag.startswith("-"):
            raise RecipeError(f"unexpected argument {flag!r}", hint=f"{command.prog} --help")
        known = [name for action in command._actions for name in action.option_strings]
        raise RecipeError(f"unknown flag {flag}", hint=nearest(flag, known) or f"{command.prog} --help")
    return args


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Recipe of the flags that were given, on top of the file named with ``-c``."""
    config = getattr(args, "config", None)
    return Recipe.from_dict(_given(args)) if config is None else Recipe.from_toml(config, _given(args))


def planned_recipe_of(args: argparse.Namespace, plan: QuantPlan) -> Recipe:
    """Recipe of a plan, with the flags that were given, and the file named with ``-c``, on top.

    Raises
    ------
    RecipeError
        Flags, or keys of the file, for what the plan has decided.
    """
    given = _given(args)
    if args.config is not None:
        given = read_recipe(args.config, KNOBS) | given
    for key in given:
        if key in DECIDED:
            raise RecipeError(f"--plan and {key} exclude each other", hint="edit the plan, or make it again with: onnx-dfmpc plan")
    return Recipe.from_dict({**plan.recipe, **asdict(plan.form), **given})


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name in KNOBS}


def _glued(argv: Sequence[str]) -> Iterator[str]:
    """Join ``--input-range -1,1`` with "=": argparse takes a value that starts with a minus for a flag."""
    tokens = iter(argv)
    for token in tokens:
        value = next(tokens, None) if token == "--input-range" else None
        yield token if value is None else f"{token}={value}"


def _rule(text: str) -> tuple[str, int]:
    pattern, separator, bits = text.rpartition("=")
    if not separator or not pattern or not re.fullmatch(r"\d+", bits):
        raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=BITS, such as 'layer1.*=4'")
    return pattern, int(bits)


def _sweep(text: str) -> int | tuple[int, ...]:
    """Number of budgets, or the budgets themselves in bytes."""
    if re.fullmatch(r"\d{1,3}", text):
        if int(text) < 2:
            raise argparse.ArgumentTypeError(f"{text}: a sweep needs two budgets or more, such as 20 or 200KiB,300KiB")
        return int(text)
    try:
        return tuple(parse_size(part) for part in text.split(","))
    except RecipeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of budgets nor sizes, such as 20 or 200KiB,300KiB") from None


def _interval(text: str) -> tuple[float, ...]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A,B, such as 0,255") from None
    return low, high


def _parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    parser = _Parser(prog=PROGRAM, description="Shrink a float ONNX network to 2-8 bit weights, from the file alone: no data, no training.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {tool_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    inspect = commands.add_parser("inspect", help="what there is to quantize", description="Chains, layers and skipped nodes with reasons.")
    inspect.add_argument("model", metavar="MODEL", help="float .onnx file")
    _add_common(inspect)

    plan = commands.add_parser("plan", help="bits per layer", description="Bits per layer, predicted size and quality; writes no weights.")
    plan.add_argument("model", metavar="MODEL", help="float .onnx file")
    plan.add_argument("-o", "--output", metavar="PLAN.json", help="file to write, for quantize --plan")
    plan.add_argument("--overwrite", action="store_true", help="allow PLAN.json to exist")
    sweep = "size against predicted quality for N budgets, or for some sizes"
    plan.add_argument("--sweep", nargs="?", const=SWEEP, type=_sweep, metavar="N|SIZES", help=sweep)
    _add_bits(plan)
    _add_method(plan)
    _add_form(plan)
    _add_validation(plan, gates=False)
    _add_common(plan)

    quantize = commands.add_parser("quantize", help="quantize and validate", description="Quantize the weights of a model and validate it.")
    quantize.add_argument("model", metavar="MODEL", help="float .onnx file")
    quantize.add_argument("-o", "--output", metavar="OUT.onnx", help="file to write")
    _add_bits(quantize).add_argument("--plan", metavar="PLAN.json", help="bits of a plan, as made by onnx-dfmpc plan or edited")
    _add_method(quantize)
    output = _add_form(quantize)
    output.add_argument("--save-as-external-data", action="store_true", help="weights into OUT.onnx.data")
    output.add_argument("--overwrite", action="store_true", help="allow OUT to exist")
    output.add_argument("--dry-run", action="store_true", help="do everything but write")
    _add_validation(quantize)
    _add_common(quantize)

    validate = commands.add_parser("validate", help="compare two models", description="Compare two models under ONNX Runtime.")
    validate.add_argument("float_model", metavar="FLOAT", help="float .onnx file")
    validate.add_argument("quantized_model", metavar="QUANTIZED", help="the quantized one")
    _add_validation(validate)
    _add_common(validate)
    return parser, commands.choices


def _knob(group: argparse._ArgumentGroup, flag: str, text: str, **settings: Any) -> None:
    """Add a flag for an attribute of `Recipe`; it is absent from the namespace unless given, so that a recipe file can have a say."""
    group.add_argument(flag, help=text, default=argparse.SUPPRESS, **settings)


def _add_bits(parser: _Parser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("bits", f"Exactly one kind: pairs, uniform, a target or a preset (default {DEFAULT_TEXT}).")
    _knob(group, "--low-bits", "pairs: bits of one layer of each, 2 to 8", type=int, metavar="N")
    _knob(group, "--high-bits", "bits of the other layer, 2 to 8", type=int, metavar="N")
    _knob(group, "--bits", "uniform: the same for every inner layer, 2 to 8", type=int, metavar="N")
    _knob(group, "--target-size", "at most so large a file, such as 300KiB or 1.5MB", metavar="SIZE")
    _knob(group, "--target-bits", "at most so many bits per weight on average", type=float, metavar="X")
    _knob(group, "--target-sqnr-db", "at least this predicted output SQNR", type=float, metavar="DB")
    _knob(group, "--preset", f"a predicted output SQNR by name: {PRESET_TEXT}", choices=tuple(PRESETS))
    _knob(group, "--min-bits", "least bits that a target gives a layer (2)", type=int, metavar="N")
    _knob(group, "--max-bits", "most bits that a target gives a layer (8)", type=int, metavar="N")
    _knob(group, "--cost", "where the predicted noise of a layer comes from (auto)", choices=("auto", "bn", "probe", "measured"))
    _knob(group, "--low-position", "which layer of a pair is the low one (auto)", choices=("auto", "first", "second"))
    _knob(group, "--first-last-bits", "bits of the first and the last layer (8; a target decides for them itself)", type=int, metavar="N")
    _knob(group, "--set", "bits for layers by name; repeatable, the last match wins", type=_rule, action="append", metavar="REGEX=BITS")
    _knob(group, "--nodes-to-exclude", "nodes that stay float", nargs="+", action="extend", metavar="NAME")
    group.add_argument("-c", "--config", metavar="FILE", help="recipe.toml; flags win over it")
    group.add_argument("--save-recipe", metavar="FILE", help="write the recipe that results, for -c")
    return group


def _add_form(parser: _Parser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("output")
    _knob(
        group,
        "--storage",
        "element types of the codes (auto: compact for a target, else native)",
        choices=("auto", "native", "portable", "compact"),
    )
    _knob(group, "--unpack", "what ONNX Runtime unpacks when it loads them (none)", choices=("none", "int8", "float"))
    _knob(group, "--weight-format", "DequantizeLinear alone, or QuantizeLinear in front of it (dq)", choices=("dq", "qdq"))
    _knob(
        group,
        "--fold-batch-norm",
        "put batch norm into scales and biases (auto: yes for a target, else no)",
        choices=("auto", "no", "yes"),
    )
    return group


def _add_method(parser: _Parser) -> None:
    group = parser.add_argument_group("method")
    _knob(group, "--method", "the default method, or the paper's as written (dfmpc)", choices=("dfmpc", "paper"))
    _knob(group, "--lambda1", "weight of the bias term (0.5)", type=float, metavar="X")
    _knob(group, "--lambda2", "weight of the size of the coefficients (0)", type=float, metavar="X")
    _knob(group, "--absorb", "which side of a chain takes the coefficients (producer)", choices=("producer", "consumer"))
    _knob(group, "--rounding", "how weights are rounded (the method's own)", choices=("nearest", "squant", "covariance"))
    _knob(group, "--no-compensate", "without the coefficients", action="store_false", dest="compensate")
    _knob(group, "--no-bias-correction", "without the re-estimated mean", action="store_false", dest="bias_correction")
    statistics = ("auto", "analytic", "probe", "calibration")
    _knob(group, "--statistics", "where the moments of the layers' inputs come from (auto)", choices=statistics)
    _knob(group, "--calibration-data", "real inputs for the statistics", metavar="FILE.npz")


def _add_validation(parser: _Parser, *, gates: bool = True) -> None:
    group = parser.add_argument_group("validation", "Without data: seeded synthetic inputs, a sanity check, not accuracy.")
    _knob(group, "--data", "inputs by name, and labels", metavar="FILE.npz")
    _knob(group, "--labels", "class indices: .npz, .npy, or text", metavar="FILE")
    _knob(group, "--input-range", "range of synthetic inputs, such as 0,255", type=_interval, metavar="A,B")
    _knob(group, "--samples", "at most so many samples", type=int, metavar="N")
    _knob(group, "--seed", "seed of synthetic inputs and of the choice of samples (0)", type=int, metavar="S")
    if not gates:
        return
    group = parser.add_argument_group("gates", "Where one does not hold: exit code 1, no output. Shares are fractions: 0.01 is one point.")
    _knob(group, "--min-cosine", "lowest cosine of an output", type=float, metavar="X")
    _knob(group, "--min-sqnr-db", "lowest signal-to-quantization-noise ratio of an output", type=float, metavar="DB")
    _knob(group, "--max-top1-drop", "largest loss of top-1; needs labels", type=float, metavar="X")
    _knob(group, "--min-top1-agreement", "lowest share of samples with the same top-1", type=float, metavar="X")


def _add_common(parser: _Parser) -> None:
    group = parser.add_argument_group("common")
    group.add_argument("--json", metavar="FILE", help="write the JSON document, to stdout and nothing else with -")
    volume = group.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="more detail; a traceback for an internal error")
    volume.add_argument("-q", "--quiet", action="store_true", help="nothing but errors")
    group.add_argument("--no-progress", action="store_true", help="no progress bar")

"""The flags of the command line, and how a mistake in them is said: one line and a hint."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NoReturn

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import (
    DEFAULT_BITS,
    GATE_KEYS,
    KINDS,
    PRESETS,
    Recipe,
    nearest,
    parse_size,
    read_recipe,
)
from onnx_dfmpc.report.document import tool_version
from onnx_dfmpc.spec import QuantPlan

__all__ = ["PROGRAM", "parse", "planned_recipe_of", "recipe_of"]

PROGRAM = "onnx-dfmpc"
DEFAULT_TEXT = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in DEFAULT_BITS.items())
PRESET_TEXT = ", ".join(f"{name} {decibels:g} dB" for name, decibels in PRESETS.items())
KNOBS = tuple(knob.name for knob in fields(Recipe))
IMAGE = "image_"
"""What the flags for pictures begin with."""

SWEEP = 12
"""Budgets of a sweep that does not say how many."""

EXIT_CODES = (
    "Exit codes: 0 done, and every gate holds; 1 validation failed: a gate, NaN, or outputs of different shapes; 2 wrong usage, recipe, "
    "plan or data; 3 a model that cannot be read, run or quantized, or two that do not belong together; 4 a bug. See docs/exit-codes.md."
)

DECIDED = (
    *(key for keys in KINDS.values() for key in keys),
    *(
        "min_bits",
        "max_bits",
        "low_position",
        "first_last_bits",
        "rules",
        "set",
        "nodes_to_exclude",
        "nodes_to_quantize",
    ),
    *("cost", "method", "rounding"),
)
"""Knobs that a plan has decided."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **{"epilog": EXIT_CODES, **settings})

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
    args.command_line = shlex.join([PROGRAM, *argv])
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
            raise RecipeError(
                f"--plan and {key} exclude each other",
                hint="edit the plan, or make it again with: onnx-dfmpc plan",
            )
    return Recipe.from_dict({**plan.recipe, **asdict(plan.form), **given})


def _given(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name, value in vars(args).items() if name in KNOBS and name not in GATE_KEYS}
    images = {name.removeprefix(IMAGE): value for name, value in vars(args).items() if name.startswith(IMAGE)}
    return given | _gates(args) | ({"images": images} if images else {})


def _gates(args: argparse.Namespace) -> dict[str, Any]:
    """BitBounds for the worst output, the last of each gate, and those for single ones."""
    limits = [(name, output, limit) for name in GATE_KEYS for output, limit in getattr(args, name, ())]
    single = [(output, name, limit) for name, output, limit in limits if output]
    return {name: limit for name, output, limit in limits if not output} | (
        {"output_gates": single} if single else {}
    )


def _glued(argv: Sequence[str]) -> Iterator[str]:
    """Join ``--input-range -1,1`` and the like with "=": argparse takes a value that starts with a minus for
    a flag.
    """
    tokens = iter(argv)
    for token in tokens:
        value = next(tokens, None) if token in ("--input-range", "--image-mean") else None
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
            raise argparse.ArgumentTypeError(
                f"{text}: a sweep needs two budgets or more, such as 20 or 200KiB,300KiB"
            )
        return int(text)
    try:
        return tuple(parse_size(part) for part in text.split(","))
    except RecipeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of budgets nor sizes, such as 20 or 200KiB,300KiB"
        ) from None


def _limit(text: str) -> tuple[str, float]:
    """Output, "" for the worst one, and limit."""
    output, _, number = text.rpartition("=")
    try:
        return output, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor OUTPUT=NUMBER, such as 0.99 or scores=0.99"
        ) from None


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    if not name or not re.fullmatch(r"\d+(,\d+)*", sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHAPE, such as input=1,3,224,224")
    return name, tuple(map(int, sizes.split(",")))


def _side(text: str) -> float:
    """Pixels, or a share."""
    return int(text) if text.isdecimal() else float(text)


def _numbers(kind: Callable[[str], float], example: str) -> Callable[[str], tuple[float, ...]]:
    def parse_numbers(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not what it should be, such as {example}"
            ) from None

    return parse_numbers


def _interval(text: str) -> tuple[float, ...]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A,B, such as 0,255") from None
    return low, high


def _parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    parser = _Parser(
        prog=PROGRAM,
        description="Shrink a float ONNX network to 2-8 bit weights, from the file alone: no data, no training.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {tool_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    inspect = commands.add_parser(
        "inspect",
        help="what there is to quantize",
        description="Chains, layers and skipped nodes with reasons.",
    )
    inspect.add_argument("model", metavar="MODEL", help="float .onnx file")
    inspect.set_defaults(report=[])
    _add_common(inspect)

    plan = commands.add_parser(
        "plan",
        help="bits per layer",
        description="Bits per layer, predicted size and quality; writes no weights.",
    )
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

    quantize = commands.add_parser(
        "quantize",
        help="quantize and validate",
        description="Quantize the weights of a model and validate it.",
    )
    quantize.add_argument("model", metavar="MODEL", help="float .onnx file")
    quantize.add_argument("-o", "--output", metavar="OUT.onnx", help="file to write")
    _add_bits(quantize).add_argument(
        "--plan", metavar="PLAN.json", help="bits of a plan, as made by onnx-dfmpc plan or edited"
    )
    _add_method(quantize)
    output = _add_form(quantize)
    output.add_argument("--save-as-external-data", action="store_true", help="weights into OUT.onnx.data")
    output.add_argument("--overwrite", action="store_true", help="allow OUT to exist")
    output.add_argument("--dry-run", action="store_true", help="do everything but write")
    _add_validation(quantize)
    _add_common(quantize)

    validate = commands.add_parser(
        "validate", help="compare two models", description="Compare two models under ONNX Runtime."
    )
    validate.add_argument("float_model", metavar="FLOAT", help="float .onnx file")
    validate.add_argument("quantized_model", metavar="QUANTIZED", help="the quantized one")
    _add_config(validate)
    _add_validation(validate)
    _add_common(validate)
    _add_report(commands)
    for command in (plan, quantize, validate):
        text = "write a report beside, repeatable: a page (.html, needs the extra 'report') or Markdown (.md)"
        command.add_argument("--report", help=text, action="append", default=[], metavar="FILE")
    return parser, commands.choices


def _knob(group: argparse._ArgumentGroup, flag: str, text: str, **settings: Any) -> None:
    """Add a flag for an attribute of `Recipe`; it is absent from the namespace unless given, so that a recipe
    file can have a say.
    """
    group.add_argument(flag, help=text, default=argparse.SUPPRESS, **settings)


def _add_bits(parser: _Parser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(
        "bits", f"Exactly one kind: pairs, uniform, a target or a preset (default {DEFAULT_TEXT})."
    )
    _knob(group, "--low-bits", "pairs: bits of one layer of each, 2 to 8", type=int, metavar="N")
    _knob(group, "--high-bits", "bits of the other layer, 2 to 8", type=int, metavar="N")
    _knob(group, "--bits", "uniform: the same for every inner layer, 2 to 8", type=int, metavar="N")
    _knob(group, "--target-size", "at most so large a file, such as 300KiB or 1.5MB", metavar="SIZE")
    _knob(group, "--target-bits", "at most so many bits per weight on average", type=float, metavar="X")
    _knob(group, "--target-sqnr-db", "at least this predicted output SQNR", type=float, metavar="DB")
    _knob(group, "--preset", f"a predicted output SQNR by name: {PRESET_TEXT}", choices=tuple(PRESETS))
    _knob(group, "--min-bits", "least bits that a target gives a layer (2)", type=int, metavar="N")
    _knob(group, "--max-bits", "most bits that a target gives a layer (8)", type=int, metavar="N")
    _knob(
        group,
        "--cost",
        "where the predicted noise of a layer comes from (auto)",
        choices=("auto", "bn", "probe", "measured"),
    )
    _knob(
        group,
        "--low-position",
        "which layer of a pair is the low one (auto)",
        choices=("auto", "first", "second"),
    )
    _knob(
        group,
        "--first-last-bits",
        "bits of the first and the last layer (8; a target decides for them itself)",
        type=int,
        metavar="N",
    )
    _knob(
        group,
        "--set",
        "bits for layers by name; repeatable, the last match wins",
        type=_rule,
        action="append",
        metavar="REGEX=BITS",
    )
    _knob(group, "--nodes-to-exclude", "nodes that stay float", nargs="+", action="extend", metavar="NAME")
    _add_config(group)
    group.add_argument("--save-recipe", metavar="FILE", help="write the recipe that results, for -c")
    return group


def _add_config(group: argparse._ActionsContainer) -> None:
    group.add_argument("-c", "--config", metavar="FILE", help="recipe.toml; flags win over it")


def _add_form(parser: _Parser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("output")
    _knob(
        group,
        "--storage",
        "element types of the codes (auto: compact for a target, else native)",
        choices=("auto", "native", "portable", "compact"),
    )
    _knob(
        group,
        "--unpack",
        "what ONNX Runtime unpacks when it loads them (none)",
        choices=("none", "int8", "float"),
    )
    _knob(
        group,
        "--fold-batch-norm",
        "put batch norm into scales and biases (auto: yes for a target, else no)",
        choices=("auto", "no", "yes"),
    )
    return group


def _add_method(parser: _Parser) -> None:
    group = parser.add_argument_group("method")
    _knob(
        group, "--method", "the default method, or the paper's as written (dfmpc)", choices=("dfmpc", "paper")
    )
    _knob(group, "--lambda1", "weight of the bias term (0.5)", type=float, metavar="X")
    _knob(group, "--lambda2", "weight of the size of the coefficients (0)", type=float, metavar="X")
    _knob(
        group,
        "--absorb",
        "which side of a chain takes the coefficients (producer)",
        choices=("producer", "consumer"),
    )
    _knob(
        group,
        "--rounding",
        "how weights are rounded (the method's own)",
        choices=("nearest", "squant", "gptq"),
    )
    _knob(group, "--no-compensate", "without the coefficients", action="store_false", dest="compensate")
    _knob(
        group,
        "--no-bias-correction",
        "without the re-estimated mean",
        action="store_false",
        dest="bias_correction",
    )
    statistics = ("auto", "analytic", "probe", "calibration")
    _knob(
        group, "--statistics", "where the moments of the layers' inputs come from (auto)", choices=statistics
    )
    _knob(group, "--calibration-data", "real inputs for the statistics", metavar="PATH")


def _add_validation(parser: _Parser, *, gates: bool = True) -> None:
    group = parser.add_argument_group(
        "validation", "Without data: seeded synthetic inputs, a sanity check, not accuracy."
    )
    source = group.add_mutually_exclusive_group()
    kinds = "inputs: .npz, .npy, a folder of images"
    source.add_argument("--data", help=kinds, metavar="PATH", default=argparse.SUPPRESS)
    script = "inputs from a Python function (load_data) that yields mappings of arrays, or pairs with labels"
    source.add_argument(
        "--data-loader-script",
        help=script,
        metavar="FILE.py[:FUNCTION]",
        dest="data",
        default=argparse.SUPPRESS,
    )
    _knob(group, "--labels", "class indices: .npz or .npy", metavar="FILE")
    _knob(
        group,
        "--shape",
        "shape of an input with open dimensions",
        type=_shape,
        action="append",
        dest="shapes",
        metavar="NAME=N,C,H,W",
    )
    _knob(group, "--batch-size", "samples in a run, where the model leaves that open", type=int, metavar="N")
    _knob(group, "--input-range", "range of synthetic inputs, such as 0,255", type=_interval, metavar="A,B")
    _knob(group, "--samples", "at most so many samples", type=int, metavar="N")
    _knob(group, "--seed", "seed of synthetic inputs and of the choice of samples (0)", type=int, metavar="S")
    _add_images(parser)
    if not gates:
        return
    _knob(
        group,
        "--providers",
        "execution providers of ONNX Runtime (CPUExecutionProvider)",
        nargs="+",
        action="extend",
        metavar="NAME",
    )
    _knob(
        group,
        "--per-layer",
        "what every layer alone does to the outputs, worst first, with what helps",
        action="store_true",
    )
    _knob(group, "--latency", "time inferences of both models", action="store_true")
    group = parser.add_argument_group(
        "gates",
        "For the worst output, or OUTPUT=X for one of them, repeatable. Where one does not hold: exit code 1, no output. Shares are "
        "fractions: 0.01 is one point.",
    )
    _gate(group, "--min-cosine", "lowest cosine", "X")
    _gate(group, "--min-sqnr-db", "lowest signal-to-quantization-noise ratio", "DB")
    _knob(
        group,
        "--max-top1-drop",
        "largest loss of top-1; needs labels",
        type=_limit,
        action="append",
        metavar="X",
    )
    _gate(group, "--min-top1-agreement", "lowest share of samples with the same top-1", "X")


def _gate(group: argparse._ArgumentGroup, flag: str, text: str, unit: str) -> None:
    _knob(group, flag, text, type=_limit, action="append", metavar=f"[OUTPUT=]{unit}")


def _add_images(parser: _Parser) -> None:
    group = parser.add_argument_group(
        "images", "How pictures become inputs: resized, cropped, then (pixel * scale - mean) / std."
    )
    sides = _numbers(int, "256 or 240,320")
    _knob(
        group,
        "--image-size",
        "shorter side, or height and width (what the model takes)",
        type=sides,
        metavar="N|H,W",
    )
    cut = "cut from the middle; 0.875 cuts that share of each side before resizing"
    _knob(group, "--image-crop", cut, type=_numbers(_side, "224, 240,320 or 0.875"), metavar="N|H,W|SHARE")
    _knob(
        group,
        "--image-mean",
        "in the order of the model's channels (0)",
        type=_numbers(float, "0.485,0.456,0.406"),
        metavar="X,X,X",
    )
    _knob(
        group,
        "--image-std",
        "in the order of the model's channels (1)",
        type=_numbers(float, "0.229,0.224,0.225"),
        metavar="X,X,X",
    )
    _knob(group, "--image-scale", "of pixels, which are 0 to 255 (1/255)", type=float, metavar="X")
    _knob(
        group,
        "--image-layout",
        "where the channels are (as the input's shape says)",
        choices=("auto", "nchw", "nhwc"),
    )
    _knob(
        group,
        "--image-channels",
        "their order (gray for one, else rgb)",
        choices=("auto", "rgb", "bgr", "gray"),
    )


def _add_report(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = "Show the JSON document of quantize, validate or plan again, without computing; or compare two."
    report = commands.add_parser("report", help="show or compare runs", description=text)
    report.add_argument("runs", nargs="+", metavar="RUN.json", help="one document, or two to compare")
    report.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="page (.html, needs the extra 'report') or Markdown (.md); replaced if it exists",
    )
    report.add_argument(
        "--format",
        choices=("html", "markdown"),
        help="that of the output, where its suffix does not say; on stdout without -o",
    )
    _add_volume(report.add_argument_group("common"))
    report.set_defaults(json=None, report=[], overwrite=True)


def _add_common(parser: _Parser) -> None:
    group = parser.add_argument_group("common")
    group.add_argument(
        "--json", metavar="FILE", help="write the JSON document, to stdout and nothing else with -"
    )
    _add_volume(group)


def _add_volume(group: argparse._ArgumentGroup) -> None:
    volume = group.add_mutually_exclusive_group()
    volume.add_argument(
        "-v", "--verbose", action="store_true", help="more detail; a traceback for an internal error"
    )
    volume.add_argument("-q", "--quiet", action="store_true", help="nothing but errors")
    group.add_argument("--no-progress", action="store_true", help="no progress bar")

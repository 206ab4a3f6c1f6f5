"""The command line: flags made from the settings of a recipe, and mistakes in them as one line and a hint."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from onnx_dfmpc.cli.limits import SHARE, TIMEOUT, default_memory
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate.command import PROGRAM
from onnx_dfmpc.recipe import Recipe, nearest, parse_size
from onnx_dfmpc.recipe.recipe import KEYWORDS, Bits, Data, Gates, Method, Storage, read_recipe
from onnx_dfmpc.recipe.values import Value, settings
from onnx_dfmpc.report.document import tool_version
from onnx_dfmpc.report.renderers import RENDERERS
from onnx_dfmpc.spec import QuantPlan
from onnx_dfmpc.sweep.executors import EXECUTORS

__all__ = ["PROGRAM", "parse", "planned_recipe_of", "recipe_of"]

SWEEP = 12
"""Budgets of a sweep without a number; convention."""

EXIT_CODES = (
    "Exit codes: 0 done, and every gate holds; 1 validation failed: a gate, NaN, or outputs of different "
    "shapes; 2 wrong usage, recipe, plan or data; 3 a model that cannot be read, run or quantized, or two "
    "that do not belong together; 4 a bug. See docs/exit-codes.md."
)
TITLES: Mapping[type, tuple[str, str | None]] = {
    Bits: ("bits", "One kind: pairs, uniform, a target or a preset (default: target bits 4)."),
    Method: ("method", None),
    Storage: ("output", None),
    Data: ("validation", "Without data: seeded synthetic inputs, a sanity check, not accuracy."),
    Gates: (
        "gates",
        "For the worst output. Where one does not hold: exit code 1, no output. Shares are fractions: 0.01 is"
        " one point.",
    ),
}
"""Title and description of each group of settings."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **{"epilog": EXIT_CODES, **keywords})

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r".*invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = nearest(choice[1], re.split(r",\s*", choice[2].replace("'", ""))) if choice else ""
        if choice and message.startswith("argument COMMAND") and choice[1].endswith(".onnx"):
            hint = f"{PROGRAM} quantize {shlex.quote(choice[1])}"
        raise RecipeError(message, hint=hint or f"{self.prog} --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. An unknown flag or command and a bad value are a RecipeError; ``--help`` and
    ``--version`` are a SystemExit with code 0.
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


def _glued(argv: Sequence[str]) -> Iterator[str]:
    """Join ``--input-range -1,1`` with "=": argparse takes what starts with a minus and is no number for a
    flag.
    """
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        negative = token.startswith("--") and tokens and re.match(r"-[\d.]", tokens[0])
        yield f"{token}={tokens.pop(0)}" if negative and "=" not in token else token


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Recipe of the flags that were given, on top of the file named with ``-c``."""
    config = getattr(args, "config", None)
    return Recipe.from_dict(_given(args)) if config is None else Recipe.from_toml(config, _given(args))


def planned_recipe_of(args: argparse.Namespace, plan: QuantPlan) -> Recipe:
    """Recipe of a plan, with the file named with ``-c`` and the flags on top; a RecipeError for what the plan
    has decided.
    """
    given = ({} if args.config is None else read_recipe(args.config)) | _given(args)
    for key in given:
        if key in (*settings(Bits), "method", "rounding"):
            raise RecipeError(
                f"--plan and {key} exclude each other",
                hint="edit the plan, or make it again with: onnx-dfmpc plan",
            )
    form = {name: getattr(plan.form, name) for name in settings(Storage)}
    return Recipe.from_dict({**plan.recipe, **form, **given})


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of a recipe that were flags: the others are absent, so that a recipe file can have a say."""
    return {name: value for name, value in vars(args).items() if name in KEYWORDS}


def _add_settings(parser: _Parser, group: type) -> argparse._ArgumentGroup:
    """Add the flags of a group of settings."""
    section = parser.add_argument_group(*TITLES[group])
    for name, key in settings(group).items():
        value: Value = key.metadata["value"]
        if not key.metadata["flag"]:
            continue
        about = {"dest": name, "help": key.metadata["help"], "default": argparse.SUPPRESS}
        if value.action == "flag":  # --slim and --no-slim
            section.add_argument(key.metadata["flag"], action=argparse.BooleanOptionalAction, **about)
            continue
        if value.action == "store_true":
            section.add_argument(key.metadata["flag"], action=value.action, **about)
            continue
        section.add_argument(
            key.metadata["flag"], **about,
            type=_word_parser(value), action=value.action, metavar=value.metavar, choices=value.choices,
            nargs="+" if value.action == "extend" else None,
        )  # fmt: skip
    return section


def _word_parser(value: Value) -> Callable[[str], Any]:
    def convert(word: str) -> Any:
        try:
            return value.parse(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not {value.metavar}: {value.allowed}") from None

    return convert


def _sweep(text: str) -> int | tuple[int, ...]:
    """Number of budgets, or the budgets themselves in bytes."""
    try:
        budgets = int(text) if re.fullmatch(r"\d{1,3}", text) else tuple(map(parse_size, text.split(",")))
    except RecipeError:
        budgets = 0
    if budgets in (0, 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither two budgets or more nor their sizes, such as 20 or 200KiB,300KiB"
        )
    return budgets


def _unless_none(convert: Callable[[str], float]) -> Callable[[str], float | None]:
    """A converter that takes the word none, too."""
    return lambda text: None if text == "none" else convert(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds, or none")
    return seconds


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except RecipeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4GiB, or none") from None


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers")
    return int(text)


def _parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    about = "Shrink a float ONNX network to 2-8 bit weights, from the file alone: no data, no training."
    parser = _Parser(prog=PROGRAM, description=about)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {tool_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    about = "Chains, layers and skipped nodes with reasons."
    inspect = commands.add_parser("inspect", help="what there is to quantize", description=about)
    inspect.add_argument("model", metavar="MODEL", help="float .onnx file")
    _add_common(inspect, report=True)

    about = "Bits per layer, predicted size and quality; writes no weights."
    plan = commands.add_parser("plan", help="bits per layer", description=about)
    plan.add_argument("model", metavar="MODEL", help="float .onnx file")
    plan.add_argument("-o", "--output", metavar="PLAN.json", help="file to write, for quantize --plan")
    plan.add_argument("--overwrite", action="store_true", help="allow PLAN.json to exist")
    about = "size against predicted quality for N budgets, or for some sizes"
    plan.add_argument("--sweep", nargs="?", const=SWEEP, type=_sweep, metavar="N|SIZES", help=about)
    _add_config(_add_settings(plan, Bits)).add_argument(
        "--save-recipe", metavar="FILE", help="write the recipe that results, for -c"
    )
    for group in (Method, Storage, Data):
        _add_settings(plan, group)
    _add_common(plan, report=True)

    about = "Quantize the weights of a model and validate it."
    quantize = commands.add_parser("quantize", help="quantize and validate", description=about)
    about = "float .onnx file, or several: files, folders or patterns"
    quantize.add_argument("models", nargs="+", metavar="MODEL", help=about)
    about = "file to write (MODEL.quantized.onnx beside MODEL); for several models a folder"
    quantize.add_argument("-o", "--output", metavar="OUT.onnx", help=about)
    _add_config(_add_settings(quantize, Bits)).add_argument(
        "--plan", metavar="PLAN.json", help="bits of a plan, as made by onnx-dfmpc plan or edited"
    )
    _add_settings(quantize, Method)
    output = _add_settings(quantize, Storage)
    output.add_argument("--save-as-external-data", action="store_true", help="weights into a file beside OUT")
    output.add_argument("--overwrite", action="store_true", help="allow OUT to exist")
    output.add_argument("--dry-run", action="store_true", help="do everything but write")
    _add_validation(quantize)
    _add_common(quantize, report=True)

    about = "Compare two models under ONNX Runtime."
    validate = commands.add_parser("validate", help="compare two models", description=about)
    validate.add_argument("float_model", metavar="FLOAT", help="float .onnx file")
    validate.add_argument("quantized_model", metavar="QUANTIZED", help="the quantized one")
    _add_config(validate)
    _add_validation(validate)
    _add_common(validate, report=True)

    about = "Many models in many settings; run it again to go on where it stopped."
    grid = commands.add_parser("sweep", help="many models, many settings", description=about)
    grid.add_argument("models", nargs="+", metavar="MODELS", help=".onnx files, folders or patterns")
    about = 'TOML: [setting."NAME"] with settings of a recipe; [all] and [model."GLOB"] for several'
    grid.add_argument("--settings", required=True, metavar="FILE", help=about)
    about = "folder for results.jsonl, models/, results.md and index.html (extra 'report')"
    grid.add_argument("-o", "--output", dest="results", required=True, metavar="FOLDER", help=about)
    about = "where to compute (processes of this machine); dask needs the extra 'dask'"
    grid.add_argument("--executor", choices=EXECUTORS, default="processes", help=about)
    about = "workers of this machine (one for each processor)"
    grid.add_argument("--workers", type=_positive, metavar="N", help=about)
    grid.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler, such as tcp://host:8786")
    grid.add_argument("--no-save", action="store_true", help="write rows, but no quantized models")
    _add_volume(grid.add_argument_group("common"))
    grid.set_defaults(json=None, report=[], timeout=None, max_memory=None)

    about = "Show the JSON document of quantize, validate or plan again, without computing; or compare two."
    show = commands.add_parser("report", help="show or compare runs", description=about)
    show.add_argument("runs", nargs="+", metavar="RUN.json", help="one document, or two to compare")
    about = "page (.html, needs the extra 'report') or Markdown (.md); replaced if it exists"
    show.add_argument("-o", "--output", metavar="FILE", help=about)
    about = "that of the output, where its suffix does not say; on stdout without -o"
    show.add_argument("--format", choices=[name for name in RENDERERS if name != "terminal"], help=about)
    _add_volume(show.add_argument_group("common"))
    show.set_defaults(json=None, report=[], timeout=None, max_memory=None)
    return parser, commands.choices


def _add_config(group: argparse._ActionsContainer) -> argparse._ActionsContainer:
    group.add_argument("-c", "--config", metavar="FILE", help="recipe.toml; flags win over it")
    return group


def _add_validation(parser: _Parser) -> None:
    section = _add_settings(parser, Data)
    about = "what every layer alone does to the outputs, worst first; quantize also tries what helps"
    section.add_argument("--per-layer", action="store_true", help=about)
    section.add_argument("--latency", action="store_true", help="time inferences of both models")
    _add_settings(parser, Gates)


def _add_common(parser: _Parser, *, report: bool = False) -> None:
    section = parser.add_argument_group("common")
    about = "write the JSON document, to stdout and nothing else with -"
    section.add_argument("--json", metavar="FILE", help=about)
    if report:
        about = "write a report, repeatable: a page (.html, needs the extra 'report') or Markdown (.md)"
        section.add_argument("--report", metavar="FILE", action="append", default=[], help=about)
    section.add_argument(
        "--timeout", metavar="SECONDS", type=_unless_none(_seconds), default=TIMEOUT,
        help=f"give up after so long; or none ({TIMEOUT:g})",
    )  # fmt: skip
    section.add_argument(
        "--max-memory", metavar="SIZE", type=_unless_none(_size), default=default_memory(),
        help=f"give up above so much, such as 4GiB; or none ({SHARE:.0%} of the machine or the container)"
        .replace("%", "%%"),
    )  # fmt: skip
    _add_volume(section)


def _add_volume(section: argparse._ArgumentGroup) -> None:
    volume = section.add_mutually_exclusive_group()
    about = "more detail; a traceback for an internal error"
    volume.add_argument("-v", "--verbose", action="store_true", help=about)
    volume.add_argument("-q", "--quiet", action="store_true", help="nothing but errors")
    section.add_argument("--no-progress", action="store_true", help="no progress bar")

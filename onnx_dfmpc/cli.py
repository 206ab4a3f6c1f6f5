"""The command line: flags to pipeline to report to exit code.

Results go to stdout; progress and errors to stderr. Exit codes: 0 done and every gate held, 1 a gate failed (the output is not left
behind), 2 wrong usage or recipe, 3 this model cannot be quantized or nothing matched, 4 internal.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onnx_dfmpc import document, graph, pipeline, report
from onnx_dfmpc.arguments import PROGRAM, parse, recipe_of
from onnx_dfmpc.errors import DfmpcError, RecipeError, ValidationFailed
from onnx_dfmpc.validate import ValidationReport, check_data, validate

__all__ = ["main"]

INTERNAL, INTERRUPTED, BROKEN_PIPE = 4, 130, 141

WIDE = 120
"""Columns from which the reasons have room beside the numbers."""

Callback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Outcome:
    """What a command has to show, and the error to end with once it is shown."""

    view: RenderableType
    document: dict[str, Any]
    failure: ValidationFailed | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit code.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        _run(parse(argv))
        return 0
    except SystemExit as finished:  # argparse, after --help and --version
        return int(finished.code or 0)
    except DfmpcError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it exits: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if {"-v", "--verbose"} & set(argv):
            traceback.print_exc()
        _complain(
            f"internal error, {type(error).__name__}: {error}",
            "this is a bug: run it again with -v and report the traceback with the command line and, if you may, the model",
        )
        return INTERNAL


def _complain(message: str, hint: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    if hint:
        print("hint: " + " ".join(hint.split()), file=sys.stderr)


def _run(args: argparse.Namespace) -> None:
    commands = {"inspect": _inspect, "quantize": _quantize, "validate": _validate}
    if args.json not in (None, "-"):
        _require_target(Path(args.json), _files_of(args), overwrite=True)
    with _progress(args) as callback:
        outcome = commands[args.command](args, callback)
    text = document.dumps(outcome.document) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    elif not args.quiet:
        sys.stdout.write(_render(outcome.view))
    sys.stdout.flush()
    if args.json not in (None, "-"):
        _write_text(Path(args.json), text)
    if outcome.failure is not None:
        raise outcome.failure


def _inspect(args: argparse.Namespace, _: Callback | None) -> _Outcome:
    source = graph.load(args.model)
    matched = pipeline.match(source.proto)
    return _Outcome(report.inspect_view(source, matched), document.inspect_document(source, matched))


def _quantize(args: argparse.Namespace, callback: Callback | None) -> _Outcome:
    recipe = recipe_of(args)
    if args.output is None and not args.dry_run:
        raise RecipeError("no output file", hint=f"{PROGRAM} quantize {args.model} -o OUT.onnx, or --dry-run")
    if args.output is not None:
        _require_target(Path(args.output), [args.model], overwrite=args.overwrite)
    if recipe.data or recipe.labels or recipe.gates:
        check_data(graph.load(args.model).proto, recipe.data, recipe.labels, gates=recipe.gates)
    result = pipeline.quantize(args.model, recipe=recipe, progress=callback)
    failure = None if result.validation is None else _failure(result.validation, "nothing was written; more bits may help, or other gates")
    if failure is None and not args.dry_run:
        result = result.save(args.output, external_data=args.save_as_external_data, overwrite=args.overwrite)
    verbose = args.verbose or Console().width >= WIDE
    return _Outcome(report.quantize_view(result, verbose=verbose), document.quantize_document(result), failure)


def _validate(args: argparse.Namespace, callback: Callback | None) -> _Outcome:
    recipe = recipe_of(args)
    float_model, quantized_model = graph.load(args.float_model), graph.load(args.quantized_model)
    compared = validate(
        args.float_model,
        args.quantized_model,
        recipe.data,
        recipe.labels,
        gates=recipe.gates,
        samples=recipe.samples,
        seed=recipe.seed,
        input_range=recipe.input_range,
        progress=callback,
    )
    view, plain = report.validate_view(compared), document.validate_document(float_model, quantized_model, compared)
    return _Outcome(view, plain, _failure(compared, "more bits may help, or other gates"))


def _failure(validation: ValidationReport, hint: str) -> ValidationFailed | None:
    if validation:
        return None
    missed = [f"{gate.name} = {gate.limit:g} missed" for gate in validation.gates if not gate.passed]
    return ValidationFailed("validation failed: " + "; ".join([*validation.failures, *missed]), hint=hint)


def _files_of(args: argparse.Namespace) -> list[str]:
    """Files that the document must not overwrite."""
    names = ("model", "output", "float_model", "quantized_model", "config", "data", "labels", "calibration_data")
    return [value for name in names if (value := getattr(args, name, None)) is not None]


def _require_target(target: Path, others: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a target before the work is done, not after it."""
    if target.is_dir():
        raise RecipeError(f"{target}: a directory, not a file name", hint="name the file to write inside it")
    if not target.parent.is_dir():
        raise RecipeError(f"{target}: there is no directory {target.parent}", hint="create it first")
    if not os.access(target.parent, os.W_OK):
        raise RecipeError(f"{target}: cannot write into {target.parent}", hint="choose another output path")
    if any(target.resolve() == Path(other).resolve() for other in others):
        raise RecipeError(f"{target}: is also another file of this run", hint="choose another output path")
    if target.exists() and not overwrite:
        raise RecipeError(f"{target}: exists already", hint="choose another output path, or allow overwriting it with --overwrite")


def _render(view: RenderableType) -> str:
    console = Console(markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(view)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _write_text(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise RecipeError(f"{target}: cannot write: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Callback | None]:
    console = Console(stderr=True, markup=False, highlight=False)
    if args.quiet or args.no_progress or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def callback(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield callback

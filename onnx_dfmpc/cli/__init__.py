"""The command line: flags to pipeline to report to exit code.

Results go to stdout; progress and errors to stderr. Exit codes: 0 done and every gate held, 1 a gate failed
(the output is not left behind), 2 wrong usage or recipe, 3 this model cannot be quantized or nothing matched,
4 internal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onnx_dfmpc import pipeline, report
from onnx_dfmpc.cli.flags import PROGRAM, parse, planned_recipe_of, recipe_of
from onnx_dfmpc.errors import DfmpcError, RecipeError, ValidationFailed
from onnx_dfmpc.evaluate.validation import ValidationReport, typed
from onnx_dfmpc.model.files import load, require_writable
from onnx_dfmpc.report import document, plans

__all__ = ["main"]

INTERNAL, INTERRUPTED, BROKEN_PIPE = 4, 130, 141

NARROW = 80
"""Columns that every table fits into."""

WIDE = 120
"""Columns from which the reasons have room beside the numbers."""

Callback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Outcome:
    """What a command has to show (text goes out as it is) and to write beside it, and the error to end with
    once that is done.
    """

    view: RenderableType
    document: dict[str, Any]
    files: tuple[tuple[Path, str], ...] = ()
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
    commands = {
        "inspect": _inspect,
        "plan": _plan,
        "quantize": _quantize,
        "validate": _validate,
        "report": _report,
    }
    _require_targets(args)
    with _progress(args) as callback:
        outcome = commands[args.command](args, callback)
    text = document.dumps(_typed(args, outcome.document)) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    elif not args.quiet:
        sys.stdout.write(_render(outcome.view))
    sys.stdout.flush()
    for target, content in (
        *outcome.files,
        *(() if args.json == "-" else _files((args.json, text))),
        *_reports(args, text),
    ):
        document.write_text(target, content)
    if outcome.failure is not None:
        raise outcome.failure


def _typed(args: argparse.Namespace, plain: document.Json) -> document.Json:
    """Document with what was typed, behind what every document begins with."""
    first = {key: plain[key] for key in ("schema", "tool", "command") if key in plain}
    return first | {"command_line": args.command_line} | plain


def _reports(args: argparse.Namespace, text: str) -> Iterator[tuple[Path, str]]:
    """What ``report`` would make of the document."""
    for name in args.report:
        yield Path(name), report.render([json.loads(text)], report.format_of(name))


def _report(args: argparse.Namespace, _: Callback | None) -> _Outcome:
    if len(args.runs) > 2:
        raise RecipeError(
            f"{len(args.runs)} runs: a report shows one, or compares two", hint=f"{PROGRAM} report --help"
        )
    documents = [report.read_document(run) for run in args.runs]
    form = args.format or (None if args.output is None else report.format_of(args.output))
    if form is None:
        return _Outcome(
            report.report_view(documents, args.runs, wide=args.verbose or Console().width >= WIDE), {}
        )
    report.require_format(form)
    rendered = report.render(documents, form, args.runs)
    if args.output is None:
        return _Outcome(rendered, {})
    return _Outcome(f"{', '.join(args.runs)} -> {args.output}\n", {}, _files((args.output, rendered)))


def _inspect(args: argparse.Namespace, _: Callback | None) -> _Outcome:
    source = load(args.model)
    matched = pipeline.match(source.proto)
    return _Outcome(report.inspect_view(source, matched), document.inspect_document(source, matched))


def _plan(args: argparse.Namespace, callback: Callback | None) -> _Outcome:
    recipe = recipe_of(args)
    result = pipeline.plan_result(args.model, recipe, sweep=args.sweep, progress=callback)
    plain = _typed(args, plans.plan_result_document(result))
    files = _files((args.output, document.dumps(plain) + "\n"), (args.save_recipe, recipe.to_toml()))
    return _Outcome(report.plan_view(result, args.output, verbose=args.verbose), plain, files)


def _quantize(args: argparse.Namespace, callback: Callback | None) -> _Outcome:
    if args.output is None and not args.dry_run:
        raise RecipeError("no output file", hint=f"{PROGRAM} quantize {args.model} -o OUT.onnx, or --dry-run")
    if args.plan is None:
        recipe = recipe_of(args)
        result = pipeline.quantize(
            args.model, recipe=recipe, progress=callback, per_layer=args.per_layer, latency=args.latency
        )
    else:
        plan = plans.load_plan(args.plan)
        recipe = planned_recipe_of(args, plan)
        if recipe.form != plan.form:
            plan = replace(plan, form=recipe.form, predicted_bytes=None)
        result = pipeline.apply(
            args.model, plan, recipe, progress=callback, per_layer=args.per_layer, latency=args.latency
        )
    failure = (
        None
        if result.validation is None
        else _failure(result.validation, "nothing was written; more bits may help, or other gates")
    )
    if result.validation is not None:  # until there is a file to validate
        result = replace(result, validation=replace(result.validation, command=args.command_line))
    if failure is None and not args.dry_run:
        result = result.save(args.output, external_data=args.save_as_external_data, overwrite=args.overwrite)
    view = report.quantize_view(result, verbose=args.verbose or Console().width >= WIDE)
    return _Outcome(view, document.quantize_document(result), failure=failure)


def _files(*wanted: tuple[str | None, str]) -> tuple[tuple[Path, str], ...]:
    return tuple((Path(name), text) for name, text in wanted if name is not None)


def _validate(args: argparse.Namespace, callback: Callback | None) -> _Outcome:
    result = pipeline.compare_files(
        args.float_model,
        args.quantized_model,
        recipe_of(args),
        callback,
        per_layer=args.per_layer,
        latency=args.latency,
    )
    failure = _failure(result.validation, "more bits may help (--per-layer says where), or other gates")
    return _Outcome(
        report.comparison_view(result, verbose=args.verbose),
        document.validate_document(result),
        failure=failure,
    )


def _failure(validation: ValidationReport, hint: str) -> ValidationFailed | None:
    if validation:
        return None
    missed = [f"{gate.label} = {typed(gate.limit)} missed" for gate in validation.gates if not gate.passed]
    return ValidationFailed("validation failed: " + "; ".join([*validation.failures, *missed]), hint=hint)


def _require_targets(args: argparse.Namespace) -> None:
    """Refuse what cannot be written before the work is done, not after it."""
    sources = (
        "model",
        "float_model",
        "quantized_model",
        "config",
        "plan",
        "data",
        "labels",
        "calibration_data",
    )
    taken = [Path(value).resolve() for name in sources if (value := getattr(args, name, None)) is not None]
    taken += [Path(run).resolve() for run in getattr(args, "runs", ())]
    external, overwrite = getattr(args, "save_as_external_data", False), getattr(args, "overwrite", False)
    for name in ("output", "json", "save_recipe"):
        value = getattr(args, name, None)
        if value is None or (name == "json" and value == "-"):
            continue
        require_writable(
            value, external_data=external and name == "output", overwrite=overwrite or name == "json"
        )
        if Path(value).resolve() in taken:
            raise RecipeError(f"{value}: is also another file of this run", hint="choose another output path")
        taken.append(Path(value).resolve())
    _require_reports(args.report, taken)


def _require_reports(targets: Sequence[str], taken: Sequence[Path]) -> None:
    for position, value in enumerate(targets):
        report.require_format(report.format_of(value))
        require_writable(value, overwrite=True)
        if Path(value).resolve() in (*taken, *(Path(other).resolve() for other in targets[:position])):
            raise RecipeError(f"{value}: is also another file of this run", hint="choose another output path")


def _render(view: RenderableType) -> str:
    if isinstance(view, str):
        return view
    width = max(
        NARROW, Console().width
    )  # what does not fit is folded by the terminal: better than numbers that lose digits
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(view, crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Callback | None]:
    console = Console(stderr=True, markup=False, highlight=False)
    if args.quiet or args.no_progress or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def callback(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield callback

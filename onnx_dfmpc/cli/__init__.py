"""The command line: a command runs the pipeline, its document becomes a report, and the exit code follows.

Results go to stdout; progress and errors to stderr. Exit codes: 0 done and every gate held, 1 a gate failed
(the output is not left behind), 2 wrong usage or recipe, 3 this model cannot be quantized or nothing matched,
4 internal.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onnx_dfmpc.cli.files import replaceable, require_files
from onnx_dfmpc.cli.flags import PROGRAM, parse, planned_recipe_of, recipe_of
from onnx_dfmpc.cli.limits import LIMIT_EXCEEDED, Stopped, limited
from onnx_dfmpc.cli.needs import require_within
from onnx_dfmpc.errors import DfmpcError, ModelError, RecipeError, ValidationFailed, printable
from onnx_dfmpc.evaluate.compare import compare_files
from onnx_dfmpc.evaluate.validation import ValidationReport, next_steps, typed
from onnx_dfmpc.model.paths import beside, model_files
from onnx_dfmpc.model.writing import Draft, draft, publish
from onnx_dfmpc.pipeline.run import apply, inspect_result, plan_result, quantize
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.recipe.toml import schema_line
from onnx_dfmpc.report import document, plans
from onnx_dfmpc.report.outline import size
from onnx_dfmpc.report.renderers import RENDERERS, format_of, render, require_format
from onnx_dfmpc.report.terminal import is_wide
from onnx_dfmpc.sweep import sweep
from onnx_dfmpc.sweep.summary import summary

__all__ = ["main"]

INTERNAL, INTERRUPTED, BROKEN_PIPE = 4, 130, 141

Callback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Outcome:
    """What a command leaves: its document, a recipe to save, the error to end with once all is written, and
    files that are complete and not yet in place.
    """

    document: document.Json
    recipe: Recipe | None = None
    failure: ValidationFailed | None = None
    drafts: tuple[Draft, ...] = ()


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
    _require_streams()
    try:
        args = parse(argv)
        with limited(args.timeout, args.max_memory, _complain):
            return _command(args)
    except SystemExit as finished:  # argparse, after --help and --version
        return int(finished.code or 0)
    except DfmpcError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except Stopped as stopped:
        _complain(str(stopped), stopped.hint)
        return stopped.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return INTERRUPTED
    except MemoryError as error:
        _complain(f"out of memory: {error}", "inputs of a smaller --shape take less")
        return LIMIT_EXCEEDED
    except BrokenPipeError:
        _leave_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if {"-v", "--verbose"} & set(argv):
            traceback.print_exc()
        _complain(
            f"internal error, {type(error).__name__}: {error}",
            "this is a bug: run it again with -v and report the traceback with the command line and, if you "
            "may, the model",
        )
        return INTERNAL


def _require_streams() -> None:
    """Somebody may have closed them: what is written goes nowhere then."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - to the end


def _leave_stdout() -> None:
    """Python flushes stdout once more when it exits: let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(text: str) -> None:
    """Write to standard output; RecipeError where it takes no more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _leave_stdout()
        raise RecipeError(f"cannot write to standard output: {error.strerror}") from error


def _command(args: argparse.Namespace) -> int:
    if args.command == "quantize":
        return _quantize_files(args, model_files(args.models))
    protected = require_files(args)
    if args.command == "report":
        _report(args, protected)
    elif args.command == "sweep":
        _sweep(args)
    else:
        with ExitStack() as stack:  # at its end, nothing is left of files that were not published
            _run(args, protected, stack)
    return 0


def _complain(message: str, hint: str) -> None:
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    if hint:
        print("hint: " + printable(" ".join(hint.split())), file=sys.stderr)


def _run(args: argparse.Namespace, protected: tuple[Path, ...], stack: ExitStack) -> None:
    """A command that has a document: show it, and write it and what else was asked for, all or nothing."""
    commands = {"inspect": _inspect, "plan": _plan, "quantize": _quantize, "validate": _validate}
    with _progress(args) as callback:
        outcome = commands[args.command](args, callback, stack)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    shown = outcome.document | {"date": now, "command_line": args.command_line}
    text = document.dumps(shown)
    overwrite = getattr(args, "overwrite", False)
    # The output of `plan` is its document; that of `quantize`, a model, is complete already.
    texts = {args.output: (text, overwrite)} if args.command == "plan" else {}
    texts |= {None if args.json == "-" else args.json: (text, True)}
    if outcome.recipe is not None:
        texts |= {args.save_recipe: (schema_line() + outcome.recipe.to_toml(), overwrite)}
    texts |= {name: (render([shown], format_of(name)), True) for name in args.report}
    drafts = [*outcome.drafts] + [
        stack.enter_context(draft(Path(name), content.encode(), overwrite=allowed, protected=protected))
        for name, (content, allowed) in texts.items()
        if name is not None
    ]
    if args.json == "-":
        _show(text)
    elif not args.quiet:
        _show(render([shown], "terminal", wide=args.verbose or is_wide()))
    publish(drafts)
    written = [name for name in texts if name is not None]
    if written and args.json != "-" and not args.quiet:
        with suppress(OSError):  # everything is in place
            sys.stdout.write(printable(f"Written: {', '.join(written)}\n"))
            sys.stdout.flush()
    if outcome.failure is not None:
        raise outcome.failure


def _report(args: argparse.Namespace, protected: tuple[Path, ...]) -> None:
    if len(args.runs) > 2:
        raise RecipeError(
            f"{len(args.runs)} runs: a report shows one, or compares two", hint=f"{PROGRAM} report --help"
        )
    documents = [document.read_document(run) for run in args.runs]
    form = args.format or ("terminal" if args.output is None else format_of(args.output))
    require_format(form)
    text = render(documents, form, args.runs, wide=args.verbose or is_wide())
    if args.output is not None:
        target = Path(args.output)
        with draft(target, text.encode(), overwrite=replaceable(args.output), protected=protected) as whole:
            publish([whole])
        text = f"{', '.join(args.runs)} -> {args.output}\n"
    if not args.quiet:
        _show(text if args.output is None else printable(text))


def _sweep(args: argparse.Namespace) -> None:
    with _progress(args) as callback:
        rows = sweep(
            args.models,
            args.settings,
            args.results,
            executor=args.executor,
            workers=args.workers,
            scheduler=args.scheduler,
            save_models=not args.no_save,
            progress=callback,
        )
    if not args.quiet:
        sys.stdout.write(RENDERERS["terminal"].render(summary(rows), args.verbose or is_wide()))
        sys.stdout.write(printable(f"Written: {args.results}\n"))
    if failed := [row for row in rows if row.status != "done"]:
        first = " ".join(failed[0].error.split())
        raise ValidationFailed(
            f"{len(failed)} of {len(rows)} jobs have no file; the first: {failed[0].setting}: {first}",
            hint=f"{Path(args.results) / 'results.md'} has all of them",
        )


def _inspect(args: argparse.Namespace, _: Callback | None, __: ExitStack) -> _Outcome:
    return _Outcome(document.inspect_document(inspect_result(args.model)))


def _plan(args: argparse.Namespace, callback: Callback | None, _: ExitStack) -> _Outcome:
    recipe = recipe_of(args)
    result = plan_result(args.model, recipe, sweep=args.sweep, progress=callback)
    return _Outcome(plans.plan_document(result.plan, result), recipe)


def _quantize_files(args: argparse.Namespace, files: Sequence[Path]) -> int:
    """One model with its whole report; several with a line each, and the exit code of the worst."""
    if len(files) == 1:
        one = _for_model(args, files[0], args.output)
        protected = require_files(one)
        with ExitStack() as stack:
            _run(one, protected, stack)
        if args.output is None and not args.dry_run and args.json != "-" and not args.quiet:
            sys.stdout.write(printable(f"Written: {one.output}\n"))
        return 0
    if args.json or args.report or args.plan:
        raise RecipeError(
            f"--json, --report and --plan are for one model, these are {len(files)}",
            hint=f"{PROGRAM} sweep makes a report of many",
        )
    if args.output is not None:
        try:
            Path(args.output).mkdir(exist_ok=True)
        except OSError as error:
            hint = "for several models -o names a folder"
            raise RecipeError(
                f"{args.output}: cannot make the folder: {error.strerror}", hint=hint
            ) from error
    elif len(files) == len(args.models) == 2 and not files[1].exists():
        hint = f"-o names the output: {PROGRAM} quantize {shlex.join(map(str, (files[0], '-o', files[1])))}"
        raise ModelError(f"{files[1]}: no such file", hint=hint)
    code = 0
    for file in files:
        one = _for_model(args, file, None if args.output is None else Path(args.output) / file.name)
        try:
            require_files(one)
            with ExitStack() as stack:
                with _progress(one) as callback:
                    outcome = _quantize(one, callback, stack)
                publish(outcome.drafts)
            if outcome.failure is not None:
                raise outcome.failure
        except DfmpcError as error:
            _complain(str(error) if str(file) in str(error) else f"{file}: {error}", error.hint)
            code = max(code, error.exit_code)
            continue
        if not args.quiet:
            before, after = outcome.document["model"]["bytes"], outcome.document["output"]["bytes"]
            written = "nothing written" if args.dry_run else f"written: {one.output}"
            line = f"{file}: {size(after)}, {before / after:.1f} times smaller; {written}\n"
            sys.stdout.write(printable(line))
            sys.stdout.flush()
    return code


def _for_model(args: argparse.Namespace, file: Path, output: str | Path | None) -> argparse.Namespace:
    """Arguments for one of the models; without an output it goes beside the model, if there is one."""
    if output is None and not args.dry_run and file.is_file():
        output = beside(file)
    target = None if output is None else str(output)
    return argparse.Namespace(**vars(args) | {"model": str(file), "output": target})


def _quantize(args: argparse.Namespace, callback: Callback | None, stack: ExitStack) -> _Outcome:
    asked = {"per_layer": args.per_layer, "latency": args.latency}
    if args.plan is None:
        recipe = recipe_of(args)
        require_within(args.model, recipe.shapes, args.max_memory, args.timeout)
        result = quantize(args.model, None, recipe, progress=callback, **asked)
    else:
        plan = plans.load_plan(args.plan)
        recipe = planned_recipe_of(args, plan)
        if recipe.form != plan.form:
            plan = replace(plan, form=recipe.form, predicted_bytes=None)
        require_within(args.model, recipe.shapes, args.max_memory, args.timeout)
        result = apply(args.model, plan, recipe, progress=callback, **asked)
    failure = None
    if result.validation is not None:
        alone = None if result.activations is None else result.activations.sqnr_db
        failure = _failure(result.validation, args.per_layer, "nothing was written; ", alone)
        # Until there is a file to validate, the command that was typed repeats it.
        result = replace(result, validation=replace(result.validation, command=args.command_line))
    drafts: tuple[Draft, ...] = ()
    if failure is None and not args.dry_run:
        drafts = stack.enter_context(
            result.drafted(args.output, external_data=args.save_as_external_data, overwrite=args.overwrite)
        )
        result = result.saved_as(args.output, drafts)
    return _Outcome(document.quantize_document(result), failure=failure, drafts=drafts)


def _validate(args: argparse.Namespace, callback: Callback | None, _: ExitStack) -> _Outcome:
    recipe = recipe_of(args)
    require_within(args.float_model, recipe.shapes, args.max_memory, args.timeout)
    result = compare_files(
        args.float_model,
        args.quantized_model,
        recipe,
        callback,
        per_layer=args.per_layer,
        latency=args.latency,
    )
    failure = _failure(result.validation, args.per_layer)
    return _Outcome(document.validate_document(result), failure=failure)


def _failure(
    validation: ValidationReport, per_layer: bool, before: str = "", activations_db: float | None = None
) -> ValidationFailed | None:
    if validation:
        return None
    missed = [f"{gate.name} = {typed(gate.limit)} missed" for gate in validation.gates if not gate.passed]
    message = "validation failed: " + "; ".join([*validation.failures, *missed])
    return ValidationFailed(
        message, hint=before + "; ".join(next_steps(validation, per_layer, activations_db))
    )


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

"""Random networks and mutated models, for as long as one likes: nothing but a sound result or an error that
says why.

python -m benchmarks.fuzz [--minutes 10] [--inputs N] [--seed 0] [--models FILE ...] [--json FILE]
python -m benchmarks.fuzz --again FILE.onnx ...
python -m benchmarks.fuzz --table FILE.json --output FILE.md

One input in twenty is a network of `random_networks`, for which all that is promised there has to hold. The
others are such networks, those of `odd_models`, the shipped one and any given files, changed at random; each is
quantized by the command, with random flags. The exit code has to be a documented one, the file that was
written has to load and to have finite outputs where the float model has, the input has to be what it was, and
nothing else may be left. A child process does the work, started once, with limits on memory and time, so that
a crash or an endless loop is found and not suffered. What was found is kept as files, which `--again` tries
anew; the exit code is 1 then. Counts are written while it runs, to a file that keeps those of other commits and
seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import io
import json
import multiprocessing
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from benchmarks.mutations import CHANGES, Random, mutated, pick
from benchmarks.odd_models import cases
from benchmarks.random_networks import LOW_BITS, check, outputs, random_network
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe
from onnx_dfmpc.cli import flags
from onnx_dfmpc.cli import main as command
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.evaluate.metrics import joined
from onnx_dfmpc.inputs import synthetic
from onnx_dfmpc.pipeline import job as preparation
from onnx_dfmpc.statistics import mixing

MEMORY = 6 << 30
"""Bytes of address space of the child; resident memory is limited by the command."""

SECONDS = 300
"""Most time for one input; the command gives up before, but on a busy machine a clock says little."""

LIMITS = ("--timeout", "60", "--max-memory", "2GiB")

LIMITED = ("the limit is", "not done after", "takes more than")
"""Words of an error where a limit is what ended the run."""

WRITE_SECONDS = 20
"""Between two writings of the counts."""

NETWORK = "random network, every promise"
QUANTIZED, GATE, SETTING, REFUSED, GIVEN_UP, WRONG = OUTCOMES = (
    "quantized", "fails a gate (1)", "settings (2)", "refused (3)", "out of time or memory (3)", "wrong",
)  # fmt: skip
UNRUNNABLE = "quantized, and the float model does not run here"

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "digits_resnet_bn.onnx"

FLAGS = (
    (), (), (), ("--activations", "8"), ("--slim",), ("--storage", "native"), ("--unpack", "float"),
    ("--unpack", "int8"), ("--fold-batch-norm", "yes"), ("--statistics", "closed_form"), ("--no-gate",),
    ("--save-as-external-data",), ("--method", "paper"), ("--per-layer",), ("--target", "ort-1.16"),
)  # fmt: skip
BITS = (
    ("--bits", "8"),
    ("--bits", "6"),
    ("--bits", "4"),
    ("--bits", "2"),
    ("--low-bits", "2", "--high-bits", "6"),
    (),
)

SETTINGS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"rounding": "nearest"}, {"repair": "none"}, {"method": "paper"}, {"fold_batch_norm": "yes"},
    {"activations": 8}, {"statistics": "closed_form"}, {"slim": True}, {"storage": "native"},
    {"unpack": "float"}, {"unpack": "int8"},
)  # fmt: skip
RANGE = (-2.0, 2.0)
"""Of synthetic inputs, mostly given: to find it takes most of the time that a small network takes."""

RECIPE = '[defaults]\nrounding = "nearest"\nrepair = "none"\n'


def check_network(seed: int) -> str:
    """Whether all promises hold for a random network."""
    rng = np.random.default_rng(seed)
    model = random_network(lambda options: pick(options, rng))
    keywords: dict[str, Any] = {"samples": 2, "input_range": RANGE} | pick(SETTINGS, rng)
    try:
        check(model, pick(LOW_BITS, rng), lambda **more: Recipe(**keywords, **more))
    except Exception as error:  # what this script is for
        return f"wrong: {keywords}: {type(error).__name__}: {error}"
    return QUANTIZED


def flags_of(rng: Random) -> tuple[str, ...]:
    """Flags of one run."""
    chosen = (*pick(BITS, rng), *pick(FLAGS, rng), "--samples", "2")
    chosen += ("--input-range=-2,2",) if rng.integers(8) else ()
    return (*chosen, *(("-c", "fast.toml") if rng.integers(2) and "paper" not in chosen else ()))


def attempt(data: bytes, flags: Sequence[str]) -> str:
    """What becomes of one file."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, contextlib.chdir(folder):
        Path("in.onnx").write_bytes(data)
        Path("fast.toml").write_text(RECIPE)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = command(["quantize", "in.onnx", "-o", "out.onnx", "-q", *LIMITS, *flags])
        errors = said.getvalue().splitlines()
        left = {file.name for file in Path().iterdir()} - {"in.onnx", "fast.toml"}
        if Path("in.onnx").read_bytes() != data:
            return "wrong: the input has changed"
        if code not in (0, 1, 2, 3):
            return f"wrong: exit code {code}: {' '.join(errors)[-300:]}"
        if code:
            said_once = sum(line.startswith("error: ") for line in errors) == 1
            sound = said_once and not left and len(errors) <= 2
            if not sound:
                return f"wrong: exit code {code}, left {left}, said {errors}"
            given_up = code == 3 and any(words in line for words in LIMITED for line in errors)
            return GIVEN_UP if given_up else {1: GATE, 2: SETTING, 3: REFUSED}[code]
        if "out.onnx" not in left or any(not name.startswith("out.") for name in left):
            return f"wrong: exit code 0, left {left}"
        return written(ModelProto.FromString(data), "--no-gate" in flags)


def written(model: ModelProto, ungated: bool) -> str:
    """What `out.onnx` is worth, beside the float model."""
    import onnx

    try:
        expected = outputs(model, "float")
    except DfmpcError:
        return UNRUNNABLE
    try:
        found = outputs(onnx.load("out.onnx"), "out.onnx")
    except DfmpcError as error:
        return f"wrong: only the float model runs: {error}"
    for one, other in zip(map(joined, expected), map(joined, found), strict=True):
        if not isinstance(one, np.ndarray):
            continue
        if one.shape != other.shape:
            return f"wrong: shape {other.shape} instead of {one.shape}"
        numbers = one.dtype.kind == "f"
        if numbers and np.isfinite(one).all() and not np.isfinite(other).all() and not ungated:
            return "wrong: only the float model is finite"
    return QUANTIZED


def _fewer_pictures() -> None:
    """Draw a tenth of the synthetic inputs: they take most of the time of a small network, and are always
    the same.
    """
    synthetic.MAX_SAMPLES, synthetic.MIN_SAMPLES, mixing.TRIAL_SAMPLES = 6, 3, 2


def _once() -> None:
    """Make but once what is the same in every run and takes a sixth of the time of a small one: the parser of
    the command line, the version from the metadata of the package.
    """
    flags._parser = functools.cache(flags._parser)
    importlib.metadata.version = functools.cache(importlib.metadata.version)
    vars(preparation)["version"] = importlib.metadata.version


def _child(connection: Connection) -> None:
    _fewer_pictures()
    _once()
    warnings.simplefilter("ignore")  # as the command does
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end
    while (job := connection.recv()) is not None:
        try:
            connection.send(check_network(*job) if len(job) == 1 else attempt(*job))
        except Exception as error:
            connection.send(f"wrong: {type(error).__name__}: {error}")


class Child:
    """A process that tries one input after the other, and is started anew where it does not come back."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_child, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def attempt(self, job: tuple[Any, ...]) -> str:
        """As the function, but for crashes and for what takes too long."""
        self._connection.send(job)
        try:
            if self._connection.poll(SECONDS):
                return str(self._connection.recv())
            result = f"wrong: not done after {SECONDS} s"
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            # A run that does not stop when its limit is reached is ended, as documented.
            result = GIVEN_UP if code == 3 else f"wrong: the process ended with {code}"
        self._process.kill()
        self._process.join()
        self._start()
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join()


def jobs(files: Sequence[tuple[str, bytes]], rng: Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What to try, for ever, by kind: the seed of a network, or a file and flags."""
    while True:
        if not rng.integers(20):
            yield NETWORK, (int(rng.integers(1 << 32)),)
            continue
        if rng.integers(2):
            source, data = (
                "random network",
                random_network(lambda options: pick(options, rng)).SerializeToString(),
            )
        else:
            source, data = pick(files, rng)
        change = pick(CHANGES, rng)
        yield f"{source}, {change}", (mutated(data, change, rng), flags_of(rng))


def models(given: Iterable[Path]) -> list[tuple[str, bytes]]:
    """Files to change, with their kind. One in fifty is one that somebody trained: these take most of the time."""
    odd = [("odd model", case.model.SerializeToString()) for case in cases()]
    trained = [("trained network", path.read_bytes()) for path in (SHIPPED, *given)]
    return odd + trained * max(1, len(odd) // (50 * len(trained)))


@functools.cache
def commit() -> str:
    """What is tried, at the start: counts that are written, or new commits, make no other code of it."""
    typed = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = Path(__file__).parent
    return subprocess.run(typed, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def recorded(file: Path, seed: int, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Put the counts of a run into a file, beside those of other commits and seeds."""
    runs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    runs.setdefault(commit(), {})[str(seed)] = {
        kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)
    }
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def page(runs: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]) -> str:
    """All runs of a file as a table: inputs by kind and by what became of them."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for seeds in runs.values():
        for counts in seeds.values():
            for kind, outcomes in counts.items():
                total[kind].update(outcomes)
    total["all"] = sum(total.values(), Counter())
    header = ("input", "inputs", QUANTIZED, UNRUNNABLE, *OUTCOMES[1:])
    rows = [
        (kind, *(f"{n:,}" for n in (one.total(), *(one[key] for key in header[2:]))))
        for kind, one in total.items()
    ]
    each = [
        f"{sum(sum(c.values()) for one in seeds.values() for c in one.values()):,} at {name}"
        for name, seeds in runs.items()
    ]
    return f"{PAGE}{markdown(header, rows)}\n\nInputs by commit: {', '.join(each)}.\n"


PAGE = """# Fuzzing

Random networks and mutated models through `python -m benchmarks.fuzz`, by what became of them. In brackets: exit codes.
*Wrong* is everything else than a model that is sound beside its float original, or one error that says why, with
nothing left behind. Three so far. ONNX Runtime loads a Concat one of whose inputs has no name and crashes when it
runs: such models are refused now. The other two were no defects of a file: a network whose outputs are all 0, since a last Relu
lets nothing through, had biases of 5e-6 there, which the check took for noise without a signal (it asks for less than
1e-3 now); and a run that was suspended by hand for longer than its limit (it is sound when it is run again). A run of 187
inputs that is not counted here found models that list an output twice, five times: exit code 4, mended since.

"""


def keep(folder: Path, name: str, job: tuple[Any, ...]) -> None:
    """Keep what was found, for `--again`: the file with its flags, or the seed of a network."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(job) > 1:
        (folder / f"{name}.onnx").write_bytes(job[0])
    (folder / f"{name}.txt").write_text(
        str(job[0]) if len(job) == 1 else shlex.join(job[1]), encoding="utf-8"
    )


def kept(path: Path) -> tuple[Any, ...]:
    """What `keep` has kept, by either file."""
    words = path.with_suffix(".txt").read_text(encoding="utf-8")
    model = path.with_suffix(".onnx")
    return (model.read_bytes(), shlex.split(words)) if model.exists() else (int(words),)


def again(files: Sequence[Path]) -> int:
    """Try what was found once more."""
    child, wrong = Child(), 0
    for file in files:
        result = child.attempt(kept(file))
        wrong += result.startswith("wrong")
        sys.stdout.write(f"{file.stem}: {result}\n")
    child.close()
    return int(wrong > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="end after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for what was found")
    parser.add_argument("--json", type=Path, help="file for the counts")
    parser.add_argument("--again", type=Path, nargs="+", help="files of --keep to try once more")
    parser.add_argument("--table", type=Path, help="file of --json to make a table of")
    parser.add_argument("--output", type=Path, help="file for the table")
    given = parser.parse_args(arguments)
    if given.again:
        return again(given.again)
    if given.table:
        text = page(json.loads(given.table.read_text(encoding="utf-8")))
        sys.stdout.write(text) if given.output is None else given.output.write_text(text, encoding="utf-8")
        return 0
    commit()
    rng, child, counts = np.random.default_rng(given.seed), Child(), defaultdict[str, Counter[str]](Counter)
    start = written = time.monotonic()
    inputs = wrong = 0

    def say() -> None:
        sys.stderr.write(f"{inputs:,} inputs in {time.monotonic() - start:,.0f} s, {wrong} wrong\n")
        sys.stderr.flush()
        if given.json:
            recorded(given.json, given.seed, counts)

    for kind, job in jobs(models(given.models), rng):
        if time.monotonic() > start + 60 * given.minutes or inputs == given.inputs:
            break
        result = child.attempt(job)
        inputs += 1
        bad = result.startswith("wrong")
        counts[kind][WRONG if bad else result] += 1
        if bad:
            wrong += 1
            name = f"{given.seed}-{inputs}"
            keep(given.keep, name, job)
            sys.stderr.write(f"{name} {job[-1]}: {result}\n")
        if bad or time.monotonic() > written + WRITE_SECONDS:
            say()
            written = time.monotonic()
    child.close()
    say()
    for result, count in sum(counts.values(), Counter[str]()).most_common():
        sys.stdout.write(f"{count:8,} {result}\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

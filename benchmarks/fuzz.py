"""Random networks and mutated models, for as long as one likes: nothing but a sound result or an error that
says why.

python -m benchmarks.fuzz [--minutes 10] [--inputs N] [--seed 0] [--models FILE ...] [--json FILE]

One input in twelve is a network of `random_networks`, for which all that is promised there has to hold. The
others are such networks, those of `odd_models`, the shipped one and any given files, changed at random; each is
quantized by the command, with random flags. The exit code has to be a documented one, the file that was
written has to load and to have finite outputs where the float model has, the input has to be what it was, and
nothing else may be left. A child process does the work, started once, with limits on memory and time, so that
a crash or an endless loop is found and not suffered. What was found is kept as files; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from benchmarks.mutations import Random, mutated, pick
from benchmarks.odd_models import cases
from benchmarks.random_networks import LOW_BITS, check, outputs, random_network
from onnx_dfmpc import Recipe
from onnx_dfmpc.cli import main as command
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.evaluate.metrics import joined
from onnx_dfmpc.inputs import synthetic
from onnx_dfmpc.statistics import mixing

MEMORY = 6 << 30
"""Bytes of address space of the child; resident memory is limited by the command."""

SECONDS = 90
"""Most time for one input; the command gives up before."""

LIMITS = ("--timeout", "30", "--max-memory", "2GiB")

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
    return "random network: every promise held"


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
            return f"exit code {code}" if sound else f"wrong: exit code {code}, left {left}, said {errors}"
        if "out.onnx" not in left or any(not name.startswith("out.") for name in left):
            return f"wrong: exit code 0, left {left}"
        return written(ModelProto.FromString(data), "--no-gate" in flags)


def written(model: ModelProto, ungated: bool) -> str:
    """What `out.onnx` is worth, beside the float model."""
    import onnx

    try:
        expected = outputs(model, "float")
    except DfmpcError:
        return "exit code 0, and the float model does not run here"
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
    return "exit code 0"


def _fewer_pictures() -> None:
    """Draw a tenth of the synthetic inputs: they take most of the time of a small network, and are always
    the same.
    """
    synthetic.MAX_SAMPLES, synthetic.MIN_SAMPLES, mixing.TRIAL_SAMPLES = 6, 3, 2


def _child(connection: Connection) -> None:
    _fewer_pictures()
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
            result = "exit code 3, ended" if code == 3 else f"wrong: the process ended with {code}"
        self._process.kill()
        self._process.join()
        self._start()
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join()


def jobs(files: Sequence[bytes], rng: Random) -> Iterator[tuple[Any, ...]]:
    """What to try, for ever: the seed of a network, or a file and flags."""
    while True:
        if not rng.integers(12):
            yield (int(rng.integers(1 << 32)),)
            continue
        if rng.integers(2):
            data = random_network(lambda options: pick(options, rng)).SerializeToString()
        else:
            data = pick(files, rng)
        yield mutated(data, rng), flags_of(rng)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="end after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for what was found")
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = parser.parse_args(arguments)
    files = [case.model.SerializeToString() for case in cases()]
    # One in twelve is a file that somebody trained.
    real = [path.read_bytes() for path in (SHIPPED, *given.models)]
    files += real * max(1, len(files) // (11 * len(real)))
    rng, child, counts = np.random.default_rng(given.seed), Child(), Counter[str]()
    end = time.monotonic() + 60 * given.minutes
    for job in jobs(files, rng):
        if time.monotonic() > end or counts.total() == given.inputs:
            break
        result = child.attempt(job)
        wrong = result.startswith("wrong")
        counts["wrong" if wrong else result] += 1
        if wrong:
            name = f"{given.seed}-{counts.total()}"
            given.keep.mkdir(parents=True, exist_ok=True)
            if len(job) > 1:
                (given.keep / f"{name}.onnx").write_bytes(job[0])
            sys.stderr.write(f"{name} {job[-1]}: {result}\n")
    child.close()
    for result, count in counts.most_common():
        sys.stdout.write(f"{count:8,} {result}\n")
    sys.stdout.write(f"{counts.total():8,} inputs\n")
    if given.json:
        given.json.write_text(json.dumps(dict(counts.most_common())) + "\n", encoding="utf-8")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Mutated models, for as long as one likes: each is quantized, or refused with an error that says why.

python -m benchmarks.fuzz [--minutes 10] [--seed 0] [--models FILE ...]

Models are those of `odd_models` and any given files, changed at random: bytes and lengths in the file, or
nodes, edges, attributes, types, shapes and numbers in the graph. Child processes do the work, with limits on
memory and time, so that a crash or an endless loop is found and not suffered. What was found is kept as
files; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from benchmarks.odd_models import cases
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.runtime.session import Session

MEMORY = 4 << 30
"""Bytes of address space of a child."""

SECONDS = 60
"""Most time for one input."""

Random = np.random.Generator


def _bytes(data: bytes, rng: Random) -> bytes:
    """A file with a few bytes changed, cut or doubled."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(changed)))
        kind = rng.integers(4)
        if kind == 0:
            changed[at] = int(rng.integers(256))
        elif kind == 1:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[at : at + int(rng.integers(1, 64))]
        else:
            changed[at:at] = changed[at : at + int(rng.integers(1, 64))]
    return bytes(changed[: int(rng.integers(1, len(changed)))] if rng.integers(10) == 0 else changed)


def _drop_node(model: ModelProto, rng: Random) -> None:
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


def _swap_nodes(model: ModelProto, rng: Random) -> None:
    a, b = (model.graph.node[int(rng.integers(len(model.graph.node)))] for _ in range(2))
    a.op_type, b.op_type = b.op_type, a.op_type


def _rewire(model: ModelProto, rng: Random) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)] + ["", "nowhere"]
    node = model.graph.node[int(rng.integers(len(model.graph.node)))]
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = names[int(rng.integers(len(names)))]


def _attribute(model: ModelProto, rng: Random) -> None:
    every = [attribute for node in model.graph.node for attribute in node.attribute]
    if not every:
        return
    attribute = every[int(rng.integers(len(every)))]
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = int(rng.integers(-3, 1000))
    else:
        attribute.i, attribute.f = (
            int(rng.integers(-3, 1000)),
            float(rng.normal() * 10.0 ** rng.integers(-9, 30)),
        )


def _dimension(model: ModelProto, rng: Random) -> None:
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    if tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = int(rng.integers(-1, 100))


def _kind(model: ModelProto, rng: Random) -> None:
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    tensor.data_type = int(rng.integers(0, 26))


def _numbers(model: ModelProto, rng: Random) -> None:
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor).copy().ravel()
        strange = (np.nan, np.inf, -np.inf, 1e30, 1e-40, 0.0, -1.0)
        values[: int(rng.integers(1, 9))] = strange[int(rng.integers(len(strange)))]
        tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))


def _input_shape(model: ModelProto, rng: Random) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if dims:
        dims[int(rng.integers(len(dims)))].dim_value = int(rng.integers(0, 64))


def _versions(model: ModelProto, rng: Random) -> None:
    model.ir_version = int(rng.integers(0, 20))
    model.opset_import[0].version = int(rng.integers(0, 40))


def _repeat(model: ModelProto, rng: Random) -> None:
    model.graph.node.add().CopyFrom(model.graph.node[int(rng.integers(len(model.graph.node)))])


def _external(model: ModelProto, rng: Random) -> None:
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../x" if rng.integers(2) else "weights"), ("offset", "-1")):
        tensor.external_data.add(key=key, value=value)


EDITS: tuple[Callable[[ModelProto, Random], None], ...] = (
    _drop_node, _swap_nodes, _rewire, _attribute, _dimension, _kind, _numbers, _input_shape, _versions, _repeat,
    _external,
)  # fmt: skip


def mutated(data: bytes, rng: Random) -> bytes:
    """A changed file."""
    if rng.integers(3) == 0:
        return _bytes(data, rng)
    model = ModelProto.FromString(data)
    for _ in range(int(rng.integers(1, 4))):
        try:
            EDITS[int(rng.integers(len(EDITS)))](model, rng)
        except (ValueError, IndexError, TypeError):
            continue  # nothing left of what it changes
    return bytes(model.SerializeToString())


def attempt(data: bytes) -> str:
    """What becomes of one file: "quantized", "refused: CLASS", or "wrong: ..."."""
    recipe = Recipe(bits=6, rounding="nearest", samples=2)
    try:
        made = quantize(data, None, recipe, validated=False).model
    except DfmpcError as error:
        return f"refused: {type(error).__name__}"
    except Exception as error:  # what this script is for
        return f"wrong: {type(error).__name__}: {error}"
    try:
        Session(ModelProto.FromString(data), "float")
    except DfmpcError:
        return "quantized, and the float model does not load"
    try:
        Session(made, "quantized")
    except DfmpcError as error:
        return f"wrong: only the float model loads: {error}"
    return "quantized"


def _child(connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (data := connection.recv()) is not None:
        connection.send(attempt(data))


class Child:
    """A process that tries one file after the other, and is started anew where it does not come back."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_child, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def attempt(self, data: bytes) -> str:
        """As the function, but for crashes and for what takes too long."""
        self._connection.send(data)
        try:
            if self._connection.poll(SECONDS):
                return str(self._connection.recv())
            result = f"wrong: not done after {SECONDS} s"
        except EOFError:
            self._process.join()
            result = f"wrong: the process ended with {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Mutate until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for what was found")
    given = parser.parse_args(arguments)
    files = [case.model.SerializeToString() for case in cases()]
    files += [path.read_bytes() for path in given.models]
    rng, child, counts = np.random.default_rng(given.seed), Child(), Counter[str]()
    end = time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        data = mutated(files[int(rng.integers(len(files)))], rng)
        result = child.attempt(data)
        counts[result.split(":")[0] if result.startswith("wrong") else result] += 1
        if result.startswith("wrong"):
            given.keep.mkdir(parents=True, exist_ok=True)
            (given.keep / f"{given.seed}-{counts.total()}.onnx").write_bytes(data)
            sys.stderr.write(f"{given.seed}-{counts.total()}: {result}\n")
    child.close()
    for result, count in counts.most_common():
        sys.stdout.write(f"{count:8,} {result}\n")
    sys.stdout.write(f"{counts.total():8,} inputs\n")
    return int(any(result.startswith("wrong") for result in counts))


if __name__ == "__main__":
    sys.exit(main())

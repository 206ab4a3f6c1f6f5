"""Every form of storage in a browser: does onnxruntime-web load it, are its outputs those of ONNX Runtime on
Python, how fast is it.

python -m benchmarks.web [--networks NAME ...] [--chromium PROGRAM] [--json FILE]

Needs the runtime that ``make web-demo`` fetches, Chromium, and the `test` extra.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import browser, networks
from benchmarks.tables import markdown
from models.web import RUNTIME, RUNTIME_FILES
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.model.files import load
from onnx_dfmpc.storage.layouts import STORAGES

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

NETWORKS = ("digits_resnet_bn", "cifar10_resnet20_bn")
BITS = (2, 3, 4, 6, 8)
UNPACKED = ("none", "int8", "float", "activations")
"""How codes are unpacked: by which ``--unpack``, or as ``--activations 8`` does."""

SAMPLES, ROUNDS = 16, 60
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""Headers with which the clock of a page counts in steps of 5 microseconds, not of 100."""

RUN = """async ({ runtime, input, models, rounds }) => {
  const ort = await import(runtime);
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const tensor = new ort.Tensor("float32", new Float32Array(bytes(input.data).buffer), input.shape);
  const one = new ort.Tensor("float32", tensor.data.slice(0, tensor.data.length / input.shape[0]),
    [1, ...input.shape.slice(1)]);
  const sessions = {}, answers = {};
  for (const [name, model] of Object.entries(models)) {
    try {
      const session = await ort.InferenceSession.create(bytes(model));
      const outputs = await session.run({ [session.inputNames[0]]: tensor });
      answers[name] = { times: [], outputs: session.outputNames.map((key) => [...outputs[key].data]) };
      sessions[name] = session;
    } catch (error) {
      answers[name] = { error: String(error.message ?? error) };
    }
  }
  // In turn, in another order each time; the first third lets the browser optimise what runs often.
  for (let round = -rounds / 2; round < rounds; round++) {
    const order = Object.keys(sessions).map((name) => [Math.random(), name]).sort(([a], [b]) => a - b);
    for (const [, name] of order) {
      const started = performance.now();
      await sessions[name].run({ [sessions[name].inputNames[0]]: one });
      if (round >= 0) answers[name].times.push(performance.now() - started);
    }
  }
  return answers;
}"""


@dataclass(frozen=True)
class Row:
    """One file in the browser.

    ``difference`` is the largest to ONNX Runtime on Python, relative to the largest output; ``latency`` is the
    median in milliseconds, ``relative`` its ratio to that of the float model, measured in turn with it.
    """

    network: str
    storage: str
    unpacked: str
    bits: int
    bytes: int
    error: str | None = None
    difference: float | None = None
    latency: float | None = None
    relative: float | None = None


@contextmanager
def opened(program: str) -> Iterator[Page]:
    """A page of a headless browser that sees the runtime's files and nothing else."""

    def answer(route: Route) -> None:
        file = RUNTIME / route.request.url.rpartition("/")[2]
        if file.is_file():
            route.fulfill(path=file, headers=ISOLATED)
        else:
            route.fulfill(body="", content_type="text/html", headers=ISOLATED)

    with browser.chromium(program) as opened_browser:
        page = opened_browser.new_page()
        page.route("**/*", answer)
        page.goto("http://localhost/")
        yield page


def settings(storage: str, unpacked: str, bits: int) -> Recipe:
    """Recipe of a form; weights are rounded to nearest, since only their places matter."""
    how: dict[str, Any] = {"activations": 8} if unpacked == "activations" else {"unpack": unpacked}
    return Recipe(bits=bits, storage=storage, fold_batch_norm="yes", rounding="nearest", samples=2, **how)


def python(model: bytes, name: str, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Outputs of ONNX Runtime on Python with default options, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return cast("list[NDArray[np.float32]]", session.run(None, {name: inputs}))


def measure(name: str, page: Page, console: Console, bits: Sequence[int] = BITS) -> list[Row]:
    """All forms of one network, loaded side by side and run in turn with the float model."""
    path = networks.network(name).path
    (spec,) = model_inputs(load(path).proto)
    _, _, feeds = next(synthetic([spec], samples=SAMPLES, seed=0).batches())
    inputs = feeds[spec.name].astype(np.float32)
    models = {("float", "", 32): path.read_bytes()}
    for form in product(STORAGES, UNPACKED, bits):
        console.print(f"{name}: {form}", style="dim")
        models[form] = quantize(path, recipe=settings(*form)).model.SerializeToString()
    found = page.evaluate(
        RUN,
        {
            "runtime": f"/{RUNTIME_FILES[0]}",
            "input": {"data": base64.b64encode(inputs.tobytes()).decode(), "shape": list(inputs.shape)},
            "models": {" ".join(map(str, form)): _text(model) for form, model in models.items()},
            "rounds": ROUNDS,
        },
    )
    usual: list[float] = next(iter(found.values()))["times"]
    rows = []
    for (form, model), answer in zip(models.items(), found.values(), strict=True):
        row = Row(name, *form, len(model))
        rows.append(
            Row(**asdict(row) | {"error": answer["error"]})
            if "error" in answer
            else Row(**asdict(row) | _numbers(answer, usual, python(model, spec.name, inputs)))
        )
    return rows


def _text(model: bytes) -> str:
    return base64.b64encode(model).decode()


def _numbers(
    answer: Mapping[str, Any], usual: Sequence[float], reference: Sequence[NDArray[np.float32]]
) -> dict[str, float]:
    differences = [
        float(np.abs(ours.ravel() - np.asarray(theirs)).max() / np.abs(ours).max())
        for ours, theirs in zip(reference, answer["outputs"], strict=True)
    ]
    latency = statistics.median(answer["times"])
    return {
        "difference": max(differences),
        "latency": latency,
        "relative": latency / statistics.median(usual),
    }


def table(rows: Sequence[Row]) -> str:
    """A line for every form: which widths load, the largest difference of all, the time of every network."""
    names = list(dict.fromkeys(row.network for row in rows))
    lines = []
    for storage, unpacked in dict.fromkeys((row.storage, row.unpacked) for row in rows):
        if storage == "float":
            continue
        form = [row for row in rows if (row.storage, row.unpacked) == (storage, unpacked)]
        failed = {row.bits for row in form if row.error is not None}
        loads = ", ".join(str(bits) for bits in sorted({row.bits for row in form} - failed))
        flag = "`--activations 8`" if unpacked == "activations" else f"`--unpack {unpacked}`"
        differences = [row.difference for row in form if row.difference is not None]
        difference = f"{max(differences):.0e}" if any(differences) else "none"
        times = [[row.relative for row in form if row.network == name and row.relative] for name in names]
        spans = [f"{min(found):.2f} to {max(found):.2f}" if found else "-" for found in times]
        lines.append((f"`--storage {storage}` {flag}", loads, difference, *spans))
    latency = {row.network: row.latency for row in rows if row.storage == "float"}
    heads = [f"{name}, float {latency[name]:.1f} ms" for name in names]
    return markdown(("form", "bits that load", "largest difference", *heads), lines)


def run(names: Sequence[str], console: Console, chromium: str | None = None) -> list[Row]:
    """Measure networks, each in a browser of its own."""
    program = chromium or browser.find()
    if program is None:
        raise DfmpcError("no chromium on PATH", hint="name the browser with --chromium")
    if not RUNTIME.is_dir():
        raise DfmpcError("onnxruntime-web is not in build/", hint="make web-demo fetches it")
    rows: list[Row] = []
    for name in names:
        with opened(program) as page:
            rows += measure(name, page, console)
    return rows


def write(rows: Sequence[Row], path: Path) -> None:
    """The numbers as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.web", description="Every form of storage in a browser."
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"default: {' '.join(NETWORKS)}")
    add("--chromium", metavar="PROGRAM", help="the browser (chromium on PATH)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(arguments)
    try:
        rows = run(options.networks, Console(stderr=True), options.chromium)
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    if options.json is not None:
        write(rows, options.json)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
